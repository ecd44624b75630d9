"""Links between the project's pages: where they lead, which anchors a page has, and what they become in the site.

The standard library alone, so that tests hold every link without the site's tools.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
_FENCE = re.compile(r"^\s*(```|~~~)")
_ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:")


def pages(root: Path = ROOT) -> list[str]:
    """Paths in the repository of all pages that people wrote, sorted."""
    found = []
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "notebooks/*.md",
        "experiments/**/*.md",
        "btp/models/checkpoints/*/README.md",
    ):
        found += root.glob(pattern)
    return sorted(path.relative_to(root).as_posix() for path in found)


def is_table(path: str) -> bool:
    """True for NAME.md beside NAME.csv: what a command wrote, and another page has in it."""
    return (ROOT / path).with_suffix(".csv").exists()


def place(path: str) -> str:
    """Where a page, notebook or picture of the repository lies among the site's sources."""
    return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))


def prose(text: str) -> Iterator[tuple[int, str]]:
    """The lines outside of code blocks, numbered from 1, without what is `code` in them."""
    fenced = False
    for number, line in enumerate(text.splitlines(), start=1):
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            yield number, re.sub(r"`[^`]*`", lambda code: "_" * len(code[0]), line)


def links(text: str) -> Iterator[tuple[int, str]]:
    """Line and target of every link or picture that leads to a place in the repository."""
    for number, line in prose(text):
        for found in _LINK.finditer(line):
            target = found[3] or found[4]
            if not _ELSEWHERE.match(target):
                yield number, target


def slug(heading: str) -> str:
    """The anchor of a heading, as code hosts and the site make it: lower case, letters, digits, dashes."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain).strip().lower().replace(" ", "-")


def anchors(text: str) -> set[str]:
    """All anchors of a page."""
    found: dict[str, int] = {}
    fenced = False
    for line in text.splitlines():
        fenced ^= bool(_FENCE.match(line))
        if not fenced and (heading := re.match(r"#{1,6} (.*)", line)):
            name = slug(heading[1])
            found[name] = found.get(name, -1) + 1
    return {name + (f"-{i}" if i else "") for name, count in found.items() for i in range(count + 1)}


def broken(root: Path = ROOT) -> list[str]:
    """Every link that leads nowhere, as `page:line: target`."""
    wrong = []
    for page in pages(root):
        for number, target in links((root / page).read_text(encoding="utf-8")):
            path, _, anchor = target.partition("#")
            file = root / resolved(page, path) if path else root / page
            known = file.exists() and (
                not anchor or file.suffix != ".md" or anchor in anchors(file.read_text(encoding="utf-8"))
            )
            if not known:
                wrong.append(f"{page}:{number}: {target}")
    return wrong


def resolved(page: str, target: str) -> str:
    """The path in the repository that a relative link on a page means."""
    return os.path.normpath(PurePosixPath(page).parent / target)


def in_site(text: str, page: str, at: str, known: Callable[[str], str | None]) -> str:
    """A page's text with its links as the site needs them.

    Args:
        text: Markdown.
        page: its path in the repository.
        at: its path among the site's sources.
        known: of a path in the repository, where it lies among the site's sources; None where it is not in the site,
            and the link becomes plain text.
    """

    def changed(found: re.Match[str]) -> str:
        target = found[3] or found[4]
        path, hash_, anchor = target.partition("#")
        if _ELSEWHERE.match(target) or not path:
            return found[0]
        there = known(resolved(page, path))
        if there is None:
            return found[2] if found[3] else found[0]
        new = os.path.relpath(there, PurePosixPath(at).parent)
        if found[4]:  # of raw HTML, which MkDocs leaves alone
            new = re.sub(r"README\.md$", "index.md", new).removesuffix(".md") + (".html" if new.endswith(".md") else "")
        new += hash_ + anchor
        start, end = found.span(3 if found[3] else 4)
        return found[0][: start - found.start()] + new + found[0][end - found.start() :]

    lines, fenced = [], False
    for line in text.splitlines():
        fenced ^= bool(_FENCE.match(line))
        lines.append(line if fenced else _LINK.sub(changed, line))
    return "\n".join(lines) + "\n"
