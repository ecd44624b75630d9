"""Token overlays: the picture once per stage, dropped patches dimmed, kept ones clear."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from btp.results.reader import RunFolder, View

SIDE = 240  # pixels of a panel's longer side
_MARGIN, _LINE, _NAME = 12, 20, 110
_PAPER, _INK, _SOFT = "#ffffff", "#1d2430", "#59616d"
_TINT = (255, 0, 200)
_PER_ROW = 4
MARKS = {"matched": "#21c55d", "wrong": "#ffb020", "missed": "#ff4d4d"}
_THIN = 12  # pixels, and one a patch, that a panel has at least: thin pictures are drawn thicker


@dataclass(frozen=True)
class Mark:
    """A box in an answer, in shares of the picture's sides.

    Attributes:
        kind: matched | wrong | missed.
        label: name of the object.
        box: (x0, y0, x1, y1).
    """

    kind: str
    label: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class StageView:
    """One stage of one sample: where, visual tokens before and after, which stayed, which of them took others in."""

    site: str
    before: int
    after: int
    kept: tuple[int, ...]
    merged: tuple[int, ...] = ()


def stage_views(run: RunFolder, arm: str, sample: str) -> list[StageView]:
    """What each stage of an arm did to a sample, in order; empty where it has no stage."""
    rows = run.trace[(run.trace["arm"] == arm) & (run.trace["sample"] == sample)].sort_values("order")
    return [
        StageView(str(r["site"]), int(r["before"]), int(r["after"]), _indices(r["kept"]), _indices(r.get("merged")))
        for _, r in rows.iterrows()
    ]


def marks_of(run: RunFolder, arm: str, sample: str) -> list[Mark]:
    """The boxes in an arm's answer to a sample; none where its answers are no boxes."""
    rows = run.marks[(run.marks["arm"] == arm) & (run.marks["sample"] == sample)]
    return [
        Mark(str(r["kind"]), str(r["label"]), (float(r["x0"]), float(r["y0"]), float(r["x1"]), float(r["y1"])))
        for _, r in rows.iterrows()
    ]


def _indices(value: Any) -> tuple[int, ...]:
    """A list of a trace; nothing where the run did not write one."""
    return tuple(int(i) for i in value) if isinstance(value, Iterable) else ()


def on_grid(run: RunFolder, arm: str, sample: str) -> bool:
    """Whether the views of a sample's picture are of the tokens that an arm saw.

    Not so where the arm's model saw another number of tokens: what was kept cannot be drawn on the picture then.
    """
    mine = run.rows(arm)
    return sample in mine.index and int(mine.loc[sample, "total"]) == run.pictures[sample].total


def kept_cells(kept: Sequence[int], view: View) -> np.ndarray:
    """[rows, columns] of True where a patch's visual token stayed.

    Raises:
        ValueError: an index lies outside a grid whose tokens are in order, so that they are not its patches.
    """
    grid = view.grid
    if view.tokens is not None:
        return (np.isin(view.tokens, kept) & (np.array(view.tokens) >= 0)).reshape(grid)
    cells = np.zeros(grid[0] * grid[1], bool)
    if len(kept) and not 0 <= min(kept) <= max(kept) < cells.size:
        raise ValueError(
            f"Visual token {max(kept)} lies outside a grid of {grid[0]} x {grid[1]}. "
            "Correct the grid of this sample in pictures/index.json."
        )
    cells[list(kept)] = True
    return cells.reshape(grid)


