"""Says an error, and the page that helps: docs/errors.md is the one list of both. No torch here."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "errors.md"
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


def _end_bars() -> None:
    """End the lines of progress bars that what went wrong has left open, so that the message starts its own."""
    if "tqdm.std" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm.std"].tqdm, "_instances", ())):
            bar.close()


def page_of(message: str) -> str | None:
    """The page that explains a message, as a path in the project; None where none does."""
    return next((page for said, page in _explained() if said.search(message)), None)


@cache
def _explained() -> list[tuple[re.Pattern[str], str]]:
    """What a message says, and its page."""
    try:
        rows = _ROW.findall(PAGE.read_text(encoding="utf-8"))
    except OSError:  # installed without docs
        return []
    linked = [(said, link) for said, more in rows if (link := _LINK.search(more))]
    return [(_pattern(said), _place(link.group(1))) for said, link in linked]


def _pattern(said: str) -> re.Pattern[str]:
    """A message as the page quotes it; `…` stands for what differs."""
    return re.compile(".+".join(re.escape(part) for part in said.strip("…").split("…")))


def _place(link: str) -> str:
    page, _, anchor = link.partition("#")
    path = PurePosixPath((PAGE.parent / page).resolve().relative_to(ROOT).as_posix())
    return f"{path}#{anchor}" if anchor else str(path)
