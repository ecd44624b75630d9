"""Accuracy over visual tokens, with axes and legend that other figures share."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from btp.report.figures.style import Look, Theme, looks
from btp.report.tables.run_table import Table
from btp.report.text.token_names import common

WIDTH = 5.0


def tradeoff(table: Table, theme: Theme) -> Figure:
    """Macro accuracy with its 95% interval over the layer-averaged visual tokens, a panel per model and task.

    Rows of the same method (a sweep over budgets) are joined by a line.
    """
    frame = table.frame
    panels = list(frame.groupby(["model", "task"], sort=False))
    figure = Figure(figsize=(WIDTH, 0.5 + 2.9 * len(panels)), layout="constrained")
    mine = looks(list(frame[["method", "role"]].drop_duplicates("method").itertuples(index=False)))
    shown: set[str] = set()
    for axes, (names, rows) in zip(np.ravel(figure.subplots(len(panels), 1, squeeze=False)), panels, strict=True):
        _panel(axes, rows, mine, theme, shown)
        if len(panels) > 1:
            axes.set_title(", ".join(names))
    figure.axes[-1].set_xlabel(f"{common(frame['unit'])}, averaged over the decoder layers")
    legend(figure, *figure.axes)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, mine: dict[str, Look], theme: Theme, shown: set[str]) -> None:
    span = float(np.ptp(rows["tokens_avg"])) or 1.0

    for method, group in rows.groupby("method", sort=False):
        color, marker = mine[method].color(theme.name), mine[method].marker
        group = group.sort_values("tokens_avg")
        at, mean = group["tokens_avg"], 100 * group["macro"]
        axes.vlines(at, 100 * group["macro_low"], 100 * group["macro_high"], color=color, alpha=0.75)
        axes.plot(at, mean, "-", color=color, linewidth=1.2)
        label = None if method in shown else method
        rim = {"markeredgecolor": theme.paper, "markeredgewidth": 0.8}  # marks at one place stay apart
        axes.plot(at, mean, marker, color=color, markersize=7, linestyle="none", label=label, **rim)
        shown.add(method)
        if group["role"].iloc[0] == "baseline":
            axes.axhline(mean.iloc[0], color=color, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
    axes.set_ylabel("macro accuracy, %")
    axes.set_xlim(rows["tokens_avg"].min() - 0.09 * span, rows["tokens_avg"].max() + 0.09 * span)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))


def new_figure(height: float) -> tuple[Figure, Axes]:
    """A figure of the report's width with one pair of axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def lay_out(figure: Figure) -> None:
    """Give everything its place, once: whoever draws or saves the figure behind it moves nothing any more.

    Matplotlib would do it again at each draw, of which saving needs two, and it takes as long as drawing.
    """
    engine = figure.get_layout_engine()
    if engine is not None:
        FigureCanvasAgg(figure)
        engine.execute(figure)
        figure.set_layout_engine(None)


def legend(figure: Figure, *axes: Axes) -> float:
    """Name what is drawn above the axes, in reading order, in as many lines as the width asks for.

    Returns:
        Inches that it is high.
    """
    handles, labels = [], []
    for one in axes:
        more, names = one.get_legend_handles_labels()
        handles, labels = handles + more, labels + names
    renderer = FigureCanvasAgg(figure).get_renderer()
    for columns in range(len(labels), 0, -1):
        order = [i for column in range(columns) for i in range(column, len(labels), columns)]  # fills by column
        drawn = figure.legend(
            [handles[i] for i in order],
            [labels[i] for i in order],
            loc="outside upper left",
            ncols=columns,
            handlelength=1.3,
            columnspacing=1.1,
            handletextpad=0.5,
            borderpad=0.2,
        )
        box = drawn.get_window_extent(renderer)
        if columns == 1 or box.width < 0.97 * figure.bbox.width:
            return float(box.height / figure.dpi)
        drawn.remove()
    return 0.0
