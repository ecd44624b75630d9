"""The training of a pruner's modules: answers and the method's own losses say what to learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from btp.core.host import Host
from btp.core.trained import Trained
from btp.engine.hooks.arguments import Binding
from btp.runner.training.answers import IGNORED, Taught, Teach
from btp.runner.training.course import Course, Pace

ANSWER = "answer"
WORSE, MORE = 2.0, 1.0  # times the best mean so far, and so much more: a training that only gets there has diverged


class ModuleCourse(Course):
    """Trains the modules of a pruner.

    Args:
        name: Name of the pruner.
        host: the model.
        pruner: owns the modules, which are there.
        pace: Length and rates of the training.
        teach: makes batches.
        masked: one masked forward, as `btp.engine.training.masking.Masking`.
        decay: Weight decay, as AdamW's.
        workers: processes that draw batches ahead.
        host_rate: peak rate of the language model, where it trains too; None leaves it frozen.
    """

    key = "pruner"
    rate_key = "training.rate"

    def __init__(
        self,
        name: str,
        host: Host,
        pruner: Trained,
        pace: Pace,
        teach: Teach,
        masked: Callable,
        decay: float = 0.0,
        workers: int = 0,
        host_rate: float | None = None,
    ) -> None:
        self.name, self.pace, self.workers, self._host_rate = name, pace, workers, host_rate
        self.learner = pruner.modules
        if host_rate is not None:
            assert host.decoder is not None  # what it trains has one
            self.learner = nn.ModuleDict({"pruner": pruner.modules, "language_model": host.decoder})
        self.pruner, self._host, self._teach, self._masked, self._decay = pruner, host, teach, masked, decay
        self._best = math.inf

    def draw(self, step: int) -> Taught:
        """Samples of the step with their answers."""
        return self._teach.draw(step)

    def losses(self, batch: Taught, step: int) -> dict[str, Tensor]:
        """Cross-entropy of the answers, and the method's own; the noise of a step depends on seed and step alone."""
        self.pruner.progress = step / self.pace.steps
        torch.manual_seed((self.pruner.seed * 1_000_003 + step) * 64 + self._teach.rank)
        return masked_losses(self._host, self.pruner, self._masked, batch)

    def optimiser(self) -> Optimizer:
        """AdamW."""
        groups = [{"params": list(self.pruner.modules.parameters()), "lr": self.pace.rate}]
        if self._host_rate is not None and self._host.decoder is not None:
            groups.append({"params": list(self._host.decoder.parameters()), "lr": self._host_rate})
        return AdamW(groups, weight_decay=self._decay)

    def share_gradients(self) -> None:
        """The mean over processes, which have equally many rows."""
        share_gradients(self.learner, self._teach.world)

    def not_finite(self, step: int, found: dict[str, float]) -> Exception:
        """Lower the rate."""
        return ValueError(
            f"training {self.name}: the loss is not finite at step {step} ({_listed(found)}). Lower {self.rate_key}, "
            f"which is {self.pace.rate:g}, or set model.dtype=float32; nothing was kept of this training."
        )

    def watch(self, step: int, means: dict[str, float]) -> None:
        """Refuse a loss that only grows.

        Raises:
            ValueError: the mean of the weighted losses is far above the best one so far.
        """
        total = sum(weight * means.get(key, 0.0) for key, weight in self.pace.losses.items())
        if total > WORSE * self._best + MORE:
            raise ValueError(
                f"training {self.name} diverges: the loss was {self._best:.3g} and is {total:.3g} at step {step} "
                f"({_listed(means)}). Lower {self.rate_key}, which is {self.pace.rate:g}; nothing was kept of this "
                "training."
            )
        self._best = min(self._best, total)

    def missed(self, means: dict[str, float]) -> Exception:
        """No such end is asked for."""
        raise AssertionError("a training of modules ends with its steps")


def masked_losses(host: Any, pruner: Trained, masked: Callable, batch: Taught) -> dict[str, Tensor]:
    """Losses of one masked forward, and shares of tokens that its stages left.

    `answer` is the mean over samples of the mean cross-entropy of each one's answer, so that long ones weigh no more.
    """
    batch = batch.to(host.device, host.dtype)
    longest = batch.target.shape[1]
    short = {"logits_to_keep": longest + 1} if "logits_to_keep" in Binding(host.model) else {}
    output, stages = masked(batch.inputs, batch.prompt, **short)
    found = {ANSWER: answer_loss(output.logits[:, -longest - 1 : -1], batch.target)}
    if stages:
        found |= pruner.losses(stages, host.num_layers)
    for masked_stage in stages:
        kept = masked_stage.stays.sum(1) / masked_stage.total.clamp(min=1)
        found[f"kept {masked_stage.stage.site}"] = kept.float().mean()
    return found


def answer_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over rows of [B, A] of the mean cross-entropy of their tokens.

    Args:
        logits: [B, A, V], each of the token that is to come.
        target: [B, A] tokens, IGNORED where padded.
    """
    each = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="none")
    said = target != IGNORED
    return (each.view_as(target).sum(1) / said.sum(1).clamp(min=1)).mean()


def share_gradients(module: nn.Module, world: int) -> None:
    """Give the gradients of a module's parameters the mean over `world` processes."""
    if world == 1:
        return
    for parameter in module.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= world


def trainable(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:.3g}" for key, value in values.items())
