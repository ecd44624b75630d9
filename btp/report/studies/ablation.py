"""Dots: one row per setting, a panel per score, each held against a reference setting on the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from btp.report.comparison.groups import Field, pair
from btp.report.comparison.paired_tests import by_ability
from btp.report.figures.style import Theme, looks
from btp.report.studies.paired import p_of, paired
from btp.report.studies.setting_names import setting
from btp.report.studies.study import (
    SHARE,
    Answer,
    Study,
    baseline,
    column_of,
    methods,
    metric,
    scored,
    study_rows,
    written,
)
from btp.report.tables import columns as c
from btp.results.stats import holm, paired_gap, paired_p

OPTIONS = ("by", "metrics", "against", "stages", "controls", "controls_of")
NOTABLE = 0.05
STAGES = c.Column("stages_kept", "stages: kept", "Setting", "text", "Where stages lie, and how many tokens stay.")


def dots(fields: Sequence[Field], study: Study) -> Answer:
    """Scores by setting, and their distance to a reference.

    Options: by (config keys that tell the rows apart), metrics (scores), against (values of some of those keys: each
    row is held against the one that has them and is equal in the others), stages (true lists where they lie), controls
    and controls_of as `study_rows` has them.
    """
    study.check(OPTIONS)
    by = list(study.options["by"])
    frame = study_rows(fields, by, study)
    scores = scored(frame, study.options["metrics"])
    frame = frame.assign(**{key: frame[key].map(written) for key in by}, stages_kept=frame["entry"].map(_stages))
    frame = held(frame, by, study.options.get("against") or {}, scores)
    frame.loc[frame["role"].eq("baseline"), by] = "–"
    frame = frame.sort_values([*by], key=lambda s: s.map(_natural), kind="stable")
    kept = [STAGES] if study.options.get("stages") else []
    shown = [c.METHOD, *map(column_of, by), *kept, SHARE, *map(metric, scores), *gap_columns()]
    frame = frame.assign(method=frame["series"].where(frame["role"].eq("baseline"), frame["pruner.name"]))
    return Answer(frame, shown, said(frame, by), lambda theme: _draw(frame, by, scores, theme))


def held(frame: pd.DataFrame, by: Sequence[str], against: Mapping[str, Any], scores: Sequence[str]) -> pd.DataFrame:
    """Add to the methods' rows how they stand to their reference.

    That is gap_reference (macro points, with its interval), p_reference and p_reference_holm, and of each of `scores`
    its own test as p_SCORE_holm, nan for what is no score of answers.

    Raises:
        ValueError: `against` names a key that is none of `by`, or a value that no row has.
    """
    wanted = {key: written(value) for key, value in against.items()}
    own = methods(frame)
    for key, value in wanted.items():
        if key not in by or value not in set(own[key]):
            there = ", ".join(sorted(set(own[key]))) if key in by else ", ".join(by)
            raise ValueError(f"study.against asks for {key}={value}, but the runs have: {there}. Correct it.")
    found: dict[Any, dict[str, Any]] = {}
    for index, row in own.iterrows():
        same = own
        for key in by:
            same = same[same[key].eq(wanted.get(key, row[key]))]
        reference = same.iloc[0] if len(same) and wanted else None
        if reference is None or reference["entry"] is row["entry"]:
            continue
        a, b = pair(row["entry"].rows, reference["entry"].rows)
        gap = paired_gap(by_ability(a, b))
        found[index] = {
            "gap_reference": gap.mean,
            "gap_reference_low": gap.low,
            "gap_reference_high": gap.high,
            "p_reference": paired_p(a["score"], b["score"]),
            **{f"p_{score}_holm": p_of(paired(row["entry"], reference["entry"], score)) for score in scores},
        }
    tests = [f"p_{score}_holm" for score in scores]
    more = pd.DataFrame.from_dict(found, orient="index", columns=[*(x.key for x in gap_columns(False)), *_ENDS, *tests])
    more["p_reference_holm"] = more["p_reference"]
    for key in ("p_reference_holm", *tests):
        more[key] = holm(more[key].astype(float).tolist())
    return frame.join(more)


_ENDS = ("gap_reference_low", "gap_reference_high", "p_reference")


def gap_columns(corrected: bool = True) -> list[c.Column]:
    """Distance to the reference, and its test."""
    group = "Against the reference"
    gap = c.Column("gap_reference", "to reference, points", group, "points", "Macro accuracy, paired bootstrap.")
    return [gap, c.Column("p_reference_holm", "p", group, "p", "Paired test, Holm-corrected.")] if corrected else [gap]


def said(frame: pd.DataFrame, by: Sequence[str]) -> list[str]:
    """The best setting, how far all lie apart, and how many are told from their reference."""
    own = methods(frame)
    tested = own[own["p_reference_holm"].notna()]
    sure = tested[tested["p_reference_holm"] < NOTABLE]
    best, apart = own.loc[own["macro"].idxmax()], own["macro"].max() - own["macro"].min()
    score = f"{100 * best['macro']:.1f}%"
    out = [f"Best: {named(best, by)} with {score}; all lie within {100 * apart:.1f} points."]
    if apart == 0:
        out = [f"All {len(own)} settings score {score}."]
    if not len(tested):
        return out
    if not len(sure):
        return [*out, f"None of {len(tested)} settings is told from its reference on these samples (Holm)."]
    parts = []
    for word, rows in (("above", sure[sure["gap_reference"] > 0]), ("below", sure[sure["gap_reference"] <= 0])):
        gaps = sorted(100 * rows["gap_reference"].abs())
        if gaps:
            ends = dict.fromkeys(f"{gap:.1f}" for gap in (gaps[0], gaps[-1]))
            parts.append(f"{len(rows)} {word} it by {' to '.join(ends)}")
    told = f"{len(sure)} of {len(tested)} settings, {', '.join(parts)} points (Holm)"
    return [*out, f"Told from their reference: {told}."]


def named(row: pd.Series, by: Sequence[str]) -> str:
    """The settings of a row in words."""
    return ", ".join(setting(key, row[key]) for key in by)


def _stages(entry: Any) -> str:
    return ", ".join(f"{str(site).removeprefix('llm.layer.')}: {_count(keep)}" for site, keep in entry.stages)


def _count(keep: Any) -> str:
    return f"{keep:.3g}" if isinstance(keep, float) else str(keep)


def _natural(value: Any) -> tuple:
    try:
        return (0, float(value), "")
    except (TypeError, ValueError):
        return (1, 0.0, str(value))


def _draw(frame: pd.DataFrame, by: Sequence[str], scores: Sequence[str], theme: Theme) -> Figure:
    own, base = frame[~frame["role"].eq("baseline")], baseline(frame)
    names = [named(row, by) for _, row in own.iterrows()]
    controls = own["role"].eq("control")
    names = [f"{arm} ({n})" if control else n for n, control, arm in zip(names, controls, own["arm"], strict=True)]
    figure = Figure(figsize=(2.6 + 2.1 * len(scores), 0.9 + 0.3 * len(own)), layout="constrained")
    panels = figure.subplots(1, len(scores), squeeze=False, sharey=True)[0]
    color = looks([("a", "method")])["a"].color(theme.name)
    for axes, score in zip(panels, scores, strict=True):
        y = range(len(own))
        axes.hlines(y, 100 * own[f"{score}_low"], 100 * own[f"{score}_high"], color=color, alpha=0.7, lw=1.6)
        sure = own[f"p_{score}_holm"].lt(NOTABLE).tolist()
        for at, (value, full) in enumerate(zip(100 * own[score], sure, strict=True)):
            axes.plot(value, at, "o", color=color, ms=6, markerfacecolor=color if full else theme.paper)
        if base is not None and 100 * base[score] <= axes.get_xlim()[1] + 25:
            axes.axvline(100 * base[score], color=theme.soft, lw=1, linestyle=(0, (4, 4)))
        axes.set_title(metric(score).title)
        axes.set_xlabel("accuracy, %")
    panels[0].set_yticks(range(len(own)), names)
    panels[0].set_ylim(len(own) - 0.5, -0.5)
    figure.supxlabel("filled: differs from its reference in that score (Holm)", fontsize=8.5, color=theme.soft)
    return figure
