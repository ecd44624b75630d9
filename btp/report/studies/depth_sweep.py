"""Depth sweep: scores when all visual tokens are withdrawn in front of one layer, over the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from btp.report.comparison.groups import Field
from btp.report.figures.axes import legend
from btp.report.figures.style import Theme, looks
from btp.report.studies.paired import difference, paired
from btp.report.studies.study import Answer, Study, baseline, methods, study_rows
from btp.report.tables import columns as c
from btp.schedules.place import nearest_layer

OPTIONS = ("x",)
MARGIN = 0.10  # of the score: a loss below it is a small one
MARGIN_POINTS = f"{100 * MARGIN:.0f}"
WITHIN = (
    f"From here on the 95% interval of the loss to the unpruned model ends below {MARGIN_POINTS} points; a dash where "
    "no layer shows that on these samples."
)
GROUPS = ("macro", "reading", "rest")


@dataclass(frozen=True)
class Knee:
    """Knee of a depth sweep: the layer at which a score comes back.

    Attributes:
        half: depth in layers at which half of what withdrawal can cost is back, between two layers by a straight line.
        before, after: the neighbouring layers between which the score rises most; nan with fewer than two.
        step: Step by how much it rises there, per layer.
    """

    half: float
    before: float
    after: float
    step: float


def knee(layers: Sequence[float], scores: Sequence[float], floor: float, top: float) -> Knee:
    """Locate the knee of a depth sweep.

    Args:
        layers: Layers in front of which everything left, ascending.
        scores: Score of each.
        floor: score without the picture; half is counted from there.
        top: score of the unpruned model.

    Returns:
        With half = nan where the score never reaches the middle, or there is nothing between floor and top.
    """
    x, y = np.asarray(layers, float), np.asarray(scores, float)
    steps = np.diff(y) / np.diff(x)
    at = int(steps.argmax()) if len(steps) else -1
    steepest = (x[at], x[at + 1], float(steps[at])) if at >= 0 else (nan, nan, nan)
    middle = (floor + top) / 2
    below = np.flatnonzero(y < middle)
    if top <= floor or not len(below) or below[-1] == len(y) - 1:
        return Knee(nan, *steepest)
    last = below[-1]  # the last layer that is still too early
    share = (middle - y[last]) / (y[last + 1] - y[last])
    return Knee(float(x[last] + share * (x[last + 1] - x[last])), *steepest)


def depth_sweep(fields: Sequence[Field], study: Study) -> Answer:
    """A row per score: where its knee lies, its steepest step, and from which layer on little is lost for sure.

    Option: x, the config key of the layer. The floor is what withdrawal in front of the first swept layer leaves.
    """
    study.check(OPTIONS)
    key = study.options["x"]
    rows, parts = [], []
    for one in fields:
        frame = study_rows([one], [key], study)
        swept, base = methods(frame), baseline(frame)
        if base is None or len(swept) < 2:
            raise ValueError(
                f"{one.name}: a depth sweep needs the unpruned model and two layers or more, as {key}=1,2."
            )
        depth = len(swept["entry"].iloc[0].run.layers[swept["arm"].iloc[0]]["visual"])
        swept = swept.assign(**{key: [_layer(value, depth) for value in swept[key]]})
        swept = swept.drop_duplicates(key).sort_values(key)
        abilities = [f"accuracy_{a}" for a in one.runs[0].abilities]
        groups = [g for g in GROUPS if g in frame and frame[g].notna().all()]
        for score in (*groups, *abilities):
            rows.append(_row(one.name, swept, base, key, score, depth))
        parts.append((one.name, swept, base, [g for g in groups if g != "macro"] or ["macro"], abilities, depth))
    frame = pd.DataFrame(rows)
    return Answer(frame, _columns(frame), _said(frame), lambda theme: _draw(parts, key, frame, theme))


def _layer(value: object, depth: int) -> int:
    """A swept layer, or the one that a share of the depth such as 3/16 stands for."""
    numerator, _, denominator = str(value).partition("/")
    return nearest_layer(int(numerator), int(denominator), depth) if denominator else int(float(numerator))


def _row(name: str, swept: pd.DataFrame, base: pd.Series, key: str, score: str, depth: int) -> dict:
    layers, scores = swept[key].astype(float).tolist(), swept[score].tolist()
    found = knee(layers, scores, scores[0], float(base[score]))
    return {
        "field": name,
        "score": score.removeprefix("accuracy_"),
        "unpruned": float(base[score]),
        "floor": scores[0],
        "knee": found.half,
        "knee_share": found.half / depth,
        "from": found.before,
        "to": found.after,
        "step": found.step,
        "within": _within(swept, base, key, score),
        "depth": depth,
        "samples": int(base["samples"]),
    } | {f"at_{layer:g}": value for layer, value in zip(layers, scores, strict=True)}


def _within(swept: pd.DataFrame, base: pd.Series, key: str, score: str) -> float:
    """First layer from which on the interval of the loss stays below MARGIN; nan where none is shown to."""
    first = nan
    for _, row in swept.iloc[::-1].iterrows():
        groups = paired(base["entry"], row["entry"], score)
        if not groups or not difference(groups).high < MARGIN:
            break
        first = float(row[key])
    return first


def _columns(frame: pd.DataFrame) -> list[c.Column]:
    def column(key: str, title: str, kind: str, text: str) -> c.Column:
        return c.Column(key, title, "Knee", kind, text)

    swept = [key for key in frame if key.startswith("at_")]
    several = [c.Column("field", "model, task", "Knee", "text", "")] if frame["field"].nunique() > 1 else []
    return [
        *several,
        column("score", "score", "text", ""),
        column("unpruned", "unpruned", "percent", ""),
        *(column(key, f"layer {key[3:]}", "percent", "All visual tokens leave in front of it.") for key in swept),
        column("knee", "knee, layer", "tokens", "Half of what withdrawal can cost is back."),
        column("knee_share", "knee, of depth", "percent", ""),
        column("step", "steepest step a layer, points", "points", ""),
        column("from", "from layer", "count", ""),
        column("within", f"loss below {MARGIN_POINTS} points from layer", "count", WITHIN),
    ]


def _said(frame: pd.DataFrame) -> list[str]:
    said = []
    for name, rows in frame.groupby("field", sort=False):
        for _, row in rows[rows["score"].isin(GROUPS)].iterrows():
            where = "nowhere" if np.isnan(row["knee"]) else f"at layer {row['knee']:.1f} of {row['depth']}"
            share = "" if np.isnan(row["knee"]) else f" ({100 * row['knee_share']:.0f}% of the depth)"
            little = "no layer is" if np.isnan(row["within"]) else f"layers from {row['within']:.0f} on are"
            said.append(
                f"{name}: the knee of {row['score']} lies {where}{share}; its steepest step, from layer "
                f"{row['from']:.0f} to {row['to']:.0f}, is worth {100 * row['step']:.0f} points a layer; {little} "
                f"shown to lose less than {MARGIN_POINTS} points."
            )
    return said


def _draw(parts: list, key: str, knees: pd.DataFrame, theme: Theme) -> Figure:
    figure = Figure(figsize=(6.4, 0.6 + 3.4 * len(parts)), layout="constrained")
    panels = figure.subplots(len(parts), 1, squeeze=False)[:, 0]
    for axes, (name, swept, base, groups, abilities, depth) in zip(panels, parts, strict=True):
        layers = swept[key].astype(float)
        for ability in abilities:
            axes.plot([*layers, depth], 100 * np.array([*swept[ability], base[ability]]), color=theme.line, lw=1.2)
        mine = looks([(group, "method") for group in ("rest", "reading", "macro")])
        for group in groups:
            color = mine[group].color(theme.name)
            low, high = (100 * np.array([*swept[f"{group}_{end}"], base[f"{group}_{end}"]]) for end in ("low", "high"))
            axes.fill_between([*layers, depth], low, high, color=color, alpha=0.14, lw=0)
            found = knees[knees["field"].eq(name) & knees["score"].eq(group)].iloc[0]
            known = not np.isnan(found["knee"])
            label = f"{group}: knee at {found['knee']:.1f} ({100 * found['knee_share']:.0f}%)" if known else group
            y = 100 * np.array([*swept[group], base[group]])
            axes.plot([*layers, depth], y, "-", marker=mine[group].marker, color=color, lw=1.8, ms=5, label=label)
            if known:
                axes.axvline(found["knee"], color=color, lw=1.2, linestyle=(0, (3, 3)))
        axes.set_ylabel("accuracy, %")
        axes.set_title(name if len(parts) > 1 else "")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(f"layer in front of which all visual tokens leave ({depth}: never); grey: single abilities")
        legend(figure, axes) if len(parts) == 1 else axes.legend()
    return figure
