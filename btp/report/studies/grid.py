"""A grid: scores over two settings at once, each cell held against a reference on the same samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from btp.report.comparison.groups import Field
from btp.report.figures.style import Theme, looks
from btp.report.studies.ablation import NOTABLE, gap_columns, held, said
from btp.report.studies.setting_names import title
from btp.report.studies.study import SHARE, Answer, Study, column_of, methods, metric, scored, study_rows, written
from btp.report.tables import columns as c

OPTIONS = ("x", "y", "metrics", "against")
CACHE = ("kv_mib_measured", "prefill_ratio")  # shown where methods evict from the cache


def grid(fields: Sequence[Field], study: Study) -> Answer:
    """A cell per pair of values. Options: x and y (config keys), metrics (scores), against (the reference's values)."""
    study.check(OPTIONS)
    by = [study.options["x"], study.options["y"]]
    frame = study_rows(fields, by, study)
    scores = scored(frame, study.options["metrics"])
    frame = frame.assign(**{key: frame[key].map(written) for key in by})
    frame = held(frame, by, study.options.get("against") or {}, scores)
    frame.loc[frame["role"].eq("baseline"), by] = "–"
    frame = frame.sort_values(by, kind="stable")
    frame = frame.assign(method=frame["series"].where(frame["role"].eq("baseline"), frame["pruner.name"]))
    held_by_cache = [c.SLOTS, *(x for x in c.COST if x.key in CACHE)] if frame["evicts"].any() else []
    settings = [column_of(key) for key in by if key != "pruner.name"]  # which the method's column has
    shown = [c.METHOD, *settings, SHARE, *held_by_cache, *map(metric, scores), *gap_columns()]
    return Answer(frame, shown, said(frame, by), lambda theme: _draw(methods(frame), by, scores, theme))


def _draw(own: pd.DataFrame, by: Sequence[str], scores: Sequence[str], theme: Theme) -> Figure:
    x, y = by
    columns, rows = (sorted(set(own[key]), key=_place) for key in (x, y))
    wide = max(2.2, 0.75 * len(columns) + 0.8)
    figure = Figure(figsize=(0.6 + wide * len(scores), 1.1 + 0.55 * len(rows)), layout="constrained")
    hue = looks([("a", "method")])["a"].color(theme.name)
    shades = LinearSegmentedColormap.from_list("scores", [theme.paper, hue])
    for axes, score in zip(figure.subplots(1, len(scores), squeeze=False, sharey=True)[0], scores, strict=True):
        table = 100 * own.pivot_table(index=y, columns=x, values=score, observed=True).loc[rows, columns].to_numpy()
        low, high = np.nanmin(table), np.nanmax(table)
        axes.imshow(
            table, cmap=shades, vmin=low - 0.35 * (high - low or 1), vmax=high + 0.5 * (high - low or 1), aspect="auto"
        )
        for _, cell in own.iterrows():
            sure = "*" if cell[f"p_{score}_holm"] < NOTABLE else ""
            where = columns.index(cell[x]), rows.index(cell[y])
            axes.text(*where, f"{100 * cell[score]:.1f}{sure}", ha="center", va="center", fontsize=9)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel(title(x))
        axes.set_title(f"{metric(score).title} accuracy, %")
        axes.grid(False)
        axes.tick_params(length=0)
    figure.axes[0].set_ylabel(title(y))
    figure.supxlabel("*: differs from the reference in that score (Holm)", fontsize=8.5, color=theme.soft)
    return figure


def _place(value: str) -> tuple[bool, float, str]:
    try:
        return False, float(value), ""
    except ValueError:
        return True, 0.0, value
