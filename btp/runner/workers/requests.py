"""Request files for workers, removed behind a run even if a process was killed. No torch here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from btp.results.atomic import write_text
from btp.results.disk import make_folder, writing

_OURS = re.compile(r"\.(json|lock|outcome\d*)(\.[0-9a-f]{32})?$")  # the last part of temporary names


@contextmanager
def handed_in(spool: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """A request on disk while its run lasts; removed with its outcomes afterwards, as are those of the dead.

    Args:
        spool: folder of requests.
        config: resolved.

    Raises:
        CannotWrite: there is no room for it, or no permission.
    """
    make_folder(spool)
    _clear(spool)
    request = spool / f"{uuid4().hex}.json"  # hosts and process numbers repeat, between containers
    lock = FileLock(request.with_suffix(".lock"), mode=0o666)
    with writing(request):
        lock.acquire()
    try:
        write_text(request, json.dumps(config))
        yield request
    finally:
        _remove(spool, request.stem)
        lock.release()


def _clear(spool: Path) -> None:
    """Remove what belongs to requests whose process has ended; each holds its lock as long as it lives."""
    for stem in {_stem(file.name) for file in spool.iterdir() if _OURS.search(file.name)}:
        lock = FileLock(spool / f"{stem}.lock", mode=0o666)
        with suppress(Timeout, OSError):
            lock.acquire(timeout=0)
            try:
                _remove(spool, stem)
            finally:
                lock.release()


def _remove(spool: Path, stem: str) -> None:
    for file in [file for file in spool.iterdir() if _stem(file.name) == stem and _OURS.search(file.name)]:
        with suppress(OSError):  # another user's
            file.unlink(missing_ok=True)


def _stem(name: str) -> str:
    """The part of a file's name that all files of a request have in common."""
    return name.lstrip(".").split(".", 1)[0]
