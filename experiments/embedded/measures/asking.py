"""Answers of the embedded models that answer in words, under one arm."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from btp.engine.attach import attach
from btp.models.loading.load import Loaded
from btp.pruners.oracle import Oracle
from btp.runner.evaluation.data import Collate, by_length
from btp.runner.evaluation.model_inputs import model_inputs
from btp.tasks.drawn import Drawn
from btp.tasks.sample import Sample, Task
from experiments.embedded.measures.controls import CHANCE, Arm, Scores, blank, card, load_embedded, percent, with_mean

MACRO = "macro"


def measure_asking(
    name: str,
    checkpoint: Path,
    task: Drawn,
    arms: Callable[[int], Iterable[Arm]],
    acceptance: Callable[[Scores, int], list[dict]],
    batch: int = 16,
) -> dict:
    """Score every arm, and hold the scores against what the model must be.

    Args:
        name: Of the recipe.
        checkpoint: Folder of the model.
        task: Its questions, all abilities in turn.
        arms: Controls for a decoder of so many layers; the first one is the unpruned model.
        acceptance: What is asked of the scores, for so many layers.
        batch: Questions a batch.

    Returns:
        scores (arm -> ability -> percent), acceptance, tables.
    """
    loaded, drawn = load_embedded(name, checkpoint), [task[i] for i in range(len(task))]
    layers = loaded.host.num_layers
    scores: Scores = {CHANCE: percent(with_mean(task.chance(drawn), MACRO))}
    for arm in tqdm(list(arms(layers)), desc="arms"):
        scores[arm.name] = percent(with_mean(answers(loaded, task, drawn, arm, batch), MACRO))
    return card(task, scores, acceptance(scores, layers))


@torch.inference_mode()
def answers(loaded: Loaded, task: Task, samples: list[Sample], arm: Arm, batch: int) -> dict[str, float]:
    """Mean score per ability, in [0, 1].

    Args:
        loaded: Model and processor.
        task: Scores answers.
        samples: All questions.
        arm: The setting.
        batch: Questions a batch.
    """
    scores = defaultdict(list)
    order = by_length(samples)
    collate = Collate(loaded.processor)
    with attach(loaded.host, arm.pruner, arm.schedule):
        for start in range(0, len(order), batch):
            part = [samples[i] for i in order[start : start + batch]]
            shares = [0.0 if arm.picture == "none" else 1.0] * len(part)
            inputs = model_inputs(loaded, collate([_seen(s, arm) for s in part], shares=shares))
            if isinstance(arm.pruner, Oracle):
                arm.pruner.set_targets([s.targets for s in part])
            out = loaded.host.generate(**inputs, max_new_tokens=task.max_new_tokens)
            texts = loaded.processor.tokenizer.batch_decode(
                out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            for sample, text in zip(part, texts, strict=True):
                scores[sample.ability].append(task.score(sample, text))
    return {ability: sum(found) / len(found) for ability, found in scores.items()}


def _seen(sample: Sample, arm: Arm) -> Sample:
    """The sample with the pictures and videos that the arm shows."""
    if arm.picture in ("whole", "none"):
        return sample
    images = tuple(_changed(image, arm) for image in sample.images)
    clips = tuple(tuple(_changed(frame, arm) for frame in clip) for clip in sample.clips)
    return replace(sample, images=images, clips=clips)


def _changed(picture: Image.Image, arm: Arm) -> Image.Image:
    if arm.picture == "blank":
        return blank(picture)
    side = max(1, round(picture.width * arm.share**0.5))
    return picture.resize((side, side), Image.Resampling.BICUBIC)
