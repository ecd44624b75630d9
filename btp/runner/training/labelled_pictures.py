"""Trainings on labelled pictures or clips: foreground classification of patches, or the model's own loss."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from btp.engine.attach import attach
from btp.models.loading.load import Loaded
from btp.ops.token_classifier import TokenClassifier, accumulated_loss, box_foreground, patch_labels
from btp.runner.arms import Arm
from btp.runner.evaluation.data import Batch
from btp.runner.evaluation.oracle_targets import aim
from btp.runner.evaluation.ways.label_names import categories_of, names_of
from btp.runner.evaluation.ways.way import Way
from btp.runner.training.answers import key_of
from btp.runner.training.course import Course, Pace
from btp.runner.training.modules import share_gradients
from btp.tasks.sample import Sample


class Shown:
    """Batches of a step.

    Args:
        loaded: Model whose processor makes them.
        way: Way of answering of the samples' task.
        batch: samples of a step, over all processes.
        seed: Seed of the order, which is another one in every pass over the samples.
        rank, world: of this process, which makes every `world`-th row.
        tested: keys of samples that must not be trained on.
    """

    def __init__(
        self,
        loaded: Loaded,
        way: Way,
        batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        tested: Collection[str] = (),
    ) -> None:
        self.samples: Any = way.task
        self.collate, self.batch, self.seed = way.collate_once(loaded.processor), batch, seed
        self.rank, self.world, self.tested = rank, world, frozenset(tested)
        self._order = lru_cache(2)(self._shuffled)

    def draw(self, step: int) -> Batch:
        """This process's rows of a step.

        Raises:
            ValueError: a sample is one that is tested on.
        """
        places = range(step * self.batch + self.rank, (step + 1) * self.batch, self.world)
        samples = [self.samples[self._at(place)] for place in places]
        for sample in samples:
            if self.tested and key_of(sample) in self.tested:
                raise ValueError(
                    f"training sample {sample.id} is one of the test samples: same picture. Train on another split "
                    "(training.dataset.split, training.path), or test on another task."
                )
        return self.collate(samples)

    def _at(self, place: int) -> int:
        turn, at = divmod(place, len(self.samples))
        return int(self._order(turn)[at])

    def _shuffled(self, turn: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 78, turn]).permutation(len(self.samples))


class LookingCourse(Course):
    """What both courses share.

    Args:
        name: for messages.
        loaded: the model.
        learner: what trains.
        pace: Steps and rates of the training.
        shown: makes batches.
        decay: Weight decay, as AdamW's.
        workers: processes that draw batches ahead.
    """

    key = "pruner"

    def __init__(
        self, name: str, loaded: Loaded, learner: nn.Module, pace: Pace, shown: Shown, decay: float, workers: int
    ) -> None:
        self.name, self.loaded, self.learner, self.pace = name, loaded, learner, pace
        self.shown, self._decay, self.workers = shown, decay, workers

    def draw(self, step: int) -> Batch:
        """Samples of the step."""
        return self.shown.draw(step)

    def optimiser(self) -> Optimizer:
        """AdamW."""
        return AdamW(self.learner.parameters(), lr=self.pace.rate, weight_decay=self._decay)

    def share_gradients(self) -> None:
        """The mean over processes, which have equally many rows."""
        share_gradients(self.learner, self.shown.world)

    def not_finite(self, step: int, found: dict[str, float]) -> Exception:
        """Lower the rate."""
        listed = ", ".join(f"{key} {value:.3g}" for key, value in found.items())
        return ValueError(
            f"training {self.name}: the loss is not finite at step {step} ({listed}). Lower training.rate, which is "
            f"{self.pace.rate:g}; nothing was kept of this training."
        )

    def missed(self, means: dict[str, float]) -> Exception:
        """No such end is asked for."""
        raise AssertionError("this training ends with its steps")

    def placed(self, batch: Batch) -> Batch:
        """Where the model is."""
        return batch.to(self.loaded.host.device, self.loaded.host.dtype)


class ForegroundCourse(LookingCourse):
    """BAViT's token classifier, by boxes: a patch with any pixel inside one is foreground."""

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """`foreground`; shares of patches that are right, of foreground that is found, and of what is foreground."""
        batch = self.placed(batch)
        return foreground_losses(self.learner.to(self.loaded.host.device), batch)


