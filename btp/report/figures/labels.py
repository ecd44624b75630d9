"""Places names beside the points of a plot so that none lies on another, on a point, or over the edge."""

from collections.abc import Sequence
from math import cos, pi, sin

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.patheffects import AbstractPathEffect
from matplotlib.transforms import Bbox

from btp.report.figures.axes import lay_out

_AROUND = (0, 4, 12, 2, 14, 6, 10, 1, 15, 7, 9, 3, 13, 5, 11, 8)  # sixteenths of a turn, best first
_AWAY = (8, 13, 20, 28)  # points from the mark
_LINE = 15  # from here on a line leads to the mark
_FONT = 8.5
_DOT = 4.5  # half of what a mark covers, points


def name_points(
    axes: Axes,
    points: Sequence[tuple[float, float, str, str, str]],
    marks: Sequence[tuple[float, float]],
    effects: Sequence[AbstractPathEffect] = (),
) -> int:
    """Write names beside points, each where there is room; one for which there is none is left to the legend.

    Call it last: names are placed in the layout that the figure has then.

    Args:
        points: x, y, name, colour and the id of what is drawn (gid).
        marks: x and y of everything drawn that a name must not cover.
        effects: how names are drawn, such as a rim.

    Returns:
        How many were written.
    """
    figure = axes.figure
    lay_out(figure)
    renderer, scale = FigureCanvasAgg(figure).get_renderer(), figure.dpi / 72
    room = axes.get_window_extent(renderer)
    taken = [_around(*axes.transData.transform(mark), _DOT * scale) for mark in marks]
    taken += [text.get_window_extent(renderer) for text in axes.texts if text.get_text()]
    written = 0
    for x, y, name, color, gid in points:
        at = axes.transData.transform((x, y))
        size = _size(axes, name, renderer)
        spot = _free(at, size, scale, room, taken)
        if spot is None:
            continue
        away, box = spot
        middle = ((box.x0 + box.x1) / 2 - at[0], (box.y0 + box.y1) / 2 - at[1])
        _write(axes, (x, y), name, color, gid, (middle[0] / scale, middle[1] / scale), away, effects)
        taken.append(box)
        written += 1
    return written


def _size(axes: Axes, name: str, renderer: RendererAgg) -> tuple[float, float]:
    text = axes.text(0, 0, name, fontsize=_FONT)
    box = text.get_window_extent(renderer)
    text.remove()
    return box.width, box.height


def _free(
    at: Sequence[float], size: tuple[float, float], scale: float, room: Bbox, taken: Sequence[Bbox]
) -> tuple[float, Bbox] | None:
    """Distance and box of the first place that is free."""
    for away in _AWAY:
        for sixteenth in _AROUND:
            x, y = cos(sixteenth * pi / 8), sin(sixteenth * pi / 8)
            left = at[0] + away * scale * x - size[0] * (1 - x) / 2
            bottom = at[1] + away * scale * y - size[1] * (1 - y) / 2
            box = Bbox.from_bounds(left, bottom, *size)
            inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
            if inside and not any(box.overlaps(other) for other in taken):
                return away, box
    return None


def _write(
    axes: Axes,
    at: tuple[float, float],
    name: str,
    color: str,
    gid: str,
    offset: tuple[float, float],
    away: float,
    effects: Sequence[AbstractPathEffect],
) -> None:
    line = {"arrowprops": {"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3}}
    text = axes.annotate(
        name,
        at,
        xytext=offset,
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=_FONT,
        color=color,
        zorder=6,
        path_effects=list(effects),
        gid=gid,
        **(line if away >= _LINE else {}),
    )
    text.set_in_layout(False)


def _around(x: float, y: float, half: float) -> Bbox:
    return Bbox.from_extents(x - half, y - half, x + half, y + half)
