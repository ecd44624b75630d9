"""Needle-in-a-haystack heat map: accuracy by length of the text and depth of the needle, a panel per arm."""

import re

import numpy as np
from matplotlib.figure import Figure

from btp.report.figures.axes import WIDTH
from btp.report.figures.style import Theme
from btp.report.tables.run_table import Table
from btp.results.reader import RunFolder

_PLACE = re.compile(r"(\d+) words, ([\d.]+)%")  # an ability of task=niah
_ACROSS = 3


def needles(run: RunFolder, table: Table, theme: Theme) -> Figure | None:
    """A cell per length (left to right) and depth (top to bottom), its accuracy in percent; None for other tasks."""
    places = {ability: found.groups() for ability in run.abilities if (found := _PLACE.fullmatch(ability))}
    if not places or len(places) < len(run.abilities):
        return None
    lengths = sorted({int(length) for length, _ in places.values()})
    depths = sorted({float(depth) for _, depth in places.values()})
    across, down = min(_ACROSS, len(run.arms)), -(-len(run.arms) // _ACROSS)
    figure = Figure(figsize=(WIDTH, 0.6 + down * (0.7 + 0.24 * len(depths))), layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(run.arms) :]:
        axes.set_visible(False)
    for axes, arm in zip(grid.flat, run.arms, strict=False):
        row = table.frame[table.frame["arm"] == arm.arm].iloc[0]
        cells = np.full((len(depths), len(lengths)), np.nan)
        for ability, (length, depth) in places.items():
            cells[depths.index(float(depth)), lengths.index(int(length))] = 100 * row[f"accuracy_{ability}"]
        axes.imshow(cells, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        for (y, x), value in np.ndenumerate(cells):
            if not np.isnan(value):
                ink = "white" if value < 60 else "black"
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7, color=ink)
        axes.set_title(arm.title, fontsize=9)
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=7)
        axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths], fontsize=7)
        axes.grid(False)
        axes.tick_params(length=0)
    figure.supxlabel("words of the text", fontsize=9, color=theme.ink)
    figure.supylabel("depth of the needle, %", fontsize=9, color=theme.ink)
    return figure
