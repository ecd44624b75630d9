"""Reproduction of published results: scores retained with published stages, beside the papers' numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from btp.report.comparison.groups import Field
from btp.report.figures.axes import legend
from btp.report.figures.style import Theme, looks
from btp.report.studies.paired_suites import SUITES, retained
from btp.report.studies.study import SHARE, Answer, Study, baseline, methods, study_rows
from btp.report.tables import columns as c
from btp.report.tables.columns import number

OPTIONS = ("source", "benchmarks", "published")
FULL = "unpruned"


def published(fields: Sequence[Field], study: Study) -> Answer:
    """A row per method: tokens, FLOPs and retained scores, here and in the paper.

    Options: source (of the table), benchmarks (names of the scores), published (method -> tokens, tflops and scores;
    that of `unpruned` is what the others are shares of).

    Raises:
        ValueError: the paper says nothing about a method of the runs, or the unpruned model was not run.
    """
    study.check(OPTIONS)
    paper: Mapping[str, Mapping] = study.options["published"]
    rows = []
    for one in fields:
        frame = study_rows([one], [], study)
        base = baseline(frame)
        if base is None:
            raise ValueError(f"{one.name}: what is retained needs the unpruned model beside the methods.")
        for _, row in methods(frame).iterrows():
            name = row["pruner.name"]
            if name not in paper:
                raise ValueError(f"study.published says nothing of {name!r}. Methods there: {', '.join(paper)}.")
            flops = row["flops_visual_pdrop"] / base["flops_visual_pdrop"]
            facts = {"model": one.model, "method": name, "tokens_share": row["tokens_share"], "flops_share": flops}
            facts |= {"macro": row["macro"]}
            facts |= {f"prefill_ratio{end}": row.get(f"prefill_ratio{end}") for end in ("", "_low", "_high")}
            facts |= _of_paper(paper[name], paper[FULL]) | retained([(row["entry"], base["entry"])])
            rows.append(facts)
    frame = pd.DataFrame(rows).sort_values(["model", "paper"], ascending=[True, False], kind="stable")
    return Answer(frame, _columns(), _said(frame, study), lambda theme: _draw(frame, theme))


def _of_paper(method: Mapping, full: Mapping) -> dict[str, float]:
    shares = [mine / whole for mine, whole in zip(method["scores"], full["scores"], strict=True)]
    of_tokens, of_flops = (method[key] / full[key] for key in ("tokens", "tflops"))
    return {"paper": float(np.mean(shares)), "paper_tokens": of_tokens, "paper_flops": of_flops}


def _columns() -> list[c.Column]:
    def column(key: str, title: str, group: str, kind: str = "percent") -> c.Column:
        return c.Column(key, title, group, kind, "")

    return [
        c.METHOD,
        column("paper_tokens", "tokens, paper, %", "Cost"),
        SHARE,
        column("paper_flops", "visual FLOPs, paper, %", "Cost"),
        column("flops_share", "visual FLOPs, %", "Cost"),
        column("paper", "retained, paper, %", "Retained"),
        column("usual", "retained, usual questions, %", "Retained"),
        column("reading", "retained, reading, %", "Retained"),
        column("prefill_ratio", "prefill ×", "Cost", "times"),
    ]


def _said(frame: pd.DataFrame, study: Study) -> list[str]:
    said = []
    for model, rows in frame.groupby("model", sort=False):
        said.append(f"Paper: {study.options['source']}, mean over {', '.join(study.options['benchmarks'])}.")
        for suite in SUITES:
            if len(rows) > 2 and rows[suite].nunique() > 1 and rows["paper"].nunique() > 1:
                rank, p = _rank(rows["paper"], rows[suite])
                said.append(
                    f"{model}: order of the methods against the paper's, {suite} questions: rank correlation "
                    f"{rank:.2f} over {len(rows)} methods (p = {number(p, 'p')}, permutations)."
                )
        low, high = (100 * rows["tokens_share"].agg(end) for end in ("min", "max"))
        if high - low > 1:
            said.append(f"{model}: budgets differ by method, as in the paper: {low:.0f}% to {high:.0f}% of the tokens.")
    return said


def _rank(x: pd.Series, y: pd.Series) -> tuple[float, float]:
    """Spearman's correlation, and its p by permutation; exact for few methods."""
    found = stats.permutation_test(
        (x.to_numpy(),),
        lambda z: stats.spearmanr(z, y).statistic,
        permutation_type="pairings",
        n_resamples=5040,
        rng=0,
    )
    return float(found.statistic), float(found.pvalue)


def _draw(frame: pd.DataFrame, theme: Theme) -> Figure:
    figure = Figure(figsize=(6.4, 1.3 + 0.5 * len(frame)), layout="constrained")
    axes, y = figure.subplots(), np.arange(len(frame))
    axes.plot(100 * frame["paper"], y, "o", color=theme.ink, ms=7, markerfacecolor="none", label="paper, LLaVA-1.5-7B")
    mine = looks([(suite, "method") for suite in SUITES])
    for i, suite in enumerate(SUITES):
        color, at = mine[suite].color(theme.name), y + 0.12 * (2 * i - 1)
        axes.hlines(at, 100 * frame[f"{suite}_low"], 100 * frame[f"{suite}_high"], color=color, alpha=0.7, lw=1.4)
        axes.plot(100 * frame[suite], at, mine[suite].marker, color=color, ms=6, label=f"here, {suite} questions")
    several = frame["model"].nunique() > 1
    names = frame["method"] + (" on " + frame["model"] if several else "")
    axes.set_yticks(y, names.tolist())
    axes.set_ylim(len(frame) - 0.5, -0.5)
    axes.set_xlabel("retained, % of the unpruned score (line: 95% interval)")
    legend(figure, axes)
    return figure
