"""Coverage: how much of each labelled region a method keeps, and whether answers are right where it keeps more."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, nan

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from btp.report.comparison.groups import Entry, Field
from btp.report.figures.axes import legend
from btp.report.figures.style import Theme, looks_apart
from btp.report.studies.study import SHARE, Answer, Study, study_rows, written
from btp.report.tables import columns as c
from btp.results.reader import View
from btp.results.stats import mean_interval

OPTIONS = ("line", "controls", "controls_of")
EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the shares by which samples are grouped


def cells_of(box: Sequence[float], grid: tuple[int, int]) -> set[int]:
    """Patches that a box covers in part, as indices row by row.

    Args:
        box: (x0, y0, x1, y1) in shares of the sides.
        grid: rows and columns.
    """
    rows, columns = grid
    across = [i for i in range(columns) if i < box[2] * columns and i + 1 > box[0] * columns]
    down = [i for i in range(rows) if i < box[3] * rows and i + 1 > box[1] * rows]
    return {row * columns + column for row in down for column in across}


def shares_kept(entry: Entry) -> pd.DataFrame:
    """How much of each region an arm keeps, averaged over the decoder layers as visual tokens are.

    Samples are left out of which nothing says where their visual tokens lie. Where a picture is seen twice, whole and
    in tiles, the patches of both views count.

    Returns:
        One row per sample and region: sample, label, target, share (of its patches).

    Raises:
        ValueError: the run knows no regions.
    """
    regions, trace = entry.run.regions, entry.run.trace
    if regions.empty:
        raise ValueError(
            f"{entry.run.path} has no regions.parquet: task {entry.run.setting('task.name')} labels no regions of its "
            "pictures, or the run is older than that file; resume=false computes it anew."
        )
    stages = dict(list(trace[trace["arm"] == entry.arm.arm].sort_values("order").groupby("sample")))
    depth = len(entry.run.layers[entry.arm.arm]["visual"])
    total, out = entry.rows["total"], []
    for sample, boxes in regions.groupby("sample", sort=False):
        views = _views(entry, str(sample), int(total.get(sample, 0)))
        if not views or sample not in stages:
            continue
        spans = _spans(stages[sample], depth, int(total[sample]))
        for _, region in boxes.iterrows():
            box = region[["x0", "y0", "x1", "y1"]].tolist()
            tokens = {view.token(i) for view in views for i in cells_of(box, view.grid)} - {-1}
            share = sum(layers * len(tokens & kept) for layers, kept in spans) / depth / len(tokens)
            facts = {"sample": sample, "label": region["label"], "target": bool(region["target"])}
            out.append(facts | {"share": share})
    return pd.DataFrame(out, columns=["sample", "label", "target", "share"])


def _spans(stages: pd.DataFrame, depth: int, total: int) -> list[tuple[int, set[int]]]:
    """How many decoder layers saw which visual tokens, from the first layer to the last."""
    at = [(0, set(range(total)))]
    for _, stage in stages.iterrows():
        *_, kind, last = ["", *str(stage["site"]).split(".")]
        inside = str(stage["site"]).startswith("llm.") and kind == "layer"
        at.append((int(last) if inside else 0, {int(i) for i in stage["kept"]}))
    ends = [layer for layer, _ in at[1:]] + [depth]
    return [(end - layer, kept) for (layer, kept), end in zip(at, ends, strict=True)]


def _views(entry: Entry, sample: str, total: int) -> tuple[View, ...]:
    picture = entry.run.pictures.get(sample)
    if picture is not None:
        return picture.views if picture.total == total else ()
    side = isqrt(total)
    square = entry.run.setting("model.config.model_type") == "llava"  # one picture, as many rows as columns
    return (View((side, side)),) if square and side * side == total > 0 else ()


def coverage(fields: Sequence[Field], study: Study) -> Answer:
    """A row per method and budget: shares kept of needed regions, of others and of all; accuracy where most is kept.

    Options: line (a config key), controls and controls_of as `study_rows` has them.

    Raises:
        ValueError: no sample needs a region.
    """
    study.check(OPTIONS)
    line = study.options.get("line", "series")
    frame = study_rows(fields, [line] if line != "series" else [], study)
    frame = frame[~frame["role"].eq("baseline")].copy()
    frame["method"] = frame[line].map(written)
    samples = {index: _samples(row["entry"]) for index, row in frame.iterrows()}
    if all(found.empty for found in samples.values()):
        raise ValueError("no sample of the runs needs a region of its picture. Raise limit, or take another task.")
    frame = frame.join(pd.DataFrame({i: _summary(found) for i, found in samples.items()}).T)
    frame = frame.sort_values(["budget", "target"], ascending=[True, False], kind="stable")
    return Answer(frame, _columns(), _said(frame), lambda theme: _draw(frame, samples, theme))


def _samples(entry: Entry) -> pd.DataFrame:
    """One row per sample that needs a region: target (share kept of what it needs), score, ability."""
    shares = shares_kept(entry)
    needed = shares[shares["target"]].groupby("sample")["share"].mean()
    others = shares[~shares["target"]].groupby("sample")["share"].mean()
    rows = entry.rows.loc[needed.index, ["score", "ability"]]
    return rows.assign(target=needed, other=others.reindex(needed.index))


def _summary(found: pd.DataFrame) -> dict[str, float]:
    much = found["target"] >= found["target"].median() if len(found) else pd.Series(dtype=bool)
    whole, part = (mean_interval(found.loc[which, "score"]) for which in (much, ~much))
    inside = found[["target", "score"]] - found.groupby("ability")[["target", "score"]].transform("mean")
    differ = inside["target"].nunique() > 1 and inside["score"].nunique() > 1
    link = stats.spearmanr(inside["target"], inside["score"]) if differ else None
    return {
        "target": float(found["target"].mean()),
        "other": float(found["other"].mean()),
        "needed": float(len(found)),
        "much": whole.mean,
        "much_low": whole.low,
        "much_high": whole.high,
        "little": part.mean,
        "little_low": part.low,
        "little_high": part.high,
        "rank": float(link.statistic) if link else nan,
        "p_rank": float(link.pvalue) if link else nan,
    }


def _columns() -> list[c.Column]:
    def column(key: str, title: str, kind: str, text: str = "") -> c.Column:
        return c.Column(key, title, "Coverage", kind, text)

    return [
        c.METHOD,
        SHARE,
        column("target", "of needed regions, %", "percent"),
        column("other", "of other regions, %", "percent"),
        column("much", "accuracy, much of the needed kept, %", "percent", "The upper half of the samples by that."),
        column("little", "accuracy, little kept, %", "percent"),
        column("rank", "rank correlation", "metric", "Spearman, share kept against score, inside abilities."),
        column("p_rank", "p", "p"),
    ]


def _said(frame: pd.DataFrame) -> list[str]:
    top = frame.loc[frame["target"].idxmax()]
    said = [
        f"{top['method']} keeps most of what answers need: {100 * top['target']:.0f}% of it, averaged over the layers, "
        f"at {100 * top['tokens_share']:.0f}% of all tokens."
    ]
    linked = frame[frame["p_rank"].lt(0.05 / max(len(frame), 1)) & frame["rank"].gt(0)]
    said.append(
        f"In {len(linked)} of {len(frame)} rows keeping more of the needed region goes with a right answer (Spearman "
        f"inside abilities, Bonferroni), with correlations of {frame['rank'].min():.2f} to {frame['rank'].max():.2f}."
    )
    return said


def _draw(frame: pd.DataFrame, samples: dict, theme: Theme) -> Figure:
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    mine = looks_apart(list(frame[["method", "role"]].drop_duplicates("method").itertuples(index=False)))
    for method, group in frame.groupby("method", sort=False):
        look, color = mine[method], mine[method].color(theme.name)
        face = theme.paper if group["role"].iloc[0] == "control" else color
        style = {"color": color, "marker": look.marker, "markerfacecolor": face, "ms": 5, "lw": 1.5}
        group = group.sort_values("tokens_share")
        left.plot(100 * group["tokens_share"], 100 * group["target"].astype(float), label=method, **style)
        pooled = pd.concat([samples[i] for i in group.index])
        bins = np.digitize(pooled["target"], EDGES[1:-1], right=False)
        means = (
            pooled.assign(bin=bins).groupby("bin").agg(x=("target", "mean"), y=("score", "mean"), n=("score", "size"))
        )
        means = means[means["n"] >= 5]
        right.plot(100 * means["x"], 100 * means["y"], **style)
    ends = [100 * float(frame["tokens_share"].agg(end)) for end in ("min", "max")]
    left.plot(ends, ends, color=theme.soft, lw=1, linestyle=(0, (4, 4)), label="as at random")
    left.set_xlabel("visual tokens, % (both averaged over the layers)")
    left.set_ylabel("needed regions kept, %")
    right.set_xlabel("needed region kept, % (5 samples or more a point)")
    right.set_ylabel("accuracy, %")
    legend(figure, left)
    return figure
