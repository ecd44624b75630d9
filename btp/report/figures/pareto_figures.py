"""Pareto plots of a comparison: scores over costs, with the front."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.ticker import EngFormatter, MaxNLocator

from btp.report.comparison.pareto import pareto_front
from btp.report.comparison.table import SLOTS, comparable, price
from btp.report.figures.axes import WIDTH, legend
from btp.report.figures.labels import name_points
from btp.report.figures.style import Look, Theme, looks_apart
from btp.report.tables.columns import MACRO, RATIOS, Column, number
from btp.report.text.token_names import common, in_unit

_FAR = 1.6  # an unpruned model this much dearer than all others is named at the edge, not drawn to scale
_LINES = {"baseline": (0, (4, 3)), "method": "-", "control": ":"}
_HEIGHT = 3.5  # inches of a large plot without its legend
_LONGEST = 34  # characters of a name
_GROUPS = re.compile(r"\b(?:[\w]+\.)+(?=\w+=)")  # of a setting: schedule.balance. of schedule.balance.first=0.6
_PANEL = 1.75  # inches of a small panel's height
_PAGE = (11.0, 4.8)  # inches of a large plot inside a page, which names the series itself
_ACROSS = (2, 3)  # panels side by side, on file and inside a page


@dataclass(frozen=True)
class Price:
    """One way to count what a row costs: its key and the axis's label."""

    key: str
    axis: str


PRICES = (
    Price("tokens_avg", "visual tokens, averaged over the layers"),
    Price("prefill_ratio", "prefill time, × the unpruned model's"),
    Price("flops_visual_pdrop", "visual FLOPs (flops_visual_pdrop)"),
    Price(SLOTS, "K/V slots per key head, averaged over the decoder layers"),
    Price("flops_prefill", "prefill FLOPs, everything counted (flops_prefill)"),
    Price("forward_ratio", "time of a forward, × the unpruned model's"),
    Price("flops_model", "FLOPs, everything counted (flops_model)"),
)
Draw = Callable[[pd.DataFrame, Mapping[str, Look], Theme], Figure | None]


def series_looks(frame: pd.DataFrame) -> dict[str, Look]:
    """A look per series, the same in every plot: methods, then random selection, then other controls."""
    rank = frame["role"].map({"baseline": 0, "method": 1, "control": 2}) - 0.5 * frame["pruner"].eq("random")
    named = frame.assign(rank=rank).sort_values(["rank", "series"]).drop_duplicates("series")
    return looks_apart(list(named[["series", "role"]].itertuples(index=False, name=None)))


