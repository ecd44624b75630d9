"""Answers the task's questions with one arm, sample by sample to disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from btp.core.pruner import Pruner
from btp.core.trace import Call, Trace
from btp.engine.attach import attach
from btp.engine.checks.finite import NotFinite
from btp.models.loading.load import Loaded
from btp.models.lvlm import LVLM
from btp.models.vision_cache import PictureFeatures, Shelf
from btp.runner.arms import Arm
from btp.runner.devices import Machine
from btp.runner.evaluation.answer_store import ANSWER, Answers
from btp.runner.evaluation.batch_size import BatchSize, Pass
from btp.runner.evaluation.data import Batch, Batches, Feed
from btp.runner.evaluation.oracle_targets import aim
from btp.runner.evaluation.task_protocol import OwnWay
from btp.tasks.sample import Sample, Task


class Evaluate(Pass):
    """Generates greedily and appends one row per sample.

    Args:
        loaded: model and processor.
        pruner: the attached method, to pass targets to.
        trace: of the attached engine.
        task: says how long an answer may be.
        answers: where rows go.
        reference: the unpruned answers, for the divergence; None for the unpruned arm itself, which keeps its
            first distribution for the others.
        batches: makes batches again where they do not fit.
        size: of the batches, shrunk where memory ends.
        features: what to give the model in place of pictures; None gives it pictures.
    """

    def __init__(
        self,
        loaded: Loaded,
        pruner: Pruner | None,
        trace: Trace,
        task: Task,
        answers: Answers,
        reference: Answers | None,
        batches: Batches,
        size: BatchSize,
        features: PictureFeatures | None = None,
    ):
        super().__init__(batches, size)
        self.host = loaded.host
        self.tokenizer = loaded.processor.tokenizer
        self.pruner, self.trace, self.answers, self.reference = pruner, trace, answers, reference
        self.features = features
        self.max_new_tokens = task.max_new_tokens

    def step(self, batch: Batch) -> None:
        """Answer a batch and write it down before the next one starts."""
        samples = batch.samples
        aim(self.pruner, samples)
        self.trace.calls.clear()
        inputs = batch.to(self.host.device, self.host.dtype, non_blocking=True).inputs
        if self.features is not None:
            inputs = self.features.instead(inputs, batch.pictures)
        try:
            said, first = self.say(inputs, batch)
        except NotFinite as error:
            names = ", ".join(samples[row].id for row in error.rows if row < len(samples))
            raise ValueError(f"{error} It is sample {names}." if names else str(error)) from error
        first = first.cpu()
        names = [s.id for s in samples]
        if self.reference is None:
            self.answers.add_logits(names, first.numpy())
            drift = torch.zeros(len(names))
        else:
            unpruned = torch.stack([torch.from_numpy(self.reference.logits(i)) for i in names])
            drift = torch.nn.functional.kl_div(first, unpruned, reduction="none", log_target=True).sum(-1)
        call = self.trace[0]  # any later one started from the same prompts
        self.answers.add(
            [
                {"sample": s.id, **answer, "kl": round(float(kl), 6), **happened(call, row)}
                for row, (s, answer, kl) in enumerate(zip(samples, said, drift, strict=True))
            ]
        )

    def say(self, inputs: Mapping[str, Any], batch: Batch) -> tuple[list[dict[str, Any]], Tensor]:
        """Answer a batch.

        Args:
            inputs: of the batch, where the model is.

        Returns:
            What each sample's row holds of its answer, and [B, V] log-probabilities of the token behind the prompt.
        """
        with first_logits(self.host) as seen:
            ids = self.host.generate(**inputs, max_new_tokens=self.max_new_tokens)
        texts = self.tokenizer.batch_decode(ids[:, batch.inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [{"prediction": text.strip()} for text in texts], seen[0].float().log_softmax(-1)


@contextmanager
def first_logits(host: LVLM) -> Iterator[list[Tensor]]:
    """Collect [B, V] logits of the first answer token alone: those of all steps would fill a device."""
    seen: list[Tensor] = []

    def look(module: Any, args: Any, out: Any) -> None:
        if not seen:
            seen.append(out.logits[:, -1].clone())

    hook = host.model.register_forward_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


def happened(call: Call, row: int) -> dict[str, Any]:
    """What the engine did with one row of a batch, from its trace."""
    stages = [
        {
            "site": str(stage.site),
            "before": stage.before[row],
            "after": stage.after[row],
            "kept": stage.kept[row],
            "merged": stage.merged[row],
        }
        for stage in call.stages
    ]
    return {
        "total": call.total[row],
        "visual": [layer[row] for layer in call.visual],
        "tokens": [layer[row] for layer in call.tokens],
        "stages": stages,
    }


def answer(
    loaded: Loaded,
    arm: Arm,
    task: Task,
    samples: Sequence[Sample],
    feed: Feed,
    order: list[int],
    folder: Path,
    reference: Path | None,
    features: Shelf | None,
    machine: Machine,
    totals: Mapping[str, int] | None = None,
) -> dict[str, dict[str, Any]]:
    """Answer what is still open of `order`, and return the rows of all of it.

    Args:
        samples: of the task, of which `feed` makes batches; `order` holds indices into them, as they are batched.
        folder: of this arm's answers; `reference` that of the unpruned ones.
        features: where pictures behind the vision tower lie; None has every arm compute its own.
        totals: visual tokens of each sample without pruning, for an arm whose pictures are shrunk to fewer.
    """
    answers = Answers(folder, machine.rank, ANSWER)
    done = answers.rows()
    todo = machine.agree([i for i in order if samples[i].id not in done])  # others may have begun to write
    if todo:
        pruner = arm.build()
        shares = {}
        if arm.picture == "shrunk" and reference is not None:
            each = {i: (totals or {})[samples[i].id] for i in todo}
            shares = {i: arm.schedule[0].count(n) / n for i, n in each.items() if n}
        elif arm.picture == "none":
            shares = dict.fromkeys(todo, 0.0)
        ready = None
        if features is not None and blind_to_pictures(arm, pruner) and PictureFeatures.fits(loaded.host):
            ready = PictureFeatures(loaded.host, features, sum(len(s.images) for s in samples))
        batches = feed.batches(todo[machine.rank :: machine.world], machine.batch.used, shares)
        with attach(loaded.host, pruner, arm.schedule) as trace:
            unpruned = Answers(reference) if reference else None
            kind = task.evaluate if isinstance(task, OwnWay) else Evaluate
            module = kind(loaded, pruner, trace, task, answers, unpruned, batches, machine.batch, ready)
            machine.trainer(f"answer: {arm.name}", batches.total).test(module, batches, verbose=False)
        machine.sync()  # the other processes' rows count too
        done = answers.rows()
    return {samples[i].id: done[samples[i].id] for i in order}


def blind_to_pictures(arm: Arm, pruner: Pruner | None) -> bool:
    """Whether an arm leaves pictures as they are, and neither cuts nor looks inside the vision tower."""
    if arm.picture != "full" or any(stage.site.tower == "vision" for stage in arm.schedule):
        return False
    chosen = [stage for stage in arm.schedule if pruner is not None and not stage.withdraws_all]
    return not any(s.site.tower == "vision" for stage in chosen for s in pruner.needs(stage))