def overlay_png(
    picture: Image.Image,
    views: Sequence[View],
    rows: Sequence[tuple[str, list[StageView]]],
    marks: Sequence[Sequence[Mark]] = (),
) -> bytes:
    """Draw a sample's stages side by side, the views of each next to each other, one row per arm (more than four panels
    wrap).

    Args:
        picture: the sample's picture.
        views: Views of its visual tokens.
        rows: title of an arm and its stages.
        marks: of each row, drawn behind its last stage: matched boxes in green, wrong ones in amber, missed objects in
            red.

    Returns:
        Bytes of a PNG.
    """
    scale = SIDE / max(picture.size)
    high, wide = (max([_THIN, *(view.grid[axis] for view in views)]) for axis in (0, 1))
    size = (max(wide, round(picture.width * scale)), max(high, round(picture.height * scale)))
    base = picture.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    per_row = max(1, _PER_ROW // len(views))
    lines = [
        (
            title if i == 0 else "",
            [panel for stage in stages[i : i + per_row] for panel in _panels(stage, views)],
            boxes if i + per_row >= len(stages) else (),
        )
        for (title, stages), boxes in zip(rows, marks or [()] * len(rows), strict=True)
        for i in range(0, len(stages), per_row)
    ]
    columns = max((len(panels) for _, panels, _ in lines), default=0) + 1
    font = _font(12)
    widest = max((font.getlength(text) for _, panels, _ in lines for text, *_ in panels), default=0)
    step = (max(size[0], math.ceil(widest)) + _MARGIN, size[1] + _LINE + _MARGIN)
    sheet = Image.new("RGB", (_NAME + columns * step[0], max(1, len(lines)) * step[1] + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    sheet.paste(base, (_NAME, _MARGIN + _LINE))
    pen.text((_NAME, _MARGIN), "picture", _SOFT, font)
    for at, (title, panels, boxes) in enumerate(lines):
        top = _MARGIN + at * step[1]
        pen.text((_MARGIN, top + _LINE), title, _INK, _font(13))
        for i, (text, kept, merged) in enumerate(panels, start=1):
            left = _NAME + i * step[0]
            pen.text((left, top), text, _SOFT, font)
            shown = panel(base, kept, merged)
            _outline(shown, boxes if i == len(panels) else ())
            sheet.paste(shown, (left, top + _LINE))
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _outline(picture: Image.Image, marks: Sequence[Mark]) -> None:
    """Draw boxes onto a picture."""
    pen = ImageDraw.Draw(picture)
    for mark in marks:
        x0, y0, x1, y1 = (share * side for share, side in zip(mark.box, picture.size * 2, strict=True))
        corners = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        pen.rectangle(corners, outline=MARKS[mark.kind], width=2)


def _panels(stage: StageView, views: Sequence[View]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """What stands above each view of a stage, and the cells that were kept and merged."""
    text = f"{stage.site}  {stage.before} → {stage.after}"
    texts = [text] if len(views) == 1 else [f"{text}, {views[0].name}", *(view.name for view in views[1:])]
    cells = [(kept_cells(stage.kept, view), kept_cells(stage.merged, view)) for view in views]
    return [(above, *pair) for above, pair in zip(texts, cells, strict=True)]


def panel(picture: Image.Image, cells: np.ndarray, merged: np.ndarray | None = None) -> Image.Image:
    """The picture with dropped patches grey and dark, kept ones as they are, merged ones tinted, and a faint grid."""
    edges = [
        np.linspace(0, n, parts + 1).round().astype(int)
        for n, parts in zip(picture.size[::-1], cells.shape, strict=True)
    ]

    def grown(small: np.ndarray) -> np.ndarray:
        return np.repeat(np.repeat(small, np.diff(edges[0]), axis=0), np.diff(edges[1]), axis=1)[..., None]

    clear = np.asarray(picture, np.float32)
    grey = clear.mean(axis=2, keepdims=True)
    out = np.where(grown(cells), clear, 0.24 * (0.75 * grey + 0.25 * clear) + 10)
    if merged is not None:
        out = np.where(grown(merged), 0.5 * clear + 0.5 * np.float32(_TINT), out)
    for row in (edge for edge in edges[0][1:-1] if edge < len(out)):
        out[row] = 0.82 * out[row] + 0.18 * 255
    for column in (edge for edge in edges[1][1:-1] if edge < out.shape[1]):
        out[:, column] = 0.82 * out[:, column] + 0.18 * 255
    return Image.fromarray(out.clip(0, 255).astype(np.uint8))


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
