"""Decoding of picture files to RGB: EXIF orientation, alpha on white, 8 bits a channel."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from PIL.ExifTags import Base
from PIL.Image import Transpose

TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}  # by the EXIF orientation
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
LYING = (5, 6, 7, 8)  # orientations that swap width and height


def open_picture(source: Path | IO[bytes]) -> Image.Image:
    """Open a picture in one of FORMATS; its pixels are not decoded yet.

    Nothing else is tried, whatever the file is called: Pillow would hand EPS to Ghostscript, a program of its own.

    Raises:
        UnidentifiedImageError: it is none of them.
        OSError: it cannot be read.
    """
    return Image.open(source, formats=_known())


@cache
def _known() -> tuple[str, ...]:
    """Those of FORMATS that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def as_seen(picture: Image.Image) -> Image.Image:
    """A picture in RGB, upright, 8 bits a channel; what is transparent is white.

    16 bits of grey are brought to 8 by their whole range, so 65535 is white whatever the brightest pixel.

    Raises:
        ValueError: nothing says which value is white: fractions, or whole numbers of another range.
    """
    picture.load()
    turn = TURNS.get(_orientation(picture))
    picture = _rgb(picture)
    return picture if turn is None else picture.transpose(turn)


def size_seen(picture: Image.Image) -> tuple[int, int]:
    """(height, width) of `as_seen`, from the file's head alone."""
    width, height = picture.size
    return (width, height) if _orientation(picture) in LYING else (height, width)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _grey(picture).convert("RGB")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def _grey(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture)
    low, high = values.min(), values.max()
    if picture.mode == "F" or low < 0 or high > 65535 or 0 < high < 256:
        raise ValueError(
            f"its pixels go from {low:g} to {high:g} (mode {picture.mode}), and nothing says which number is white. "
            "Save it with 8 bits a channel"
        )
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    grey[values == picture.info.get("transparency", -1)] = 255
    return Image.fromarray(grey)


def _orientation(picture: Image.Image) -> int:
    """As EXIF says, 1 where it says nothing that can be read. Pillow turns a TIFF by itself."""
    if picture.format == "TIFF":
        return 1
    try:
        return Image.Image.getexif(picture).get(Base.Orientation, 1)  # that of a PNG would decode its pixels
    except (SyntaxError, ValueError, TypeError, LookupError, OSError, struct.error):
        return 1
