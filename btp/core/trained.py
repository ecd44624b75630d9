"""The contract of a method that is trained: it owns modules, one per stage, and decides softly while they train."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signals
from btp.core.site import Site


@dataclass(frozen=True, eq=False)
class Soft:
    """Soft decision of a stage in training, where nothing is removed. B batch, N visual tokens of the prompt.

    Attributes:
        weight: [B, N] in [0, 1], with gradient: how much later layers see of each token.
        stays: [B, N] bool: what inference would keep by the same decision.
    """

    weight: Tensor
    stays: Tensor


@dataclass(frozen=True, eq=False)
class Masked:
    """One stage of a training forward.

    Attributes:
        stage: Stage asked about.
        weight, stays: as `Soft`, cumulated over this stage and those before it; 0 and False where padded.
        valid: [B, N] bool, visual tokens of the prompt.
    """

    stage: Stage
    weight: Tensor
    stays: Tensor
    valid: Tensor

    @property
    def total(self) -> Tensor:
        """[B] visual tokens before any pruning."""
        return self.valid.sum(1)

    @property
    def count(self) -> Tensor:
        """[B] sum of the weights, with gradient: how many tokens are left, softly."""
        return self.weight.sum(1)


class Trained(Pruner):
    """A method with modules of its own.

    A stage's module is looked up by its site. Without weights it is made when it is first asked for, with parameters
    drawn by `seed` and site: an untrained method decides the same in every run.

    Args:
        seed: Seed of untrained modules, and of what is drawn in training.

    Attributes:
        modules: Modules by site, "llm_layer_3" for llm.layer.3.
        width: Width of the hidden states that the modules are made for; None before there is one.
        origin: folder of the weights; None for untrained modules.
        progress: how far a training has come, from 0 to 1.
        loss_names: losses that `losses` returns.
    """

    loss_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, seed: int) -> None:
        self.seed, self.progress = seed, 0.0
        self.modules, self.width = nn.ModuleDict(), None
        self.origin: str | None = None

    @abstractmethod
    def make_module(self, width: int) -> nn.Module:
        """A stage's module with parameters drawn from torch's global generator.

        Args:
            width: Width of the hidden states.
        """

    @abstractmethod
    def soften(self, tokens: Tokens, signals: Signals, stage: Stage) -> Soft:
        """Soft decision for training, by the same module and signals as `select`.

        Args:
            tokens: all visual tokens of the prompt; `valid` marks those that inference would still have, in any order.
        """

    def ranking(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] with gradient, higher = keep: what a distillation teaches the stage's module.

        Raises:
            NotImplementedError: the modules rank no tokens.
        """
        raise NotImplementedError(f"the modules of pruner {self.name!r} rank no tokens.")

    @abstractmethod
    def aim(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] bool: what stays where the training's own aim says how much, hard and without noise."""

    @abstractmethod
    def losses(self, stages: Sequence[Masked], num_layers: int) -> dict[str, Tensor]:
        """Losses on what the stages decided, beside that of the answers, as scalars by `loss_names`."""

    def begin(self, sites: Iterable[Site], width: int) -> None:
        """Make the modules of these sites, where they are not there yet."""
        for site in sites:
            self._module(site, width)

    def module_of(self, stage: Stage, tokens: Tokens) -> nn.Module:
        """The module of a stage, on the device of its tokens.

        Raises:
            ValueError: the weights hold none for this site, or are for states of another width.
        """
        return self._module(stage.site, tokens.hidden.shape[-1]).to(tokens.hidden.device)

    def check(self, schedule: Schedule) -> None:
        """Refuse stages that the weights hold no module for."""
        super().check(schedule)
        if self.origin is None:
            return
        for i, stage in enumerate(schedule):
            if not stage.withdraws_all and key_of(stage.site) not in self.modules:
                raise ValueError(self._lacks(f"schedule.{i}.site is {stage.site}", stage.site))

    def _module(self, site: Site, width: int) -> nn.Module:
        if self.width not in (None, width):
            raise ValueError(
                f"the modules of pruner {self.name!r} are made for states of width {self.width}, but this model's have "
                f"{width}: they are another model's. Name weights that were trained with this one, or train anew "
                "(action=train)."
            )
        key = key_of(site)
        if key not in self.modules:
            if self.origin is not None:
                raise ValueError(self._lacks(f"a stage stands at {site}", site))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1000 * self.seed + max(site.layer, 0))
                self.modules[key] = self.make_module(width)
            self.width = width
        return self.modules[key]

    def _lacks(self, what: str, site: Site) -> str:
        known = ", ".join(key.replace("_", ".") for key in self.modules)
        return (
            f"{what}, but the weights of pruner {self.name!r} in {self.origin} were trained for {known}. Set the sites "
            "of pruner.schedule to these (budget.move=false leaves them where they are), or train anew for "
            f"{site}: action=train."
        )


def key_of(site: Site) -> str:
    """Name of a site's module; names of modules hold no dots."""
    return str(site).replace(".", "_")
