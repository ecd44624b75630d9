"""Runs whose answers to a study are known."""

from pathlib import Path

from matplotlib.figure import Figure
from sample_run import of, set_scores, write_run

from btp.report.comparison.groups import fields
from btp.report.figures.style import LIGHT
from btp.report.studies.study import Study
from btp.results.find import find_runs

SAMPLES = 40
ALL, NONE = [1.0] * SAMPLES, [0.0] * SAMPLES


def study(figure, **options):
    return Study("mine", "What is it?", figure, options)


def answer(kind, root, **options):
    runs, _ = find_runs([Path(root)])
    found = kind(fields(runs), study("x", **options))
    assert isinstance(found.draw(LIGHT), Figure)
    return found


def config(**keys):
    """Settings of a run beside the usual ones, by dotted key."""
    out = {"pruner": {"name": "btp"}, "model": {"name": "pocket", "config": {"model_type": "llava"}}}
    for key, value in keys.items():
        *groups, last = key.split("__")
        node = out
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return out


def write_depths(root, samples=SAMPLES):
    """Everything leaves in front of layer 2, 4, 6, 8 of 12; the answers come back between 4 and 6."""
    arms = of("withdraw")[:2]
    for layer, scores in {2: [0.0], 4: [0.0], 6: [1.0, 0.0], 8: [1.0]}.items():
        folder = root / f"layer-{layer}"
        more = config(pruner={"name": "withdraw", "layer": layer})
        write_run(
            folder, samples, arms=arms, name="withdraw", overlays=0, config=more, stages=[(f"llm.layer.{layer}", 0)]
        )
        set_scores(folder, {"unpruned": [1.0] * samples, "withdraw": scores * (samples // len(scores))})
    return root


def write_settings(root):
    """BTP with two settings of two knobs; over=2 answers all, over=1 one half; seed changes nothing."""
    for over in (1, 2):
        for seed in (0, 0.25):
            folder = root / f"{over}-{seed}"
            write_run(folder, SAMPLES, overlays=0, config=config(pruner__method={"over": over, "seed": seed}))
            half = ([1.0] * 4 + [0.0] * 4) * (SAMPLES // 8)  # of every ability
            set_scores(folder, {"unpruned": ALL, "btp": ALL if over == 2 else half, "random": NONE})
    return root
