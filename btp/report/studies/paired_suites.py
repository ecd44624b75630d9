"""Paired suites: what usual questions retain of the unpruned score beside what reading retains, setting by setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from btp.report.comparison.groups import Entry, Field
from btp.report.figures.axes import legend
from btp.report.figures.style import Theme, looks
from btp.report.studies.paired import Groups, apart, paired
from btp.report.studies.paired import retained as share_retained
from btp.report.studies.setting_names import setting
from btp.report.studies.study import SHARE, Answer, Study, baseline, column_of, methods, study_rows, written
from btp.report.tables import columns as c

OPTIONS = ("by", "controls", "controls_of")
SUITES = ("usual", "reading")
SCORES = {"usual": "rest", "reading": "reading"}
FEWEST = 20  # samples of a suite for a verdict
VERDICT = f"By the interval of the difference; none with under {FEWEST} samples of a suite, or scores all alike."
MORE, LESS, SAME, UNKNOWN = "reading retains more", "reading retains less", "no difference shows", "cannot be told"


def suites(fields: Sequence[Field], study: Study) -> Answer:
    """A row per setting: what either suite retains, and the difference.

    A question is reading where its task says so (task.reading); suites may be abilities of one task or tasks of their
    own. Option: by (config keys that tell settings apart).

    Raises:
        ValueError: one of the suites has no question.
    """
    study.check(OPTIONS)
    by = list(study.options["by"])
    parts: dict[tuple, list] = {}
    for one in fields:
        frame = study_rows([one], by, study)
        base = baseline(frame)
        if base is None:
            raise ValueError(f"{one.name}: what is retained needs the unpruned model beside the methods.")
        for _, row in methods(frame).iterrows():
            key = (one.model, row["series"].split(" (")[0], *(written(row[k]) for k in by))
            parts.setdefault(key, []).append((row, base["entry"]))
    rows = [_row(key, by, found) for key, found in parts.items()]
    frame = pd.DataFrame(rows).sort_values(by, ascending=False, kind="stable")
    return Answer(frame, _columns(by), _said(frame, by), lambda theme: _draw(frame, by, theme))


def _row(key: tuple, by: Sequence[str], found: list) -> dict:
    out = {"model": key[0], "method": key[1], **dict(zip(by, key[2:], strict=True))}
    out["tokens_share"] = float(np.mean([row["tokens_avg"] / row["visual_tokens"] for row, _ in found]))
    return out | retained([(row["entry"], base) for row, base in found])


def retained(pairs: Sequence[tuple[Entry, Entry]]) -> dict[str, Any]:
    """What a method retains of the unpruned score in either suite, over tasks.

    Args:
        pairs: Pairs of each task, the method's entry and the unpruned one.

    Returns:
        usual, reading and gap (reading minus usual), each with _low and _high (95%), and verdict: one of MORE, LESS,
        SAME, or UNKNOWN where a suite has fewer than FEWEST samples, or scores that are all alike.

    Raises:
        ValueError: one of the suites has no question.
    """
    groups = {suite: [g for one, base in pairs for g in paired(one, base, SCORES[suite])] for suite in SUITES}
    if not all(groups.values()):
        empty = next(suite for suite in SUITES if not groups[suite])
        raise ValueError(
            f"no question of the {empty} suite: the runs need abilities that task.reading names and others, or "
            "tasks of both kinds, as task=pope,textvqa."
        )
    usual, reading = (share_retained(groups[suite]) for suite in SUITES)
    gap = apart(reading, usual)
    out: dict[str, Any] = {}
    for name, found in (("usual", usual), ("reading", reading), ("gap", gap)):
        out |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    known = all(_varies(groups[suite]) for suite in SUITES)
    out["verdict"] = UNKNOWN if not known else MORE if gap.low > 0 else LESS if gap.high < 0 else SAME
    return out


def _varies(groups: Groups) -> bool:
    scores = np.concatenate([pruned for pruned, _ in groups])
    return len(scores) >= FEWEST and bool(np.ptp(scores) > 0)


def _columns(by: Sequence[str]) -> list[c.Column]:
    group = "Retained, % of the unpruned score"
    return [
        c.METHOD,
        *map(column_of, by),
        SHARE,
        c.Column("usual", "usual questions", group, "percent", ""),
        c.Column("reading", "reading", group, "percent", ""),
        c.Column("gap", "reading minus usual, points", group, "points", "With its 95% interval."),
        c.Column("verdict", "verdict", group, "text", VERDICT),
    ]


def _said(frame: pd.DataFrame, by: Sequence[str]) -> list[str]:
    """How many settings tell the suites apart, and which."""
    said = []
    for verdict in (MORE, LESS, SAME, UNKNOWN):
        rows = frame[frame["verdict"].eq(verdict)]
        if len(rows):
            where = "; ".join(", ".join(setting(key, row[key]) for key in by) for _, row in rows.iterrows())
            said.append(f"{verdict[0].upper()}{verdict[1:]} in {len(rows)} of {len(frame)} settings: {where}.")
    return said


def _draw(frame: pd.DataFrame, by: Sequence[str], theme: Theme) -> Figure:
    figure = Figure(figsize=(6.4, 1.0 + 0.42 * len(frame)), layout="constrained")
    axes = figure.subplots()
    mine = looks([(suite, "method") for suite in SUITES])
    y = np.arange(len(frame))
    axes.hlines(y, 100 * frame["reading"], 100 * frame["usual"], color=theme.line, lw=4)
    for i, suite in enumerate(SUITES):
        color, at = mine[suite].color(theme.name), y + 0.12 * (2 * i - 1)
        axes.hlines(at, 100 * frame[f"{suite}_low"], 100 * frame[f"{suite}_high"], color=color, alpha=0.7, lw=1.4)
        axes.plot(100 * frame[suite], at, mine[suite].marker, color=color, ms=6, label=f"{suite} questions")
    axes.axvline(100, color=theme.soft, lw=1, linestyle=(0, (4, 4)))
    shown = [", ".join(setting(key, row[key]) for key in by) for _, row in frame.iterrows()]
    axes.set_yticks(y, shown)
    axes.set_ylim(len(frame) - 0.5, -0.5)
    axes.set_xlabel("retained, % of the unpruned score (line: 95% interval)")
    legend(figure, axes)
    return figure
