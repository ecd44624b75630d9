"""Evaluation loop: answers batch by batch, stored with their KL divergence from the unpruned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from btp.core.pruner import Pruner
from btp.core.trace import Call, Trace
from btp.engine.checks.finite import NotFinite
from btp.models.loading.load import Loaded
from btp.models.vision_cache import PictureFeatures
from btp.pruners.late import Late
from btp.runner.evaluation.answer_store import Answers
from btp.runner.evaluation.batch_size import BatchSize, Pass
from btp.runner.evaluation.data import Batch, Batches
from btp.runner.evaluation.model_inputs import model_inputs
from btp.runner.evaluation.oracle_targets import aim
from btp.tasks.sample import Task


class Evaluate(Pass):
    """Appends one row per sample; a subclass for each way of answering says what is in it.

    Args:
        loaded: model and processor.
        pruner: the attached method, to pass targets to.
        trace: Trace of the attached engine.
        task: Task of the samples.
        answers: Store that rows go to.
        reference: the unpruned answers, for the divergence; None for the unpruned arm itself, which keeps its
            distributions for the others.
        batches: makes batches again where they do not fit.
        size: Size of the batches, shrunk where memory ends.
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
        self.loaded, self.host = loaded, loaded.host
        self.pruner, self.trace, self.answers, self.reference = pruner, trace, answers, reference
        self.features = features

    def step(self, batch: Batch) -> None:
        """Answer a batch and write it down before the next one starts."""
        samples = batch.samples
        aim(self.pruner, samples, batch.clips)
        if isinstance(self.pruner, Late):
            self._ask_earlier(self.pruner, batch)
        self.trace.calls.clear()
        inputs = model_inputs(self.loaded, batch)
        if self.features is not None:
            inputs = self.features.instead(inputs, batch.pictures)
        try:
            said, first = self.say(inputs, batch)
        except NotFinite as error:
            names = ", ".join(samples[row].id for row in error.rows if row < len(samples))
            raise ValueError(f"{error} It is sample {names}." if names else str(error)) from error
        first = first.cpu()
        names = [s.id for s in samples]
        _check_numbers(first, names)
        if self.reference is None:
            self.answers.add_logits(names, first.numpy())
            drift = torch.zeros(len(names))
        else:
            unpruned = torch.stack([torch.from_numpy(self.reference.logits(i)) for i in names])
            drift = torch.nn.functional.kl_div(first, unpruned, reduction="none", log_target=True).sum(-1)
            while drift.dim() > 1:
                drift = drift.mean(-1)
        events = getattr(self.pruner, "events", None) or [None] * len(samples)
        call = self.trace[0]  # any later one started from the same prompts
        self.answers.add(
            [
                {"sample": s.id, **answer, "kl": round(float(kl), 6)}
                | happened(call, row, answer.get("answer_tokens"))
                | ({"events": events[row]} if events[row] else {})
                for row, (s, answer, kl) in enumerate(zip(samples, said, drift, strict=True))
            ]
        )

    def _ask_earlier(self, pruner: Late, batch: Batch) -> None:
        """Let the pruner choose by the questions that were asked before; it keeps to that from here on."""
        with pruner.listening():
            self.host.generate(**model_inputs(self.loaded, self.batches.earlier(batch.indices)), max_new_tokens=1)

    def say(self, inputs: Mapping[str, Any], batch: Batch) -> tuple[list[dict[str, Any]], Tensor]:
        """Answer a batch.

        Args:
            inputs: Inputs of the batch, where the model is.

        Returns:
            What each sample's row holds of its answer, and the log-probabilities by which answers are compared: [B, V],
            or [B, ..., V] where an answer has several, whose divergences are averaged.
        """
        raise NotImplementedError


def _check_numbers(first: Tensor, names: Sequence[str]) -> None:
    """Refuse answers that were read from NaN, of which any word is the likeliest."""
    lost = [name for name, row in zip(names, first.flatten(1).isnan().any(1).tolist(), strict=True) if row]
    if lost:
        raise ValueError(
            f"the model puts out NaN for sample {', '.join(lost)}, so that its answers mean nothing: it overflows, or "
            "its weights hold NaN. Try another model.dtype, or get the checkpoint anew."
        )


def happened(call: Call, row: int, forwards: int | None = None) -> dict[str, Any]:
    """What the engine did with one row of a batch, from its trace.

    Args:
        forwards: those that made this row's answer, of the batch's; None where all did.
    """
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
    } | (_held(call, row, forwards) | _stepped(call, row, forwards))


def _held(call: Call, row: int, forwards: int | None) -> dict[str, Any]:
    """Slots of the cache behind the prompt and over all steps, and how many left it per head; {} without one."""
    if not call.held:
        return {}
    mine = forwards or len(call.held_by_forward)
    evicted = sum(record.before[row] - record.after[row] for record in call.evicted if record.step < mine)
    over = call.slots_over(row, mine)
    return {"slots": round(call.slots_prefill[row], 4), "slots_avg": round(over, 4), "evicted": evicted}


def _stepped(call: Call, row: int, forwards: int | None) -> dict[str, Any]:
    """What stages that act in decode did in the prefill (step 0) and in each decode step; {} without any."""
    counts = ("entered", "computed", "revived", "parked", "waiting")
    steps = [
        {"step": step, "site": str(record.site)} | {name: getattr(record, name)[row] for name in counts}
        for step, records in enumerate(call.steps[:forwards])
        for record in records
    ]
    return {"steps": steps} if steps else {}
