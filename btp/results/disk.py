"""Errors of writing to disk, with what to do about them, and folders with the permissions of their parent."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "it would grow beyond the largest file that is allowed (ulimit -f)",
}
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
GROUP, OTHERS = 0o070, 0o007  # all permissions of a file's group, and of everybody else


class CannotWrite(OSError):
    """A file or folder that could not be written, with what to do about it."""


def refusal(error: BaseException, path: Path) -> CannotWrite | None:
    """What an error says of a place that cannot be written; None where it is about something else.

    Args:
        path: Path that was to be written.
    """
    if isinstance(error, CannotWrite):
        return error
    if not isinstance(error, OSError):
        return None
    if error.errno in FULL:
        folder = _there(path)
        free = shutil.disk_usage(folder).free
        return CannotWrite(
            f"{path} cannot be written: {FULL[error.errno]}, and {folder} has {free:,} bytes free. Free some, or set "
            "output to a folder on another disk. The same command goes on from what is finished."
        )
    if error.errno in DENIED:
        kept = path if path.exists() else _there(path)
        return CannotWrite(
            f"{path} cannot be written: {error.strerror}. {kept} belongs to {_owner(kept)} and has mode "
            f"{kept.stat().st_mode & 0o7777:o}; this process is {_name(os.geteuid())}. Have its owner open the output "
            "folder to its group and all that lies in it (chmod -R g+rwX), or set output to a folder of your own."
        )
    return None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise errors of writing `path` as CannotWrite, others as they are."""
    try:
        yield
    except OSError as error:
        said = refusal(error, path)
        if said is None or said is error:
            raise
        raise said from error


def make_folder(path: Path) -> None:
    """Make a folder and what is missing above it; each may be written by those who may write where it lies.

    So everybody who shares an output folder can go on with what somebody else began in it.

    Raises:
        CannotWrite: it may not be made.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    with writing(path), suppress(FileExistsError):  # another process was faster
        path.mkdir()
        open_up(path)


def open_up(path: Path) -> None:
    """Let those write a new file or folder who may write the folder that it lies in; takes nothing from anybody."""
    around, mode = path.parent.stat().st_mode, path.stat().st_mode & 0o7777
    asked = GROUP * bool(around & 0o020) | OTHERS * bool(around & 0o002)
    wanted = mode | (asked if path.is_dir() else asked & 0o666)
    if wanted != mode:
        with suppress(OSError):  # not every file system has modes
            path.chmod(wanted)


def _there(path: Path) -> Path:
    """The nearest folder above a path that is there."""
    return next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))


def _owner(path: Path) -> str:
    return _name(path.stat().st_uid)


def _name(user: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
