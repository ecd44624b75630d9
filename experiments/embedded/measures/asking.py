"""Answers of the embedded models that answer in words, under one arm."""

from collections import defaultdict
from dataclasses import replace

import torch
from PIL import Image

from btp.engine.attach import attach
from btp.models.loading.load import Loaded
from btp.pruners.oracle import Oracle
from btp.runner.evaluation.data import Collate, by_length
from btp.runner.evaluation.model_inputs import model_inputs
from btp.tasks.sample import Sample, Task
from experiments.embedded.measures.controls import Arm

GREY = (110, 110, 110)


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
        return Image.new("RGB", picture.size, GREY)
    side = max(1, round(picture.width * arm.share**0.5))
    return picture.resize((side, side), Image.Resampling.BICUBIC)
