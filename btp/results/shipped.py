"""Package data: the version, and conf and docs, which lie at the top of a clone and inside of a wheel."""

from collections.abc import Iterable
from pathlib import Path

VERSION = "0.3.0"
_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(name: str) -> Path:
    """The folder of this name, wherever this installation has it."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of this project and of those of these distributions that are installed."""
    from contextlib import suppress
    from importlib.metadata import PackageNotFoundError, version  # late, as below: `import btp` comes here

    found = {"btp": VERSION}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def lacking(asked: str, module: str, extra: str) -> str | None:
    """Why `asked` cannot run: it needs `module`, which an extra of btp-prune installs; None where it is there."""
    from importlib.util import find_spec

    try:
        found = find_spec(module)
    except ModuleNotFoundError:  # of the package around it
        found = None
    if found is not None:
        return None
    return f"{asked} needs {module}, which is not installed. Install it: pip install 'btp-prune[{extra}]'."


CONF = shipped("conf")
DOCS = shipped("docs")
INSTALLED = CONF.parent == _PACKAGE
PROGRAM = "btp" if INSTALLED else "python run.py"  # as it is typed
