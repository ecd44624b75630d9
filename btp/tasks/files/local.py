"""Local copies of benchmarks: finds their files; messages say which file must lie where."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from btp.tasks.files.entries import Entry, entries
from btp.tasks.files.images import PictureFile
from btp.tasks.files.json_nesting import json_of
from btp.tasks.sample import Sample

MOST_BYTES, CUT_BYTES = 120, 100  # of an id in a file's name, which has 255 and holds more than the id


class Reader(Protocol):
    """Reads one layout of files."""

    def read(self) -> list[Sample]:
        """All samples, without their pictures' pixels; ids as the files have them.

        Raises:
            ValueError: a file is missing or broken; the message says what must lie where.
        """
        ...


@dataclass(frozen=True)
class Place:
    """The folder of a local copy.

    Attributes:
        root: the folder.
        title: Title of the benchmark.
        layout: what must lie in the folder.
        source: how it is usually obtained.
        key: config key of the folder.
    """

    root: Path
    title: str
    layout: str
    source: str
    key: str = "task.path"

    def find(self, name: str, key: str | None = None) -> Path:
        """A file or folder below the root.

        Args:
            name: relative path.
            key: config key that names it, where there is one.

        Raises:
            ValueError: it is not there.
        """
        path = self.root / name
        if path.exists():
            return path
        if not self.root.is_dir():
            found = f"there is no folder {self.root}"
        else:
            near = sorted(p.name for p in path.parent.glob(f"*{path.suffix}")) if path.parent.is_dir() else []
            found = f"{path} is missing"
            if near and path.suffix:
                found += f"; of its kind there are {_some(near)}" + (f" ({key} chooses)" if key else "")
        raise ValueError(
            f"{self.key} is {self.root}, but {found}. {self.title} needs there: {self.layout}. Source: {self.source}. "
            f"Put it there, or correct {self.key}."
        )

    def json(self, name: str, key: str | None = None) -> Any:
        """What a JSON file holds; a list of objects, one a line, where it is written so."""
        return read_json(self.find(name, key), self.key)

    def entries(self, name: str, key: str | None = None) -> list[Entry]:
        """The objects that a JSON file lists, or that stand one on a line."""
        found = self.json(name, key)
        alone = name.endswith(".jsonl") and isinstance(found, dict)  # a file of one line
        return entries([found] if alone else found, str(self.root / name))

    def entry(self, name: str, key: str | None = None) -> Entry:
        """The object that a JSON file is."""
        return Entry(self.json(name, key), str(self.root / name))

    def picture(self, name: str) -> PictureFile:
        """A picture below the root, which need not be there yet."""
        return PictureFile(self.root / name)


def read_text(path: Path, key: str) -> str:
    """The text of a file.

    Args:
        key: config key that led to it.

    Raises:
        ValueError: it is not UTF-8.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line} is not UTF-8: {error}. Save it as UTF-8, or correct {key}.") from None


def lines_of(text: str) -> list[str]:
    """The lines of a file; separators of Unicode, such as U+2028, are signs like others and divide none."""
    return re.split(r"\r\n?|\n", text)


def read_json(path: Path, key: str) -> Any:
    """JSON, or JSON Lines whatever the file's ending.

    Raises:
        ValueError: it is neither, or not UTF-8.
    """
    text = read_text(path, key)
    try:
        return json_of(text)
    except ValueError as whole:
        rows = []
        for number, line in enumerate(lines_of(text), 1):
            try:
                rows += [json_of(line)] if line.strip() else []
            except ValueError as error:
                if not rows:  # not even its first line: it is no JSON Lines either
                    raise ValueError(f"{path} is no JSON: {whole}. Get it anew, or correct {key}.") from None
                raise ValueError(f"{path}, line {number} is no JSON: {error}. Correct it.") from None
        return rows


def commonest(answers: tuple[str, ...]) -> str:
    """The answer given most often; of several the first."""
    return max(answers, key=answers.count)


def file_name(identity: object) -> str:
    """An id that can name a file: its own text, but for signs that file systems or shells mind.

    One of more than 120 bytes of UTF-8 is cut, and ends in a hash that tells it from others.
    """
    text = re.sub(r"[^\w.-]+", "-", str(identity)).strip("-.")
    whole = text.encode(errors="surrogatepass")
    return text if 0 < len(whole) <= MOST_BYTES else whole[:CUT_BYTES].decode(errors="ignore") + id_hash(identity)


def id_hash(identity: object) -> str:
    """Twelve hexadecimal digits that tell an id from others."""
    return sha256(str(identity).encode(errors="surrogatepass")).hexdigest()[:12]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
