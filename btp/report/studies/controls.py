"""Control studies: executed stages of every method, and inertness of attaching without pruning."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from btp.report.comparison.groups import Field
from btp.report.figures.style import Theme, looks
from btp.report.studies.study import Answer, Study, runs_of
from btp.report.tables import columns as c
from btp.report.text.executed_stages import fired as stages_of
from btp.results.reader import RunFolder


def _column(key: str, title: str, kind: str, text: str = "") -> c.Column:
    return c.Column(key, title, "What happened", kind, text)


def fired(fields: Sequence[Field], study: Study) -> Answer:
    """A row per stage of every method: planned and run, samples it reached, tokens before and after. No options."""
    study.check(())
    rows, layers = [], {}
    for run in runs_of(fields):
        for arm in run.methods:
            name = _name(run, arm.title, fields)
            layers[name] = (run.layers.get(arm.arm) or {}).get("visual") or []
            samples = len(run.rows(arm.arm))
            for stage in stages_of(run):
                if stage["arm"] == arm.arm:
                    rows.append({"method": name, "samples": samples, **stage, "missed": samples - stage["hits"]})
    frame = pd.DataFrame(rows)
    frame["state"] = np.where(frame["missed"].eq(0), "yes", np.where(frame["fired"], "in some samples", "NO"))
    shown = [
        c.METHOD,
        _column("site", "stage", "text"),
        _column("state", "fired", "text"),
        _column("hits", "samples that lost tokens", "count"),
        _column("samples", "of", "count"),
        _column("before", "tokens before", "tokens"),
        _column("after", "after", "tokens"),
    ]
    silent = frame[frame["missed"].gt(0)]
    said = [
        f"{len(frame)} stages of {frame['method'].nunique()} methods; {len(frame) - len(silent)} fired in every sample."
    ]
    said += [
        f"{r['method']} at {r['site']}: lost tokens in {r['hits']} of {r['samples']} samples."
        for _, r in silent.iterrows()
    ]
    return Answer(frame, shown, said, lambda theme: _draw_layers(layers, theme))


def _name(run: RunFolder, title: str, fields: Sequence[Field]) -> str:
    return title if len(fields) < 2 else f"{run.setting('model.name')}, {title}"


def _draw_layers(layers: dict[str, list[float]], theme: Theme) -> Figure:
    """Visual tokens that entered each decoder layer, methods from top to bottom."""
    deep = max(map(len, layers.values()))
    table = np.array([[*values, *[nan] * (deep - len(values))] for values in layers.values()])
    figure = Figure(figsize=(1.9 + 0.62 * deep, 0.9 + 0.3 * len(layers)), layout="constrained")
    axes = figure.subplots()
    shades = LinearSegmentedColormap.from_list("tokens", [theme.paper, looks([("a", "method")])["a"].color(theme.name)])
    axes.imshow(table, cmap=shades, vmin=0, vmax=1.25 * np.nanmax(table), aspect="auto")
    for (y, x), value in np.ndenumerate(table):
        if not np.isnan(value):
            axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=8.5)
    axes.set_yticks(range(len(layers)), list(layers))
    axes.set_xticks(range(deep))
    axes.set_xlabel("decoder layer: visual tokens that entered it, mean over the samples")
    axes.grid(False)
    axes.tick_params(length=0)
    return figure


def inertness(fields: Sequence[Field], study: Study) -> Answer:
    """A row per method: samples checked, whether every logit was the same to the bit, the largest difference.

    No options.

    Raises:
        ValueError: no run was checked.
    """
    study.check(())
    rows = []
    for run in runs_of(fields):
        found = run.run.get("inert")
        for arm in run.methods if found else ():
            mine = run.rows(arm.arm)
            rows.append(
                {
                    "method": _name(run, arm.title, fields),
                    "stages": len(arm.schedule or ()),
                    "checked": found["checked"],
                    "identical": "yes" if found["identical"] else "NO",
                    "gap": float(found["max_logit_difference"]),
                    "kl": float(mine["kl"].mean()),
                    "changed": float(1 - mine["agreement"].astype(float).mean()),
                }
            )
    if not rows:
        raise ValueError("no run has an inertness check: give the runs a pruner with a stage, as pruner=btp.")
    frame = pd.DataFrame(rows)
    shown = [
        c.METHOD,
        _column("stages", "stages", "count"),
        _column("checked", "samples", "count"),
        _column("identical", "identical to the bit", "text"),
        _column("gap", "largest difference of a logit", "kl"),
        _column("kl", "the same method pruning: KL, nats", "kl"),
        _column("changed", "answers changed by it", "percent"),
    ]
    bad = frame[frame["identical"].ne("yes")]
    same = f"{len(frame) - len(bad)} of {len(frame)} methods"
    said = [f"{same}, attached and keeping everything, are the unpatched model to the last bit."]
    said += [f"{row['method']} differs by up to {row['gap']:.2g}." for _, row in bad.iterrows()]
    return Answer(frame, shown, said, lambda theme: _draw_inert(frame, theme))


def _draw_inert(frame: pd.DataFrame, theme: Theme) -> Figure:
    """What attaching alone does beside what pruning does, each on its own axis."""
    figure = Figure(figsize=(7.2, 1.1 + 0.28 * len(frame)), layout="constrained")
    mine, y = looks([("off", "method"), ("on", "method")]), np.arange(len(frame))
    panels = {
        "off": ("gap", "attached, keeping everything", "largest difference of a logit"),
        "on": ("kl", "pruning at the budget", "KL of the first answer token, nats"),
    }
    for axes, (name, (key, title, label)) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        axes.plot(frame[key], y, mine[name].marker, color=mine[name].color(theme.name), ms=6)
        axes.set_xlim(0 - 0.04 * (frame[key].max() or 1), 1.08 * (frame[key].max() or 1))
        axes.set_title(title)
        axes.set_xlabel(label)
    figure.axes[0].set_yticks(y, frame["method"].tolist())
    figure.axes[0].set_ylim(len(frame) - 0.5, -0.5)
    return figure
