"""Rows computed in each decode step under LazyLLM's stages, and how many of them were revived."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from btp.report.figures.axes import WIDTH
from btp.report.figures.style import Theme
from btp.report.tables.run_table import Table
from btp.results import run_folder_schema as shapes
from btp.results.reader import RunFolder, read_frame

_ACROSS = 3


def rows_per_step(run: RunFolder, table: Table, theme: Theme) -> Figure | None:
    """A panel per arm: mean rows computed behind each stage, over the decode steps; the newest token's is one of them.

    None where no stage acts in decode steps, or no answer has a second token.
    """
    file = run.path / "steps.parquet"
    if not file.exists():
        return None
    steps = read_frame(file, shapes.STEPS)
    steps = steps[steps["step"] > 0]
    arms = [arm for arm in run.arms if steps["arm"].eq(arm.arm).any()]
    if not arms:
        return None
    across, down = min(_ACROSS, len(arms)), -(-len(arms) // _ACROSS)
    figure = Figure(figsize=(WIDTH, 0.8 + 2.3 * down), layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(arms) :]:
        axes.set_visible(False)
    for axes, arm in zip(grid.flat, arms, strict=False):
        mine = steps[steps["arm"] == arm.arm]
        sites = list(dict.fromkeys(mine["site"]))
        for at, site in enumerate(sites):
            means = mine[mine["site"] == site].groupby("step")["computed"].mean()
            shade = 0.35 + 0.65 * (at + 1) / len(sites)
            axes.plot(means.index, means, color=theme.ink, alpha=shade, linewidth=1.8, label=f"behind {site}")
        axes.axhline(1, color=theme.line, linewidth=1)
        axes.set_title(arm.title, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.set_ylim(0, 1.08 * max(2.0, float(np.nanmax(steps.groupby(["arm", "site", "step"])["computed"].mean()))))
        axes.legend(fontsize=7, frameon=False)
    figure.supxlabel("decode step", fontsize=9, color=theme.ink)
    figure.supylabel("rows computed", fontsize=9, color=theme.ink)
    return figure
