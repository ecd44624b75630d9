"""Answers the task's questions with one arm, sample by sample to disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from btp.core.pruner import Pruner
from btp.core.trace import Call, Trace
from btp.engine.attach import attach
from btp.models.features import PictureFeatures
from btp.models.load import Loaded
from btp.runner.arms import Arm
from btp.runner.batches import Batch, Collate, loader
from btp.runner.machine import Machine
from btp.runner.store import Answers
from btp.runner.targets import aim
from btp.tasks.sample import Sample, Task


class Evaluate(L.LightningModule):
    """Generates greedily and appends one row per sample.

    Args:
        loaded: model and processor.
        pruner: the attached method, to pass targets to.
        trace: of the attached engine.
        task: says how long an answer may be.
        answers: where rows go.
        reference: the unpruned answers, for the divergence; None for the unpruned arm itself, which keeps its
            first distribution for the others.
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
        features: PictureFeatures | None = None,
    ):
        super().__init__()
        self.lvlm = loaded.host.model
        self.generate = loaded.host.generate
        self.tokenizer = loaded.processor.tokenizer
        self.pruner, self.trace, self.answers, self.reference = pruner, trace, answers, reference
        self.features = features
        self.max_new_tokens = task.max_new_tokens

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Answer a batch and write it down before the next one starts."""
        samples = batch.samples
        aim(self.pruner, samples)
        inputs = batch.to(self.device, self.lvlm.dtype).inputs
        if self.features is not None:
            inputs = self.features.instead(inputs, [f"{s.id}-{i}" for s in samples for i in range(len(s.images))])
        out = self.generate(
            **inputs,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        texts = self.tokenizer.batch_decode(
            out.sequences[:, batch.inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        first = out.logits[0].float().log_softmax(-1).cpu()
        ids = [s.id for s in samples]
        if self.reference is None:
            self.answers.add_logits(ids, first.numpy())
            drift = torch.zeros(len(ids))
        else:
            unpruned = torch.stack([torch.from_numpy(self.reference.logits(i)) for i in ids])
            drift = torch.nn.functional.kl_div(first, unpruned, reduction="none", log_target=True).sum(-1)
        call = self.trace.last
        self.answers.add(
            [
                {"sample": s.id, "prediction": text.strip(), "kl": round(float(kl), 6), **happened(call, row)}
                for row, (s, text, kl) in enumerate(zip(samples, texts, drift, strict=True))
            ]
        )
        self.trace.calls.clear()


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
    order: list[int],
    folder: Path,
    reference: Path | None,
    features: Path | None,
    machine: Machine,
) -> dict[str, dict[str, Any]]:
    """Answer what is still open of `order`, and return the rows of all of it.

    Args:
        samples: of the task; `order` holds indices into them, as they are batched.
        folder: of this arm's answers; `reference` that of the unpruned ones.
        features: where pictures behind the vision tower lie; None has every arm compute its own.
    """
    rank, world = machine.rank, machine.world
    answers = Answers(folder, rank)
    done = answers.rows()
    todo = [i for i in order if samples[i].id not in done]
    if todo:
        pruner = arm.build()
        share = 1.0
        if arm.picture == "shrunk":
            first = next(iter(Answers(reference).rows().values())) if reference else None
            total = first["total"] if first else 1
            share = arm.schedule[0].count(total) / total
        ready = None
        if features is not None and blind_to_pictures(arm, pruner) and PictureFeatures.fits(loaded.host):
            ready = PictureFeatures(loaded.host, features, sum(len(s.images) for s in samples))
        batches = loader(samples, todo, Collate(loaded.processor, share), machine.batch, machine.workers, rank, world)
        with attach(loaded.host, pruner, arm.schedule) as trace:
            unpruned = Answers(reference) if reference else None
            module = Evaluate(loaded, pruner, trace, task, answers, unpruned, ready)
            machine.trainer(f"answer: {arm.name}").test(module, batches, verbose=False)
        machine.sync()  # the other processes' rows count too
        done = answers.rows()
    return {samples[i].id: done[samples[i].id] for i in order}


def blind_to_pictures(arm: Arm, pruner: Pruner | None) -> bool:
    """Whether an arm leaves pictures as they are, and neither cuts nor looks inside the vision tower."""
    if arm.picture != "full" or any(stage.site.tower == "vision" for stage in arm.schedule):
        return False
    chosen = [stage for stage in arm.schedule if pruner is not None and not stage.withdraws_all]
    return not any(s.site.tower == "vision" for stage in chosen for s in pruner.needs(stage))
