"""Measures the embedded model: its abilities, a blank picture, and how far pruning can hurt it.

    python -m experiments.pocket.measure --checkpoint btp/models/checkpoints/pocket

These are tests of the model, not of a method: exact match of the unpruned model, of a blank picture, with all
visual tokens withdrawn in front of each decoder layer, and with a random share kept in front of layer 2.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from btp.core.pruner import Pruner
from btp.core.schedule import Schedule, Stage
from btp.engine.attach import attach
from btp.models.load import Loaded, load
from btp.pruners.random import Random
from btp.runner.batches import Collate, by_length
from btp.tasks.pocketvqa.questions import ABILITIES
from btp.tasks.pocketvqa.task import PocketVQA
from btp.tasks.sample import Sample

Scores = dict[str, float]


def answers(
    loaded: Loaded,
    task: PocketVQA,
    samples: list[Sample],
    schedule: Schedule,
    pruner: Pruner | None,
    blank: bool,
    batch: int,
) -> Scores:
    """Mean score per ability, in percent."""
    scores = defaultdict(list)
    order = by_length(samples)
    collate = Collate(loaded.processor)
    with attach(loaded.host, pruner, schedule), torch.inference_mode():
        for start in range(0, len(order), batch):
            part = [samples[i] for i in order[start : start + batch]]
            inputs = collate(part).to(loaded.host.device).inputs
            if blank:
                grey = loaded.processor.image_processor(
                    Image.new("RGB", (96, 96), (110, 110, 110)), return_tensors="pt"
                )
                inputs["pixel_values"] = (
                    grey["pixel_values"].to(inputs["pixel_values"]).expand_as(inputs["pixel_values"])
                )
            out = loaded.host.generate(**inputs, max_new_tokens=task.max_new_tokens)
            texts = loaded.processor.tokenizer.batch_decode(
                out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            for sample, text in zip(part, texts, strict=True):
                scores[sample.ability].append(task.score(sample, text))
    return {k: round(100 * sum(v) / len(v), 1) for k, v in sorted(scores.items())}


def main() -> None:
    """Print everything as JSON, and write it where --out says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--samples", type=int, default=1800, help="for the unpruned model")
    parser.add_argument("--pruned-samples", type=int, default=800, help="for everything else, without descriptions")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="the unpruned model alone")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    config = {"weights": "pretrained", "dtype": "float32", "attention": "sdpa", "device_map": None}
    loaded = load(config, args.checkpoint, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    whole = PocketVQA(args.split, seed=0, size=args.samples)
    short = PocketVQA(args.split, seed=0, size=args.pruned_samples, abilities=[a for a in ABILITIES if a != "describe"])
    arms: dict[str, tuple[PocketVQA, Schedule, Pruner | None, bool]] = {"unpruned": (whole, Schedule(), None, False)}
    if not args.quick:
        arms["unpruned, short"] = (short, Schedule(), None, False)
        arms["blank picture"] = (short, Schedule(), None, True)
        for layer in range(1, loaded.host.num_layers):
            schedule = Schedule((Stage(f"llm.layer.{layer}", 0),))
            arms[f"withdraw all at llm.layer.{layer}"] = (short, schedule, None, False)
        for share in (0.5, 0.22, 0.1):
            schedule = Schedule((Stage("llm.layer.2", share),))
            arms[f"random {share} at llm.layer.2"] = (short, schedule, Random(seed=0, salt="content"), False)
    found: dict[str, object] = {"split": args.split, "samples": args.samples, "pruned_samples": args.pruned_samples}
    drawn = {task: [task[i] for i in range(len(task))] for task in (whole, short)}
    for name, task in {"chance": whole, "chance, short": short}.items():
        found[name] = {k: round(100 * v, 1) for k, v in sorted(task.chance(drawn[task]).items())}
    for name, (task, schedule, pruner, blank) in tqdm(arms.items()):
        found[name] = answers(loaded, task, drawn[task], schedule, pruner, blank, args.batch)
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
