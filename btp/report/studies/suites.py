"""Paired suites: what usual questions retain of the unpruned score beside what reading retains, setting by setting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from btp.report import columns as c
from btp.report.fields import Entry, Field, pair
from btp.report.palette import Theme, looks
from btp.report.stats import SEED
from btp.report.studies.study import SHARE, Answer, Study, baseline, column_of, methods, study_rows, written
from btp.report.tradeoff import legend

OPTIONS = ("by", "controls", "controls_of")
SUITES = ("usual", "reading")
DRAWS = 4999


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


def retained(pairs: Sequence[tuple[Entry, Entry]]) -> dict[str, float]:
    """What a method retains of the unpruned score in either suite, over tasks.

    Args:
        pairs: of each task, the method's entry and the unpruned one.

    Returns:
        usual, reading and gap (reading minus usual), each with _low and _high: 95% intervals of a paired bootstrap.

    Raises:
        ValueError: one of the suites has no question.
    """
    suites: dict[str, list] = {suite: [] for suite in SUITES}
    for entry, base in pairs:
        for suite, groups in _scores(entry, base).items():
            suites[suite] += groups
    if not all(suites.values()):
        empty = next(suite for suite in SUITES if not suites[suite])
        raise ValueError(
            f"no question of the {empty} suite: the runs need abilities that task.reading names and others, or "
            "tasks of both kinds, as task=pope,textvqa."
        )
    drawn = {suite: _drawn(groups) for suite, groups in suites.items()}
    out = {}
    for name, values in (*drawn.items(), ("gap", drawn["reading"] - drawn["usual"])):
        low, high = np.nanquantile(values[1:], [0.025, 0.975])
        out |= {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}
    return out


def _scores(entry: Entry, base: Entry) -> dict[str, list]:
    """Per suite, of each ability: scores with and without pruning of the same samples."""
    a, b = pair(entry.rows, base.rows)
    out: dict[str, list] = {suite: [] for suite in SUITES}
    for ability, rows in a.groupby("ability", sort=False):
        suite = "reading" if ability in entry.run.reading else "usual"
        out[suite].append((rows["score"].to_numpy(float), b.loc[rows.index, "score"].to_numpy(float)))
    return out


def _drawn(groups: list) -> np.ndarray:
    """[1 + DRAWS] what is retained (macro score over the unpruned one's): as it is, then of samples drawn anew."""
    rng, pruned, whole = np.random.default_rng(SEED), np.zeros(1 + DRAWS), np.zeros(1 + DRAWS)
    for a, b in groups:
        at = rng.integers(0, len(a), (DRAWS, len(a)))
        pruned += np.concatenate([[a.mean()], a[at].mean(1)])
        whole += np.concatenate([[b.mean()], b[at].mean(1)])
    return np.divide(pruned, whole, out=np.full(1 + DRAWS, np.nan), where=whole > 0)


def _columns(by: Sequence[str]) -> list[c.Column]:
    group = "Retained, % of the unpruned score"
    return [
        c.METHOD,
        *map(column_of, by),
        SHARE,
        c.Column("usual", "usual questions", group, "percent", ""),
        c.Column("reading", "reading", group, "percent", ""),
        c.Column("gap", "reading minus usual, points", group, "points", "95% interval of a paired bootstrap."),
    ]


def _said(frame: pd.DataFrame, by: Sequence[str]) -> list[str]:
    said = []
    for _, row in frame.iterrows():
        sure = "" if row["gap_low"] > 0 or row["gap_high"] < 0 else " (no difference that shows)"
        named = ", ".join(f"{key}={row[key]}" for key in by)
        said.append(f"{named}: usual {100 * row['usual']:.0f}%, reading {100 * row['reading']:.0f}%{sure}.")
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
    shown = [", ".join(f"{key.rsplit('.', 1)[-1]}={row[key]}" for key in by) for _, row in frame.iterrows()]
    axes.set_yticks(y, shown)
    axes.set_ylim(len(frame) - 0.5, -0.5)
    axes.set_xlabel("retained, % of the unpruned score (line: 95% interval)")
    legend(figure, axes)
    return figure
