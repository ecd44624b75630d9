"""Curves: scores over a setting, or over what is kept; a line per method, a panel per score and facet."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from btp.report.comparison.groups import Field
from btp.report.figures.axes import legend
from btp.report.figures.style import Look, Theme, looks_apart
from btp.report.studies.setting_names import setting, title
from btp.report.studies.study import (
    SHARE,
    SLOTS_SHARE,
    Answer,
    Study,
    baseline,
    column_of,
    metric,
    scored,
    study_rows,
    written,
)
from btp.report.tables import columns as c
from btp.report.text.token_names import common, in_unit

OPTIONS = ("x", "y", "line", "facet", "controls", "controls_of")
HEIGHT, WIDTH = 2.5, 3.4  # inches of a panel


def curves(fields: Sequence[Field], study: Study) -> Answer:
    """Scores with their 95% intervals over `x`.

    Options: x (a config key, tokens_share, or slots_share of methods of the cache), y (scores), line (a config key),
    facet (a config key or none), controls and controls_of as `study_rows` has them.
    """
    study.check(OPTIONS)
    x, line, facet = study.options["x"], study.options.get("line", "series"), study.options.get("facet")
    frame = study_rows(fields, [key for key in (x, line, facet) if key and key != "series"], study)
    scores = scored(frame, study.options["y"])
    texts = [c.METHOD, *([column_of(facet)] if facet else [])]
    numbers = [metric(key) for key in scores]
    frame = frame.assign(**{key: frame[key].map(written) for key in (facet,) if key})
    order = ([facet] if facet else []) + [x]
    held = [SLOTS_SHARE, c.SLOTS] if x == SLOTS_SHARE.key else [SHARE, c.TOKENS]
    shown = [*texts, *held, *numbers, *(_gaps(frame) if "macro" in scores else ())]
    frame = frame.sort_values(order, ascending=[True] * (len(order) - 1) + [False], kind="stable")
    frame = frame.assign(method=[_named(row, line) for _, row in frame.iterrows()])
    shown = [column.of(common(frame["unit"])) for column in shown]
    return Answer(
        frame, shown, _said(frame, scores[0], facet, held[1]), lambda theme: _draw(frame, x, scores, line, facet, theme)
    )


def _named(row: pd.Series, line: str) -> str:
    return "unpruned" if row["role"] == "baseline" else str(row[line])


def _gaps(frame: pd.DataFrame) -> list[c.Column]:
    out = []
    for key, name in (("random", "random"), ("unpruned", "unpruned")):
        if f"gap_{key}" in frame and frame[f"gap_{key}"].notna().any():
            group = f"Against {name}"
            out.append(c.Column(f"gap_{key}", f"to {name}, points", group, "points", "Macro accuracy, paired."))
            out.append(c.Column(f"p_{key}_holm", f"p, {name}", group, "p", "Paired test, Holm-corrected."))
    return out


def _said(frame: pd.DataFrame, score: str, facet: str | None, held: c.Column) -> list[str]:
    """The best row by the first score, controls among them, and how far rows of one budget lie apart, by facet.

    Args:
        held: what the best row keeps.
    """
    said = []
    rows, name = frame[~frame["role"].eq("baseline")], metric(score).title.removesuffix(", %")
    for value, group in [("", rows)] if facet is None else rows.groupby(facet, sort=False):
        best = group.loc[group[score].idxmax()]
        apart = group.groupby("budget")[score].agg(["max", "min", "size"])
        who = "methods and controls" if group["role"].eq("control").any() else "methods"
        gaps = (apart["max"] - apart["min"])[apart["size"] > 1]
        where = f"{setting(facet, value)}: " if facet else ""
        kept = f"{best[held.key]:.1f} {'slots' if held.key == c.SLOTS.key else 'tokens'}"
        text = f"{where}highest {name} is {best['method']}'s, {100 * best[score]:.1f}% at {kept}"
        if len(gaps):
            low, high = 100 * gaps.min(), 100 * gaps.max()
            text += f"; at one budget {who} lie {low:.1f} to {high:.1f} points apart (median {100 * gaps.median():.1f})"
        said.append(text + ".")
    return said


def _draw(frame: pd.DataFrame, x: str, scores: list[str], line: str, facet: str | None, theme: Theme) -> Figure:
    own = frame[~frame["role"].eq("baseline")]
    facets = list(dict.fromkeys(own[facet])) if facet else [None]
    rows, across = (1, len(scores)) if facet is None else (len(scores), len(facets))
    figure = Figure(figsize=(0.4 + WIDTH * across, 0.8 + HEIGHT * rows), layout="constrained")
    alike = len({metric(score).kind for score in scores}) == 1
    panels = figure.subplots(rows, across, squeeze=False, sharex=True, sharey=alike)
    mine = looks_apart(list(own[["method", "role"]].drop_duplicates("method").itertuples(index=False)))
    for i, score in enumerate(scores):
        for j, value in enumerate(facets):
            axes = panels[0][i] if facet is None else panels[i][j]
            part = own if facet is None else own[own[facet].eq(value)]
            _panel(axes, part, x, score, mine, theme)
            base = baseline(frame[frame["field"].isin(part["field"])])
            if base is not None:
                whole = _scale(score) * base[score]
                axes.axhline(whole, color=theme.soft, linewidth=1, linestyle=(0, (4, 4)), label="unpruned")
            name = metric(score).title.removesuffix(", %")
            axes.set_title(name if facet is None else f"{name}, {setting(facet, str(value))}")
    for axes in panels[-1]:
        axes.set_xlabel(in_unit(title(x), common(frame["unit"])))
    for row, score in zip(panels, scores if facet else scores[:1], strict=True):
        row[0].set_ylabel("%" if _scale(score) == 100 else metric(score).title)
    legend(figure, panels[0][0])
    return figure


def _scale(score: str) -> int:
    return 100 if metric(score).kind == "percent" else 1


def _panel(axes: Axes, rows: pd.DataFrame, x: str, score: str, mine: dict[str, Look], theme: Theme) -> None:
    for method, group in rows.groupby("method", sort=False):
        group = group.sort_values(x)
        at = (100 if x in (SHARE.key, SLOTS_SHARE.key) else 1) * group[x].astype(float)
        color, scale = mine[method].color(theme.name), _scale(score)
        if f"{score}_low" in group:
            ends = (scale * group[f"{score}_{end}"] for end in ("low", "high"))
            axes.fill_between(at, *ends, color=color, alpha=0.12, lw=0)
        axes.plot(at, scale * group[score], "-", color=color, linewidth=1.5)
        face = theme.paper if group["role"].iloc[0] == "control" else color
        marker = mine[method].marker
        axes.plot(at, scale * group[score], marker, color=color, markerfacecolor=face, markersize=5, label=method)
