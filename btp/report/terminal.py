"""Terminal output: text of data as it is, on terminals of any encoding."""

from __future__ import annotations

import codecs
import os
import sys
import unicodedata
from io import TextIOWrapper

from rich.console import Console
from rich.text import Text

SETTLED = "btp.settled"  # name of the error handler
_STAND_INS = {"−": "-", "×": "x", "→": "->", "…": "...", "·": ".", "✓": "+", "✗": "x", "≤": "<=", "≥": ">=", "²": "^2"}


def settle_output() -> None:
    """Let this process print what its terminal cannot show: dashes and the like as ASCII, anything else escaped.

    Call it before anything is printed. Streams that somebody else put in place are left alone.
    """
    codecs.register_error(SETTLED, _settled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=SETTLED)


def settle_locale() -> None:
    """Start this program again in Python's UTF-8 mode where its locale, such as LC_ALL=C, has no name for other files.

    Call it before anything else of a program; what it prints stays in the encoding of its terminal.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    settled = os.environ | {"PYTHONUTF8": "1"}
    settled.setdefault("PYTHONIOENCODING", getattr(sys.stdout, "encoding", None) or "ascii")
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], settled)


def console() -> Console:
    """A console that takes no text for markup or an emoji."""
    return Console(markup=False, emoji=False)


def literal(text: object, style: str = "") -> Text:
    """A cell or heading that shows a text of the data: nothing in it is markup, control characters are escaped."""
    return Text("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(text)), style)


def _settled(error: UnicodeError) -> tuple[str, int]:
    """As codecs.register_error asks: what stands in for the characters, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_stand_in, error.object[error.start : error.end])), error.end


def _stand_in(character: str) -> str:
    if unicodedata.category(character) == "Pd":
        return "-"
    return _STAND_INS.get(character) or character.encode("ascii", "backslashreplace").decode()
