"""Pictures in a table's text column: a path, the picture itself in base64, or an address."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlparse

from btp.tasks.files.images import PictureCell, PictureFile, Source
from btp.tasks.shown import short

SHORT = 64  # characters; what is shorter is a name
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_DATA = re.compile(r"data:[^,]{0,100};base64,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}\s*")


@dataclass(frozen=True)
class Base64Picture:
    """A picture in base64 in a cell of a text table.

    Attributes:
        path: Path of the table.
        text: Text of the cell.
    """

    path: Path
    text: str = field(repr=False)

    @property
    def name(self) -> str:
        """The table, and what tells the picture from others in it."""
        return f"{self.path}, base64 {sha256(self.text.encode()).hexdigest()[:12]}"

    def open(self) -> IO[bytes]:
        """Decode it."""
        return BytesIO(_decoded(self.text))


def source_of(cell: Any, table: Path, folder: Path, where: str) -> Source:
    """Where the picture of a cell is.

    Args:
        cell: a path, base64 with or without `data:` in front of it, {bytes, path} with either, or a PictureCell.
        table: Table that holds the cell.
        folder: Folder that paths are relative to.
        where: table and sample, for messages.

    Raises:
        ValueError: an address, or nothing that can be a picture.
    """
    if isinstance(cell, PictureCell):
        return cell
    if isinstance(cell, Mapping):
        cell = next((cell[key] for key in ("bytes", "path") if isinstance(cell.get(key), str) and cell[key]), cell)
    if not isinstance(cell, str):
        raise ValueError(
            f"{where}: its picture is {short(repr(cell), 60)}, but a picture is a path, or bytes in a parquet file, "
            "or base64. Correct `image`."
        )
    scheme = _ADDRESS.match(cell)
    if scheme and scheme[1].lower() == "file":
        return PictureFile(Path(unquote(urlparse(cell).path)))
    if scheme:
        raise ValueError(
            f"{where}: its picture is the address {short(cell, 80)}, but pictures are files here and nothing is "
            "downloaded. Download it, and write its path into `image`."
        )
    if data := _DATA.match(cell):
        return _checked(Base64Picture(table, cell[data.end() :]), where)
    if len(cell) > SHORT and _BASE64.fullmatch(cell) and not _is_file(folder / cell):
        return _checked(Base64Picture(table, cell), where)
    return PictureFile(folder / cell)


def _checked(picture: Base64Picture, where: str) -> Base64Picture:
    try:
        picture.open()
    except (binascii.Error, ValueError) as error:
        raise ValueError(
            f"{where}: its picture looks like base64 ({short(picture.text, 40)}), but it cannot be decoded: {error}. "
            "Correct `image`."
        ) from None
    return picture


def _decoded(text: str) -> bytes:
    plain = "".join(text.split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