def foreground_losses(classifier: TokenClassifier | nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The accumulative cross-entropy, and what a batch's patches are taken for."""
    pixels = batch.inputs["pixel_values"].float()
    high, wide = pixels.shape[-2:]
    sides = torch.tensor([wide, high, wide, high])
    inside = [box_foreground(torch.tensor(s.boxes).reshape(-1, 4) * sides, high, wide) for s in batch.samples]
    labels = patch_labels(torch.stack(inside), classifier.patch).to(pixels.device)  # type: ignore[arg-type]
    scores = classifier(pixels)
    guess = scores.argmax(-1)
    there = labels == 1
    return {
        "foreground": accumulated_loss(scores, labels),
        "right": (guess == labels).float().mean(),
        "recall": ((guess == 1) & there).sum() / there.sum().clamp(min=1),
        "share": there.float().mean(),
    }


class HostCourse(LookingCourse):
    """The model's own weights by its own loss, pruned as the arm says; in some steps whole, so that it stays able to.

    Args:
        arm: what is pruned.
        way: Way of answering of the samples' task.
        dense: share of the steps in which nothing is pruned.
    """

    def __init__(self, arm: Arm, way: Way, dense: float, *args: Any) -> None:
        super().__init__(*args)
        self.arm, self.dense, self.method = arm, dense, arm.build()
        self._targets = targets_of(way, self.loaded.host.labels)

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """`answer`: the mean loss, pruned or whole; in evaluation mode, so that nothing but selection is left out."""
        host, batch = self.loaded.host, self.placed(batch)
        host.model.eval()
        whole = np.random.default_rng([self.shown.seed, 79, step]).random() < self.dense
        aim(self.method, batch.samples)
        with nullcontext() if whole else attach(host, self.method, self.arm.schedule):
            out = host(**batch.inputs)
        labels = self._targets(batch.samples)
        loss = host_loss(host, out, labels)
        return {"answer": loss, "whole" if whole else "pruned": loss.detach()}


def host_loss(host: Any, out: Any, labels: Any) -> Tensor:
    """Cross-entropy of classes, or the set loss of detectors as the model's own class computes it."""
    if host.read == "classify":
        return F.cross_entropy(out.logits.float(), labels.to(out.logits.device))
    moved = [{key: value.to(out.logits.device) for key, value in each.items()} for each in labels]
    config = host.model.config
    loss, *_ = host.model.loss_function(out.logits, moved, host.device, out.pred_boxes, config, None, None)
    return loss


def targets_of(way: Way, labels: Mapping[int, str]) -> Callable[[list[Sample]], Any]:
    """What makes a batch's labels of its samples: [B] class numbers, or for each picture the numbers and boxes (x, y of
    the centre, width, height, in shares) of its objects.
    """
    if way.name == "classify":
        numbers = {name: number for number, name in names_of(labels, way.task).items()}
        return lambda samples: torch.tensor([numbers[s.reference] for s in samples])
    objects = {name: number for number, name in categories_of(labels, way.task).items()}

    def found(samples: list[Sample]) -> list[dict[str, Tensor]]:
        return [_objects(sample, objects) for sample in samples]

    return found


def _objects(sample: Sample, numbers: Mapping[str, int]) -> dict[str, Tensor]:
    known = [i for i, name in enumerate(sample.labels) if name in numbers]
    corners = torch.tensor([sample.boxes[i] for i in known]).reshape(-1, 4)
    low, high = corners[:, :2], corners[:, 2:]
    return {
        "class_labels": torch.tensor([numbers[sample.labels[i]] for i in known], dtype=torch.long),
        "boxes": torch.cat([(low + high) / 2, high - low], 1),
    }
