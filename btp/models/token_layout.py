"""Token layout of a sample's first picture, view by view, for the report to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from btp.core.host import Layout
from btp.models.lvlm import LVLM

WHOLE, TILES = "whole", "tiles"
ACROSS = 4  # frames beside each other


def describe_views(host: LVLM, layout: Layout, picture: Image.Image) -> dict[str, Any]:
    """Views of a sample's picture with their visual tokens, as index.json holds them.

    A view is a grid that covers all of the picture: the whole of it, and beside it the mosaic of its tiles where a
    family makes tiles. Tiles whose places nobody can tell are left out; so are further pictures and newlines.

    Args:
        host: the model, which knows how its tiles lie.
        layout: Layout of a prompt of this sample alone.
        picture: its first one.

    Returns:
        grid [rows, columns] of the first view; and unless token i is patch i of that grid in all of the prompt: total
        (visual tokens of the prompt) and views [{name, grid, tokens: row by row, -1 where there is none}]. Empty where
        no token lies on the picture.
    """
    visual = layout.visual[0]
    coord, image = layout.coord[0][visual].cpu(), layout.image[0][visual].cpu()  # [N, 3], [N]
    mine = (image == 0) & (coord[:, 1] >= 0)
    if not bool(mine.any()):
        return {}
    index, coord = mine.nonzero().flatten(), coord[mine]
    frames = sorted(set(coord[:, 0].tolist()))
    if len(frames) > 2:
        coord, frames = _mosaic(host, coord, frames, picture)
    views = []
    for frame in frames:
        shown = coord[:, 0] == frame
        rows, columns = (int(n) + 1 for n in coord[shown, 1:].amax(0))
        tokens = [-1] * (rows * columns)
        for i, (row, column) in zip(index[shown].tolist(), coord[shown, 1:].tolist(), strict=True):
            tokens[row * columns + column] = i
        name = "" if len(frames) == 1 else WHOLE if frame == frames[0] else TILES
        views.append({"name": name, "grid": [rows, columns], "tokens": tokens})
    if len(views) == 1 and views[0]["tokens"] == list(range(len(image))):
        return {"grid": views[0]["grid"]}
    return {"grid": views[0]["grid"], "total": len(image), "views": views}


def _mosaic(host: LVLM, coord: Tensor, frames: list[int], picture: Image.Image) -> tuple[Tensor, list[int]]:
    """Tiles that have a frame each, put together in frame 1 where the host tells how they lie."""
    tiling = host.tiling(len(frames) - 1, picture.height, picture.width)
    if tiling is None:
        return coord, frames[:1]
    sides = coord[:, 1:].amax(0) + 1
    tile = coord[:, 0] - 1
    coord = coord.clone()
    coord[:, 1] += (tile // tiling[1]).clamp(min=0) * sides[0]
    coord[:, 2] += (tile % tiling[1]) * (tile >= 0) * sides[1]
    coord[:, 0] = (tile >= 0).to(coord.dtype)
    return coord, [0, 1]


def strip_of(
    frames: Sequence[Image.Image],
    layout: Layout,
    boxes: Sequence[Sequence[float]] = (),
    image: int = 0,
    band: Sequence[tuple[int, int, int]] = (),
) -> tuple[Image.Image, dict[str, Any]]:
    """A clip as one picture: the frame of each row of tubes, four beside each other, and where the tubes lie on it.

    Tokens off the grid, as newlines, lie nowhere on it.

    Args:
        frames: one for each row of tubes.
        layout: Layout of this clip alone, or of a prompt that shows it.
        image: Number of the clip among the pictures and videos of the prompt.
        band: A colour for each frame, which stands below it, as high as a token; () draws none.
        boxes: (x0, y0, x1, y1) in shares of the first frame's sides.

    Returns:
        The picture, and what `describe_views` would say of it, with the boxes in shares of its sides.
    """
    coord = layout.coord[0][layout.visual[0]].tolist()  # [N, 3]
    numbers = layout.image[0][layout.visual[0]].tolist()
    on_grid = [i for i, (c, n) in enumerate(zip(coord, numbers, strict=True)) if n == image and c[0] >= 0]
    rows, columns = (max(coord[i][axis] for i in on_grid) + 1 for axis in (1, 2))
    across = min(ACROSS, len(frames))
    down = -(-len(frames) // across)
    wide, high = frames[0].size
    below = round(high / rows) if band else 0
    deep = rows + bool(band)  # tokens that a row of frames is high
    sheet = Image.new("RGB", (across * wide, down * (high + below)), "white")
    for i, frame in enumerate(frames):
        corner = i % across * wide, i // across * (high + below)
        sheet.paste(frame, corner)
        if band:
            sheet.paste(band[i], (corner[0], corner[1] + high, corner[0] + wide, corner[1] + high + below))
    tokens = [-1] * (down * deep * across * columns)
    for token in on_grid:
        frame, row, column = coord[token]
        tokens[(frame // across * deep + row) * across * columns + frame % across * columns + column] = token
    grid = [down * deep, across * columns]
    places = {"grid": grid, "total": len(coord), "views": [{"name": "", "grid": grid, "tokens": tokens}]}
    tall = down * (high + below) / high  # frames that the sheet is high
    shown = [[x0 / across, y0 / tall, x1 / across, y1 / tall] for x0, y0, x1, y1 in boxes]
    return sheet, places | {"boxes": shown}
