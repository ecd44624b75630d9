"""The report's plots. Each function returns a figure, or None where the run has nothing to show in it."""

from collections.abc import Callable, Mapping
from io import BytesIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from btp.report.figures.axes import WIDTH, lay_out, legend, new_figure, tradeoff
from btp.report.figures.lazy_rows import rows_per_step
from btp.report.figures.needles import needles
from btp.report.figures.pareto_figures import shortened
from btp.report.figures.style import Look, Theme, looks
from btp.report.tables.run_table import Table
from btp.results.reader import RunFolder

DPI = 200
Plot = Callable[[RunFolder, Table, Theme], Figure | None]


def to_png(draw: Callable[..., Figure | None], data: object, more: object, theme: Theme) -> bytes | None:
    """Draw a plot of two things in a theme and return the bytes of its PNG, None where there is nothing to draw."""
    with matplotlib.rc_context(theme.style()):
        figure = draw(data, more, theme)
        if figure is None:
            return None
        lay_out(figure)
        buffer = BytesIO()
        figure.savefig(buffer, dpi=DPI, format="png")
    return buffer.getvalue()


def accuracy_by_ability(run: RunFolder, table: Table, theme: Theme) -> Figure | None:
    """Mean score with its 95% interval: abilities from top to bottom, one dot per arm in each, chance dotted."""
    abilities = run.abilities
    mine = _looks(run)
    step = 0.62 / max(len(run.arms) - 1, 1)
    height = 1.1 + len(abilities) * max(0.36, 0.13 * len(run.arms))
    figure, axes = new_figure(height)
    for i, arm in enumerate(run.arms):
        row = table.frame[table.frame["arm"] == arm.arm].iloc[0]
        keys = [f"accuracy_{a}" for a in abilities]
        mean, low, high = (np.array([row[k + end] for k in keys]) * 100 for end in ("", "_low", "_high"))
        y = np.arange(len(abilities)) + (i - (len(run.arms) - 1) / 2) * step
        color = mine[arm.arm].color(theme.name)
        axes.hlines(y, low, high, color=color, linewidth=1.6, alpha=0.75)
        axes.plot(mean, y, mine[arm.arm].marker, color=color, markersize=5, linestyle="none", label=arm.title)
    axes.set_yticks(range(len(abilities)), _named(run, abilities))
    axes.set_ylim(len(abilities) - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("accuracy, % (line: 95% interval)" + _draw_chance(run, axes, theme))
    axes.grid(False, axis="y")
    for edge in np.arange(len(abilities) - 1) + 0.5:
        axes.axhline(edge, color=theme.line, linewidth=0.7)
    axes.tick_params(length=0)
    legend(figure, axes)
    return figure


def tokens_per_layer(run: RunFolder, table: Table, theme: Theme) -> Figure | None:
    """Mean visual tokens that entered each decoder layer. Arms that share a line share it in dashes."""
    curves = {
        arm.arm: tuple(run.layers[arm.arm]["visual"])
        for arm in run.arms
        if (run.layers.get(arm.arm) or {}).get("visual")
    }
    if not curves:
        return None
    mine = _looks(run)
    figure, axes = new_figure(3.2)
    drawn: dict[tuple, list[str]] = {}
    for arm in run.arms:
        if arm.arm not in curves:
            continue
        curve = curves[arm.arm]
        alike = drawn.setdefault(tuple(round(v, 2) for v in curve), [])
        alike.append(arm.arm)
        look = mine[arm.arm]
        axes.step(
            np.arange(len(curve) + 1) - 0.5,
            [*curve, curve[-1]],
            where="post",
            color=look.color(theme.name),
            linewidth=2.2,
            gid=arm.arm,
            zorder=2 + len(alike),
        )
    for alike in drawn.values():
        _share_line(axes, alike)
    axes.set_xlabel("decoder layer")
    axes.set_ylabel(run.unit)
    top = max(max(curve) for curve in curves.values()) or 1
    axes.set_ylim(-0.015 * top, 1.06 * top)
    axes.set_xlim(-0.5, max(len(c) for c in curves.values()) - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.grid(False, axis="x")
    for arm in run.arms:
        if arm.arm in curves:  # dashes would make poor samples
            axes.add_line(Line2D([], [], color=mine[arm.arm].color(theme.name), linewidth=2.2, label=arm.title))
    legend(figure, axes)
    return figure


def accuracy_by_tokens(run: RunFolder, table: Table, theme: Theme) -> Figure | None:
    """Macro accuracy with its interval over the layer-averaged visual tokens."""
    return tradeoff(table, theme) if len(table.frame) > 1 else None


def calibration_curves(run: RunFolder, table: Table, theme: Theme) -> Figure | None:
    """What calibration saw per layer, and the layers in front of which it put the stages."""
    curves = (run.calibration or {}).get("curves") or {}
    named = {
        "changed": f"{run.unit} changed\n(cosine below {curves.get('tau', '?')})",
        "attention": "attention\non the picture",
    }
    shown = [key for key in named if curves.get(key)]
    if not shown:
        return None
    stages = [s for s in run.calibration.get("stages") or () if s.get("layer") is not None]
    figure = Figure(figsize=(WIDTH, 1.0 + 1.45 * len(shown)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(shown), 1, sharex=True))
    color = looks([("method", "method")])["method"].color(theme.name)
    mark = looks([("a", "method"), ("b", "method")])["b"].color(theme.name)
    for axes, key in zip(panels, shown, strict=True):
        values = np.array(curves[key], float)
        layers = np.arange(len(values))
        axes.fill_between(layers, values, color=color, alpha=0.15, linewidth=0)
        axes.plot(layers, values, "-o", color=color, linewidth=1.8, markersize=3.5)
        axes.set_ylim(0, max(values.max() * 1.15, 1e-9))
        axes.set_ylabel(named[key])
        for stage in stages:
            axes.axvline(stage["layer"], color=mark, linewidth=1.6, linestyle=(0, (4, 2)))
    panels[-1].set_xlabel("decoder layer (dashed: a stage in front of it)")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    _mark_stages(panels[0], stages, mark)
    return figure


def _looks(run: RunFolder) -> dict[str, Look]:
    return looks([(arm.arm, arm.role) for arm in run.arms])


def _named(run: RunFolder, abilities: list[str]) -> list[str]:
    counts: Mapping = run.rows(run.arms[0].arm)["ability"].value_counts()
    names = shortened(abilities)
    return [f"{names[a]} ({counts.get(a, 0)})" for a in abilities]


def _draw_chance(run: RunFolder, axes: Axes, theme: Theme) -> str:
    """Mark what the best answer without the picture scores; returns what the axis must say about it."""
    chance = run.run.get("chance") or {}
    for y, ability in enumerate(run.abilities):
        if ability in chance:
            at = 100 * float(chance[ability])
            axes.vlines(at, y - 0.42, y + 0.42, color=theme.soft, linewidth=1.2, linestyle=":")
    return "\ndotted: the commonest answer, without the picture" if chance else ""


def _share_line(axes: Axes, arms: list[str]) -> None:
    """Dash lines that lie on each other, each with its own offset, so that all colours are seen."""
    if len(arms) < 2:
        return
    dash = 6.0 / len(arms)
    for line in axes.get_lines():
        if line.get_gid() in arms:
            line.set_linestyle((-arms.index(line.get_gid()) * dash, (dash, 6.0 - dash)))


def _mark_stages(axes: Axes, stages: list[Mapping], color: str) -> None:
    """Write each stage's keep above its layer, in a second row where the first would overlap."""
    low, high = axes.get_xlim()
    right = [-np.inf, -np.inf]
    for stage in sorted(stages, key=lambda s: s["layer"]):
        text = f"keep {stage['keep']:.3g}" if isinstance(stage.get("keep"), float) else f"keep {stage.get('keep')}"
        half = 0.014 * len(text) * (high - low) / 2
        line = 0 if stage["layer"] - half > right[0] else 1
        right[line] = stage["layer"] + half
        axes.annotate(
            text,
            (stage["layer"], 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 12 * line),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=color,
        )


PLOTS: dict[str, Plot] = {
    "accuracy_by_ability": accuracy_by_ability,
    "accuracy_by_tokens": accuracy_by_tokens,
    "tokens_per_layer": tokens_per_layer,
    "calibration": calibration_curves,
    "needles": needles,
    "rows_per_step": rows_per_step,
}