def score_over_price(
    frame: pd.DataFrame,
    mine: Mapping[str, Look],
    theme: Theme,
    of: Price,
    score: Column = MACRO,
    page: bool = False,
) -> Figure | None:
    """A score over one price, a line per method through its budgets, with the front; None without two rows.

    Args:
        frame: Rows of one field.
        mine: Looks of the series.
        theme: Colours of paper and ink.
        of: Price on the x axis.
        score: Column on the y axis.
        page: Draw it as wide as a page, without a legend.
    """
    rows = _points(frame, of.key, score)
    if rows["role"].ne("baseline").sum() < 1:
        return None
    figure = Figure(figsize=_PAGE if page else (WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    drawn = _within(axes, rows)
    _draw_series(axes, drawn, mine, theme, score.key)
    _draw_front(axes, rows, theme)
    _draw_baseline(axes, rows, drawn, of.key, theme, "%" if score.kind == "percent" else "")
    axes.set_xlabel(in_unit(of.axis, common(frame["unit"])))
    axes.set_ylabel(score_title(score))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if of.key.startswith("flops"):
        axes.xaxis.set_major_formatter(EngFormatter(places=0 if rows["x"].max() > 1e7 else None))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    if of.key in RATIOS:
        axes.axvline(1, color=theme.soft, linewidth=0.8, linestyle=":", zorder=1)
    if not page:
        figure.set_figheight(_HEIGHT + _legend(figure, axes, drawn, mine, theme))
    _name(axes, drawn, mine, theme)
    return figure


def by_reading(frame: pd.DataFrame, mine: Mapping[str, Look], theme: Theme) -> Figure | None:
    """Reading in the picture beside everything else, over visual tokens; None where the task does not tell."""
    named = {"reading": "reading in the picture", "rest": "everything else"}
    if not all(key in frame and frame[key].notna().any() for key in named):
        return None
    return _panels(frame, named, mine, theme, height=2.6)


def by_ability(
    frame: pd.DataFrame, mine: Mapping[str, Look], theme: Theme, of: Price | None = None, page: bool = False
) -> Figure | None:
    """Every ability in a panel of its own, over a price; over visual tokens, or slots of the cache, without one."""
    keys = [
        key
        for key in frame
        if key.startswith("accuracy_") and not key.endswith(("_low", "_high", "_p")) and frame[key].notna().any()
    ]
    names = shortened([key.removeprefix("accuracy_") for key in keys])
    named = {key: names[key.removeprefix("accuracy_")] for key in keys}
    return _panels(frame, named, mine, theme, _PANEL, of, page) if named else None


def score_title(score: Column) -> str:
    """A score's name on an axis."""
    if score.group == MACRO.group:
        return f"{score.title} accuracy, %"
    return f"{score.title}, %" if score.kind == "percent" and "%" not in score.title else score.title


PLOTS: dict[str, Draw] = {
    **{f"accuracy_over_{p.key}": partial(score_over_price, of=p) for p in PRICES},
    "reading_and_rest": by_reading,
    "by_ability": by_ability,
}


def _panels(
    frame: pd.DataFrame,
    named: Mapping[str, str],
    mine: Mapping[str, Look],
    theme: Theme,
    height: float,
    of: Price | None = None,
    page: bool = False,
) -> Figure | None:
    tokens = SLOTS if frame.loc[frame["role"].eq("method"), "evicts"].all() else "tokens_avg"
    key = of.key if of else tokens
    rows = _points(frame, key, MACRO)
    if rows["role"].ne("baseline").sum() < 1:
        return None
    across = _ACROSS[page]
    lines = -(-len(named) // across)
    figure = Figure(figsize=(_PAGE[0] if page else WIDTH, 0.5 + height * lines), layout="constrained")
    grid = figure.subplots(lines, across, sharey=True, squeeze=False)
    for axes in grid.flat[len(named) :]:
        axes.set_visible(False)
    for axes, (name, title) in zip(grid.flat, named.items(), strict=False):
        mean, low, high = (100 * rows[name + end] for end in ("", "_low", "_high"))
        panel = rows.assign(y=mean, low=low, high=high)
        seen = _within(axes, panel)
        _draw_series(axes, seen, mine, theme, name, small=True)
        for value in panel.loc[panel["role"].eq("baseline"), "y"].dropna():
            axes.axhline(value, color=theme.soft, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_title(title, fontsize=9.5)
        axes.set_ylim(-3, 103)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        if key.startswith("flops"):
            axes.xaxis.set_major_formatter(EngFormatter())
        axes.tick_params(labelsize=8)
    grid[lines // 2, 0].set_ylabel("accuracy, %")
    what = {"tokens_avg": common(frame["unit"]), SLOTS: "K/V slots"}.get(key)
    axis = f"{what}, averaged over the layers" if what else in_unit(of.axis if of else key, common(frame["unit"]))
    figure.supxlabel(axis, fontsize=9.5, color=theme.ink)
    if not page:
        figure.set_figheight(0.5 + height * lines + _legend(figure, grid.flat[0], rows, mine, theme))
    return figure


def _points(frame: pd.DataFrame, key: str, score: Column) -> pd.DataFrame:
    """Rows that have a price and a score: `at`, their place in the frame; x; y with its interval, low and high."""
    times = 100 if score.kind == "percent" else 1
    none = pd.Series(float("nan"), frame.index)
    y, low, high = (times * frame.get(score.key + end, none).astype(float) for end in ("", "_low", "_high"))
    rows = frame.assign(at=range(len(frame)), x=price(frame, key), y=y, low=low, high=high)
    return rows[comparable(frame, key) & rows["x"].notna() & rows["y"].notna()]


def _within(axes: Axes, rows: pd.DataFrame) -> pd.DataFrame:
    """Set the limits of x, and leave an unpruned model out that would press all others together."""
    others = rows.loc[rows["role"].ne("baseline"), "x"]
    base = rows.loc[rows["role"].eq("baseline"), "x"]
    far = len(base) and base.max() > _FAR * others.max()
    seen = rows[rows["role"].ne("baseline")] if far else rows
    low, high = min(seen["x"].min(), others.min()), seen["x"].max()
    margin = 0.08 * ((high - low) or abs(high) or 1.0)
    axes.set_xlim(low - margin, high + margin)
    return seen


def _draw_front(axes: Axes, rows: pd.DataFrame, theme: Theme) -> None:
    """Steps through the points on the front; the last goes on to the edge or to what lies beyond it."""
    front = rows[pareto_front(rows["x"], rows["y"])].sort_values(["x", "y"])
    edge = max(axes.get_xlim()[1], front["x"].max())
    axes.step(
        [*front["x"], edge],
        [*front["y"], front["y"].iloc[-1]],
        where="post",
        color=theme.soft,
        alpha=0.28,
        linewidth=5,
        solid_joinstyle="round",
        zorder=1.5,
        label="Pareto front",
    )


def joined(rows: pd.DataFrame) -> list[list[int]]:
    """Lines through the rows of each series: places of rows, from budget to budget of one method's runs.

    A control that stood in the runs of several methods is on the line of each; of several rows with as many tokens, a
    line takes the first.
    """
    lines: dict[tuple[str, str], dict[float, int]] = {}
    for at, (series, owners, tokens) in enumerate(zip(rows["series"], rows["owners"], rows["level"], strict=True)):
        for owner in owners.split("; "):
            lines.setdefault((series, owner), {}).setdefault(round(tokens, 1), at)
    return [list(line) for line in dict.fromkeys(tuple(line.values()) for line in lines.values() if len(line) > 1)]


def _draw_series(
    axes: Axes, rows: pd.DataFrame, mine: Mapping[str, Look], theme: Theme, score: str, small: bool = False
) -> None:
    """Points with their intervals, joined through the budgets; what is drawn says whose it is, for pages (gid)."""
    places = {name: place for place, name in enumerate(mine)}
    for line in joined(rows):
        through = rows.iloc[line].sort_values("x")
        series, role = through["series"].iloc[0], through["role"].iloc[0]
        color, gid = mine[series].color(theme.name), f"series:{places[series]}"
        axes.plot(through["x"], through["y"], linestyle=_LINES[role], color=color, linewidth=1.1, alpha=0.9, gid=gid)
    for series, group in rows.groupby("series", sort=False):
        look, role, gid = mine[series], group["role"].iloc[0], f"series:{places[series]}"
        color, control = look.color(theme.name), role == "control"
        axes.vlines(group["x"], group["low"], group["high"], color=color, linewidth=1, alpha=0.45, gid=gid)
        for key in RATIOS:
            if f"{key}_low" in group and (group["x"] == group[key]).any():
                ends = (group[f"{key}_low"], group[f"{key}_high"])
                axes.hlines(group["y"], *ends, color=color, linewidth=1, alpha=0.3, gid=gid)
        group = group[group["y"].notna()]
        axes.plot(
            group["x"],
            group["y"],
            look.marker,
            color=color,
            markerfacecolor=theme.paper if control else color,
            markeredgewidth=1.3,
            markersize=4 if small else 6.2,
            linestyle="none",
            zorder=3 if control else 4,
            gid=f"marks:{places[series]}:{score}:{','.join(map(str, group['at']))}",
        )


def _draw_baseline(axes: Axes, rows: pd.DataFrame, drawn: pd.DataFrame, key: str, theme: Theme, percent: str) -> None:
    kind = "flops" if key.startswith("flops") else "tokens" if key in ("tokens_avg", SLOTS) else "times"
    for i, base in rows[rows["role"].eq("baseline")].iterrows():
        axes.axhline(base["y"], color=theme.soft, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        where = "" if i in drawn.index else f", at {number(base['x'], kind)} →"
        axes.annotate(
            f"{base['series']} {base['y']:.1f}{percent}{where}",
            (0.01, base["y"]),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4),
            textcoords="offset points",
            fontsize=8.5,
            color=theme.soft,
            path_effects=outlined(theme),
        )


def _name(axes: Axes, rows: pd.DataFrame, mine: Mapping[str, Look], theme: Theme) -> None:
    """Names at the dearest point of each series: methods first, the better first, since room may run out."""
    last = rows.loc[rows.groupby("series")["x"].idxmax()].sort_values("y", ascending=False)
    names, places = shortened(list(mine)), {name: f"series:{place}" for place, name in enumerate(mine)}
    points = [
        (at["x"], at["y"], names[at["series"]], mine[at["series"]].color(theme.name), places[at["series"]])
        for role in ("method", "control")
        for _, at in last[last["role"] == role].iterrows()
    ]
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.06 * (high - low))
    axes.set_yticks([tick for tick in axes.get_yticks() if max(low, 0) <= tick <= 100])
    name_points(axes, points, list(rows[["x", "y"]].itertuples(index=False, name=None)), outlined(theme))


def _legend(figure: Figure, axes: Axes, rows: pd.DataFrame, mine: Mapping[str, Look], theme: Theme) -> float:
    """Name the series; returns the inches that it takes."""
    present, names = set(rows["series"]), shortened(list(mine))
    roles = dict(zip(rows["series"], rows["role"], strict=True))
    for series, look in mine.items():
        if series in present:
            color, role = look.color(theme.name), roles[series]
            axes.add_line(
                Line2D(
                    [],
                    [],
                    color=color,
                    marker=look.marker,
                    markerfacecolor=theme.paper if role == "control" else color,
                    linestyle=_LINES[role],
                    linewidth=1.1,
                    markersize=5.5,
                    label=names[series],
                )
            )
    return legend(figure, axes)


def shortened(names: Sequence[str]) -> dict[str, str]:
    """Names that several fit beside each other, still all different: settings without the groups they are in."""
    out: dict[str, str] = {}
    for name in names:
        cut = _GROUPS.sub("", name)
        cut = cut if len(cut) <= _LONGEST else f"{cut[: _LONGEST - 1]}…"
        alike = sum(other.startswith(cut) for other in out.values())
        out[name] = f"{cut} ({alike + 1})" if cut in out.values() else cut
    return out


def outlined(theme: Theme) -> list[AbstractPathEffect]:
    """Text with a rim of paper, legible on lines."""
    return [withStroke(linewidth=2.2, foreground=theme.paper)]
