"""Attention distillation: modules learn to rank tokens as deeper layers of the unpruned model attend to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.site import Site
from btp.core.trained import Trained
from btp.runner.training.answers import Taught
from btp.runner.training.modules import ModuleCourse

LOSS = "distil"


class AttentionTeacher(Pruner):
    """Keeps every token, and holds the rankings of a trained pruner against the text's attention in deeper layers.

    Args:
        trained: the pruner whose modules learn.
        schedule: its stages.
        layers: first layer that teaches, and the one behind the last.

    Attributes:
        schedule: stages to attach it with.
    """

    def __init__(self, trained: Trained, schedule: Schedule, layers: tuple[int, int]) -> None:
        self.trained, self.layers = trained, layers
        self.mine = {stage.site: stage for stage in schedule}
        self.end = Site.parse(f"llm.layer.{layers[1]}")
        sites = sorted({*self.mine, self.end})
        self.schedule = Schedule(tuple(Stage(site, 1.0) for site in sites))
        self._rankings: list[Tensor] = []
        self._attended: Tensor | None = None

    @property
    def name(self) -> str:
        """The pruner's."""
        return self.trained.name

    def needs_grid(self, stage: Stage) -> bool:
        """Where the pruner does."""
        return stage.site in self.mine and self.trained.needs_grid(self.mine[stage.site])

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """What the pruner reads, and behind the layers that teach what the text attends to in them."""
        own = self.trained.needs(self.mine[stage.site]) if stage.site in self.mine else ()
        return (*own, *(self._taught_by if stage.site == self.end else ()))

    @property
    def _taught_by(self) -> tuple[Signal, ...]:
        return tuple(Signal("attention", Site.parse(f"llm.layer.{at}"), "text") for at in range(*self.layers))

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Everything stays."""
        if stage.site in self.mine:
            with torch.enable_grad():
                found = self.trained.ranking(tokens, signals, self.mine[stage.site]).float()
                self._rankings.append(found.masked_fill(~tokens.valid, -torch.inf))
        if stage.site == self.end:
            real = signals.rows_valid(self._taught_by[0])[:, None, :, None]  # [B, 1, T, 1]
            seen = [(signals[s] * real).amax(2).mean(1).to(real.device) for s in self._taught_by]  # [B, N] a layer
            self._attended = torch.stack(seen).mean(0).float() * tokens.valid
        every = torch.arange(tokens.valid.shape[1], device=tokens.valid.device).expand_as(tokens.valid)
        return Selection(every.masked_fill(~tokens.valid, -1))

    def loss(self) -> Tensor:
        """Mean over stages and rows of the divergence KL(attention || softmax of the ranking), of the last forward."""
        rankings, attended = self._rankings, self._attended
        self._rankings, self._attended = [], None
        if attended is None:  # no row has a picture
            return torch.stack([p.sum() for p in self.trained.modules.parameters()]).sum() * 0.0
        aim = attended / attended.sum(1, keepdim=True).clamp(min=1e-12)  # [B, N]
        each = []
        for found in rankings:
            aim = aim.to(found.device)
            divergence = aim * (aim.clamp(min=1e-12).log() - found.log_softmax(1))
            each.append(divergence.masked_fill(aim == 0, 0.0).sum(1).mean().to(attended.device))
        return torch.stack(each).mean()


class Distillation(ModuleCourse):
    """Trains the modules of a pruner on a teacher's loss; nothing is masked, and no gradient passes the model.

    `masked` of the class is here what runs a forward and returns the loss.
    """

    rate_key = "training.distil.rate"

    def losses(self, batch: Taught, step: int) -> dict[str, Tensor]:
        """The teacher's."""
        host: Any = self._host
        return {LOSS: self._masked(prompts_of(batch.to(host.device, host.dtype)))}


def prompts_of(batch: Taught) -> dict[str, Tensor]:
    """The batch's inputs without the answers."""
    length = batch.prompt.shape[1] - batch.target.shape[1]
    shape = batch.prompt.shape
    return {k: v[:, :length] if v.shape[:2] == shape and v.dim() == 2 else v for k, v in batch.inputs.items()}


def teaching_layers(
    settings: Mapping[str, Any] | None, name: str, pruner: Trained, num_layers: int
) -> tuple[int, int] | None:
    """The layers that teach, counted from 0: the first, and the one behind the last; None where there is no
    distillation.

    Args:
        settings: `training.distil`.
        name: Name of the pruner.

    Raises:
        ValueError: the pruner's modules rank no tokens, or these are no layers of the model.
    """
    if settings is None or not settings["steps"]:
        return None
    if type(pruner).ranking is Trained.ranking:
        raise ValueError(
            f"training.distil.steps is {settings['steps']}, but the modules of pruner {name!r} do not rank "
            "tokens, so attention has nothing to teach them. Set training.distil.steps=0."
        )
    first, end = settings["layers"]
    start, stop = round(first * num_layers), round(end * num_layers)
    if not 0 <= start < stop < num_layers:
        raise ValueError(
            f"training.distil.layers is {list(settings['layers'])}, shares of the depth between which layers teach: of "
            f"{num_layers} layers that is {start} up to {stop}, and there must be one, and one behind it. Write other "
            "shares, the first one lower, or set training.distil.steps=0."
        )
    return start, stop
