"""Text files are UTF-8 wherever they are written or read: none takes the encoding of the machine's locale."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [*(f for room in ("btp", "experiments", "hydra_plugins", "docs") for f in (ROOT / room).rglob("*.py"))]


def unnamed(source: str) -> Iterator[int]:
    """Lines of calls that open a text file, or a pipe of text, and name no encoding."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or any(word.arg == "encoding" for word in call.keywords):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        plain = isinstance(call.func, ast.Name)
        if (
            (name == "read_text" and not plain and not call.args)
            or (name == "write_text" and not plain and len(call.args) == 1)
            or (name == "open" and plain and not any("b" in mode for mode in modes[1:]))
            or (name == "open" and not plain and any(mode in ("r", "w", "a", "x") for mode in modes))
            or (name in ("Popen", "run", "check_output") and any(word.arg == "text" for word in call.keywords))
        ):
            yield call.lineno


def test_every_text_file_names_its_encoding():
    found = [f"{f.relative_to(ROOT)}:{n}" for f in FILES for n in unnamed(f.read_text(encoding="utf-8"))]
    assert not found, "write encoding='utf-8'"
    assert len(FILES) > 200


@pytest.mark.parametrize(
    "source",
    [
        "p.read_text()",
        "p.write_text(a)",
        "open('a')",
        "open('a', 'w')",
        "p.open('w')",
        "subprocess.Popen([], text=True)",
    ],
)
def test_what_takes_the_locale_is_found(source):
    assert list(unnamed(source)) == [1]


@pytest.mark.parametrize(
    "source", ["p.read_bytes()", "open('a', 'rb')", "p.open('ab')", "Image.open(a)", "run(config)"]
)
def test_what_holds_no_text_is_not(source):
    assert not list(unnamed(source))
