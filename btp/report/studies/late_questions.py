"""Late questions: a method's answers with tokens chosen for the question, beside those chosen for another one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from btp.report.comparison.groups import Field
from btp.report.figures.axes import legend
from btp.report.figures.style import Theme, looks
from btp.report.studies.study import Answer, Study, runs_of
from btp.report.tables import columns as c
from btp.results.reader import RunFolder
from btp.results.stats import holm, mean_interval, paired_p

LATE = "late"  # the arm of conf/experiment/multi_turn.yaml
NOTABLE = 0.05


def late(fields: Sequence[Field], study: Study) -> Answer:
    """A row per method: accuracy asked itself and asked late, what that costs, and how many tokens both keep.

    No options.

    Raises:
        ValueError: no run has the arm.
    """
    study.check(())
    found = [_row(run) for run in runs_of(fields) if any(arm.arm == LATE for arm in run.arms)]
    if not found:
        raise ValueError(
            f"none of the runs has an arm {LATE}. Make them with experiment=multi_turn, which asks every picture twice."
        )
    frame = pd.DataFrame(found).sort_values("lost", ascending=False, kind="stable").reset_index(drop=True)
    frame["p_holm"] = holm(frame["p"].tolist())
    return Answer(frame, _columns(), _said(frame), lambda theme: _draw(frame, theme))


def _row(run: RunFolder) -> dict[str, object]:
    arm = run.methods[0]
    own, other = run.rows(arm.arm), run.rows(LATE)
    own, other = own.loc[own.index.intersection(other.index)], other.loc[own.index.intersection(other.index)]
    scores = {"own": mean_interval(own["score"]), "late": mean_interval(other["score"])}
    ends = {f"{k}_{end}": getattr(v, end) for k, v in scores.items() for end in ("low", "high")}
    return {
        "method": arm.title,
        "tokens_avg": float(own["tokens_avg"].mean()),
        "own": scores["own"].mean,
        "late": scores["late"].mean,
        **ends,
        "lost": scores["own"].mean - scores["late"].mean,
        "p": paired_p(own["score"], other["score"]),
        "same": _same(run, arm.arm),
    }


def _same(run: RunFolder, arm: str) -> float:
    """Of what the last stage that keeps any keeps for either question, the share for both; mean over the samples."""
    last = run.trace[run.trace["kept"].map(len) > 0].sort_values("order").groupby(["arm", "sample"])["kept"].last()
    own, other = (last[last.index.get_level_values("arm") == which].droplevel("arm") for which in (arm, LATE))
    pairs = [(set(own[name]), set(other[name])) for name in own.index.intersection(other.index)]
    return float(np.mean([len(a & b) / max(1, len(a | b)) for a, b in pairs])) if pairs else float("nan")


def _columns() -> list[c.Column]:
    def column(key: str, title: str, kind: str, text: str) -> c.Column:
        return c.Column(key, title, "Late questions", kind, text)

    return [
        c.METHOD,
        column("tokens_avg", "visual tokens", "tokens", "Averaged over the decoder layers."),
        column("own", "asked itself, %", "percent", "Tokens were chosen for this question."),
        column("late", "asked late, %", "percent", "Tokens were chosen for another question about the picture."),
        column("lost", "lost, points", "points", "Asked itself minus asked late."),
        column("p_holm", "p", "p", "Paired test, Holm-corrected."),
        column("same", "same tokens, %", "percent", "Of what the last stage keeps for either question."),
    ]


def _said(frame: pd.DataFrame) -> list[str]:
    blind = frame[frame["same"].eq(1.0)]
    told = frame[frame["p_holm"].lt(NOTABLE)]
    out = []
    if len(blind):
        out.append(f"{', '.join(blind['method'])}: the same tokens for every question, so that none is late.")
    for _, row in told.iterrows():
        lost, same = 100 * row["lost"], 100 * row["same"]
        out.append(f"{row['method']} loses {lost:.1f} points when asked late; {same:.0f}% of the tokens are the same.")
    if not len(told):
        out.append(f"None of {len(frame)} methods is shown to lose by being asked late (Holm).")
    return out


def _draw(frame: pd.DataFrame, theme: Theme) -> Figure:
    """Two dots a method with their intervals."""
    figure = Figure(figsize=(6.4, 1.3 + 0.42 * len(frame)), layout="constrained")
    axes = figure.subplots()
    two = looks([("own", "method"), ("late", "method")])
    for key, title, shift in (("own", "asked itself", -0.13), ("late", "asked late", 0.13)):
        y, color = np.arange(len(frame)) + shift, two[key].color(theme.name)
        axes.hlines(y, 100 * frame[f"{key}_low"], 100 * frame[f"{key}_high"], color=color, alpha=0.7, lw=1.6)
        axes.plot(100 * frame[key], y, two[key].marker, color=color, ms=6, label=title, linestyle="none")
    axes.set_yticks(range(len(frame)), list(frame["method"]))
    axes.set_ylim(len(frame) - 0.5, -0.5)
    axes.set_xlabel("accuracy, %")
    legend(figure, axes)
    return figure
