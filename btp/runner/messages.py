"""Error messages with a link to the page that helps; docs/errors.md lists both. No torch here."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path

from btp.results.disk import FULL, refusal
from btp.results.shipped import DOCS, INSTALLED

PAGE = DOCS / "errors.md"
_ROW = re.compile(r"^\| `([^`]+)` \| .* \| (.*) \|$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)]+)\)")


def say(error: object, *more: str) -> None:
    """Print an error for a person, on a line of its own, with the page that has more of it.

    Args:
        error: or its message.
        more: lines behind it.
    """
    _end_bars()
    page = page_of(" ".join(str(error).split()))
    lines = [*more, *([f"see {page}"] if page else [])]
    print(f"error: {error}", *(f"  {line}" for line in lines), sep="\n", file=sys.stderr)


def one_line(error: Exception, output: Path) -> str:
    """One line on an error that ended a run.

    Args:
        output: folder of the runs; what cannot be written in it is said with what to do.
    """
    place = Path(error.filename) if isinstance(error, OSError) and isinstance(error.filename, str) else output
    ours = output.absolute() in (place.absolute(), *place.absolute().parents)
    if ours or (isinstance(error, OSError) and error.errno in FULL):
        error = refusal(error, place) or error
    if isinstance(error, MemoryError):
        return (
            f"out of memory in this machine's own memory: {' '.join(str(error).split()) or 'no more is to be had'}. "
            "Lower trainer.batch, calibration.batch and trainer.workers, or ask on smaller pictures."
        )
    expected = isinstance(error, ValueError | OSError | RuntimeError)
    return " ".join((str(error) if expected else f"{type(error).__name__}: {error}").split())


def _end_bars() -> None:
    """End the lines of progress bars that what went wrong has left open, so that the message starts its own."""
    if "tqdm.std" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm.std"].tqdm, "_instances", ())):
            bar.close()


def page_of(message: str) -> str | None:
    """The page that explains a message, as a path in the project or of what is installed; None where none does."""
    return next((page for said, page in _explained() if said.search(message)), None)


@cache
def _explained() -> list[tuple[re.Pattern[str], str]]:
    """What a message says, and its page."""
    try:
        rows = _ROW.findall(PAGE.read_text(encoding="utf-8"))
    except OSError:  # docs were left out
        return []
    linked = [(said, link.group(1)) for said, more in rows if (link := _LINK.search(more))]
    return [(_pattern(said), _place(link)) for said, link in linked if (DOCS / link.partition("#")[0]).is_file()]


def _pattern(said: str) -> re.Pattern[str]:
    """A message as the page quotes it; `…` stands for what differs."""
    return re.compile(".+".join(re.escape(part) for part in said.strip("…").split("…")))


def _place(link: str) -> str:
    page, _, anchor = link.partition("#")
    path = (DOCS / page).resolve()
    path = path if INSTALLED else path.relative_to(DOCS.parent)
    return f"{path.as_posix()}#{anchor}" if anchor else path.as_posix()
