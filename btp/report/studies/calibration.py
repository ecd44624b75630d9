"""Calibration: the curves that sets of samples give, layer by layer, and the stages that were read off them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from btp.report.comparison.groups import Field
from btp.report.figures.axes import legend
from btp.report.figures.style import Theme, looks
from btp.report.studies.ablation import dots, named
from btp.report.studies.study import Answer, Study, methods

CURVES = {"changed": "visual tokens that a layer changed", "attention": "attention on the picture, share"}


def calibration(fields: Sequence[Field], study: Study) -> Answer:
    """The table of `dots`, drawn as the curves of every setting's calibration; options as there.

    Raises:
        ValueError: a run was not calibrated.
    """
    answer = dots(fields, study)
    own, by = methods(answer.frame), list(study.options["by"])
    bare = [entry.run.path for entry in own["entry"] if not (entry.run.calibration or {}).get("curves")]
    if bare:
        raise ValueError(f"{bare[0]} holds no calibration curves. Give its run schedule=calibrated.")
    curves = [_curves(entry) for entry in own["entry"]]
    stages = own["stages_kept"].nunique()
    apart = [float(np.ptp([curve[key] for curve in curves], axis=0).max()) for key in CURVES]
    said = f"{len(own)} sets come to {stages} {'choice' if stages == 1 else 'choices'} of stages; in no layer do their "
    said += f"curves lie further apart than {apart[0]:.1f} tokens and {100 * apart[1]:.1f} points of attention."
    return replace(answer, said=[said, *answer.said], draw=lambda theme: _draw(own, by, curves, theme))


def _curves(entry) -> dict[str, list[float]]:
    found = entry.run.calibration["curves"]
    return {key: [float(x) for x in found[key]] for key in CURVES}


def _draw(own: pd.DataFrame, by: Sequence[str], curves: Sequence[dict], theme: Theme) -> Figure:
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    panels = figure.subplots(1, len(CURVES))
    names = [named(row, by) for _, row in own.iterrows()]
    mine = looks([(name, "method") for name in names])
    for axes, (key, label) in zip(panels, CURVES.items(), strict=True):
        for name, curve in zip(names, curves, strict=True):
            look, color = mine[name], mine[name].color(theme.name)
            axes.plot(curve[key], "-", marker=look.marker, color=color, ms=4, lw=1.2, alpha=0.85, label=name)
        axes.set_xlabel("decoder layer")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for layer in sorted({stage for entry in own["entry"] for stage in _layers(entry)}):
        for axes in panels:
            axes.axvline(layer, color=theme.soft, lw=1, linestyle=(0, (4, 4)), zorder=1)
    panels[0].plot([], [], color=theme.soft, lw=1, linestyle=(0, (4, 4)), label="a stage, in front of the layer")
    legend(figure, panels[0])
    return figure


def _layers(entry) -> list[int]:
    return [int(str(site).rsplit(".", 1)[-1]) for site, _ in entry.stages if str(site).startswith("llm.layer.")]
