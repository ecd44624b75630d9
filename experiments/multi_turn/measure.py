"""`python -m experiments.multi_turn.measure`: what a question loses whose picture was pruned for another one.

Visual tokens stand in front of the text and do not see it, so the keys and values that a pruned prompt leaves of a
picture are those that a second question about it would find. Each picture is asked two questions; the second is
answered once with tokens chosen for itself, once with those that the first has left.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from btp.api.hosts import processor
from btp.api.plan import arm_for, words_of
from btp.core.pruner import Pruner
from btp.core.schedule import Schedule
from btp.core.trace import Call
from btp.engine.attach import attach
from btp.models.loading.load import Loaded
from btp.pruners.replay import Replay
from btp.results.stats import mean_interval, paired_p
from btp.runner.evaluation.data import Collate
from btp.tasks.pocketvqa.draw import paint
from btp.tasks.pocketvqa.layout import draw_layout
from btp.tasks.pocketvqa.questions import ABILITIES, ask
from btp.tasks.pocketvqa.task import PocketVQA
from btp.tasks.sample import Sample

OUT = Path(__file__).parent
METHODS = ("fastv", "pdrop", "attention", "dart", "transprune", "divprune", "diversity", "random")
SPLIT, STREAM, BATCH = "test", 7, 32
PICTURES = 240


def pairs(count: int, seed: int = 0) -> tuple[list[Sample], list[Sample]]:
    """Two questions of different abilities about each of `count` scenes of pocketvqa's test split."""
    first, second = [], []
    for index in range(count):
        rng = np.random.default_rng([seed, STREAM, index])
        one, two = None, None
        while one is None or two is None:
            things = draw_layout(rng)
            a, b = rng.choice([name for name in ABILITIES if name != "describe"], 2, replace=False)
            one, two = ask(a, things, rng), ask(b, things, rng)
        picture = Image.fromarray(paint(things, SPLIT, rng))
        for asked, ability, into in ((one, a, first), (two, b, second)):
            into.append(Sample(f"{SPLIT}-{index:05}", (picture,), asked[0], asked[1], str(ability)))
    return first, second


def answers(
    loaded: Loaded, samples: Sequence[Sample], pruner: Pruner | None, schedule: Schedule, new: int
) -> tuple[list[str], Call]:
    """What the model says to a batch, and what the engine did."""
    batch = Collate(loaded.processor)(samples).to(loaded.host.device, loaded.host.dtype)
    with torch.inference_mode(), attach(loaded.host, pruner, schedule) as trace:
        ids = loaded.host.generate(**batch.inputs, max_new_tokens=new)
    said = loaded.processor.tokenizer.batch_decode(
        ids[:, batch.inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return [text.strip() for text in said], trace.last


def late(
    loaded: Loaded, first: Sequence[Sample], second: Sequence[Sample], pruner: Pruner, schedule: Schedule, new: int
) -> tuple[list[str], list[str], list[float]]:
    """Answers to the second questions with tokens of their own, with those of the first, and how much these overlap."""
    _, seen = answers(loaded, first, pruner, schedule, 1)
    own, mine = answers(loaded, second, pruner, schedule, new)
    record = Replay({str(stage.site): stage.kept for stage in seen.stages})
    plain = Schedule(tuple(replace(stage, settings={}) for stage in schedule))
    said, _ = answers(loaded, second, record, plain, new)
    rows = zip(seen.stages[-1].kept, mine.stages[-1].kept, strict=True)
    overlap = [len({*a} & {*b}) / max(1, len({*a} | {*b})) for a, b in rows]
    return own, said, overlap


def measure(loaded: Loaded, methods: Sequence[str], budget: float, count: int) -> pd.DataFrame:
    """A row per method: accuracy on the second question both ways, the paired p, and the overlap of what was kept."""
    first, second = pairs(count)
    task = PocketVQA(SPLIT, 0, count)
    rows = []
    for method in methods:
        schedule = "uniform" if method in ("attention", "diversity", "random") else None
        arm = arm_for(loaded.host, words_of(method, schedule, budget, {}, ()), None, loaded.processor, None)
        pruner, own, said, overlap = arm.build(), [], [], []
        assert pruner is not None
        for at in range(0, count, BATCH):
            part = slice(at, at + BATCH)
            found = late(loaded, first[part], second[part], pruner, arm.schedule, 8)
            own, said, overlap = own + found[0], said + found[1], overlap + found[2]
        scores = [[task.score(s, p) for s, p in zip(second, texts, strict=True)] for texts in (own, said)]
        own_score, late_score = map(mean_interval, scores)
        rows.append(
            {
                "method": method,
                "tokens": arm.reached,
                "own": own_score.mean,
                "late": late_score.mean,
                "lost": own_score.mean - late_score.mean,
                "p": paired_p(*scores),
                "overlap": float(np.mean(overlap)),
            }
        )
    return pd.DataFrame(rows)


def table(frame: pd.DataFrame) -> str:
    """As Markdown."""
    lines = ["| method | visual tokens | asked itself, % | asked late, % | lost, points | p | same tokens, % |"]
    lines += ["|:--|--:|--:|--:|--:|--:|--:|"]
    for row in frame.itertuples():
        lines.append(
            f"| {row.method} | {row.tokens:.1f} | {100 * row.own:.1f} | {100 * row.late:.1f} | {100 * row.lost:+.1f} | "
            f"{row.p:.3f} | {100 * row.overlap:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Run the command; writes multi_turn.csv and multi_turn.md."""
    parser = argparse.ArgumentParser(prog="python -m experiments.multi_turn.measure", description=__doc__)
    parser.add_argument("--model", default="pocket", help="an embedded model, or the folder of a checkpoint")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--budget", type=float, default=0.5, help="share of the visual tokens, or a number of them")
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    frame = measure(_loaded(given.model), given.methods.split(","), given.budget, given.pictures)
    frame.to_csv(given.out / "multi_turn.csv", index=False)
    (given.out / "multi_turn.md").write_text(table(frame), encoding="utf-8")
    print(table(frame), end="")


def _loaded(model: str) -> Loaded:
    from transformers import AutoModelForImageTextToText

    import btp.models.loading.checkpoint as checkpoint
    from btp.models.lvlm import LVLM

    folder = Path(model) if Path(model).is_dir() else checkpoint.EMBEDDED / "checkpoints" / model
    return Loaded(LVLM(AutoModelForImageTextToText.from_pretrained(folder).eval()), processor(folder))


if __name__ == "__main__":
    main()
