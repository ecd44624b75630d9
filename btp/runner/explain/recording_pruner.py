"""Pruner wrapper that records the scores and rules of each decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Stage
from btp.core.selection import Selection
from btp.core.signals import Signals
from btp.core.slots import Slots, SlotSelection
from btp.core.topk import marked
from btp.core.wrapper import Around
from btp.report.pages.explain_data import spans


@dataclass(frozen=True)
class Account:
    """What a pruner decided at one stage, and why. B rows, N tokens, on the CPU.

    Attributes:
        site: Site, as text.
        valid: [B, N] bool.
        index: [B, N] as in `Tokens`; so are picture and slot.
        kept: [B, N] bool.
        target: [B, N] index of the token that each flows into, -1 for none; None where nothing is merged.
        scores: [B, N] parts of the score, by name.
        rules: [B, N] bool, by name; of what stays, each token is in one. Empty where the pruner names none.
    """

    site: str
    valid: Tensor
    index: Tensor
    picture: Tensor
    slot: Tensor
    kept: Tensor
    target: Tensor | None
    scores: Mapping[str, Tensor]
    rules: Mapping[str, Tensor]


class Witness(Around):
    """Hand it to the engine in place of the pruner; it asks the same, and `accounts` grows by one per decision.

    Attributes:
        pruner: the method.
        accounts: Accounts of every stage at which it was asked, in order.
        ranked: what slots of a layer's cache were ranked by behind the prompt, of those that stayed and those that
            left, by layer.
    """

    def __init__(self, pruner: Pruner) -> None:
        super().__init__(pruner)
        self.accounts: list[Account] = []
        self.ranked: dict[int, str] = {}
        if hasattr(pruner, "evict"):  # by this the engine knows methods of the cache
            self.evict = self._evict

    def _evict(self, slots: Slots, signals: Signals, stage: Stage) -> SlotSelection:
        """The method's own, with what it ranked by on record."""
        selection = self.pruner.evict(slots, signals, stage)  # type: ignore[attr-defined]
        if slots.prefill and selection.keep is not None and selection.scores is not None:
            keep, shape = selection.keep, slots.position.shape
            stays = marked(keep.flatten(0, 1).long(), shape[2]).view(*keep.shape[:2], -1).expand(shape)
            scores = selection.scores.expand(shape).float()
            self.ranked[slots.layer] = spans(*(scores[x & slots.valid].tolist() for x in (stays, ~stays)))
        return selection

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """The method's own, with its reasons on record.

        Raises:
            ValueError: what it tells has not the form that `Pruner.explain` asks for, or is not what it does.
        """
        selection = self.pruner.select(tokens, signals, stage)
        said = self.pruner.explain(tokens, signals, stage)
        kept = marked(selection.keep.to(tokens.valid.device).long(), tokens.valid.shape[1])
        self._check(said, kept, tokens, stage)
        scores = {name: value.float().cpu() for name, value in said.items() if value.is_floating_point()}
        rules = {name: (value & tokens.valid).cpu() for name, value in said.items() if value.dtype == torch.bool}
        target = None if selection.merge is None else selection.merge.target.cpu()
        picture, slot = (
            (torch.full_like(tokens.index, -1) if x is None else x).cpu() for x in (tokens.picture, tokens.slot)
        )
        valid, index = tokens.valid.cpu(), tokens.index.cpu()
        self.accounts.append(Account(str(stage.site), valid, index, picture, slot, kept.cpu(), target, scores, rules))
        return selection

    def _check(self, said: Mapping[str, Tensor], kept: Tensor, tokens: Tokens, stage: Stage) -> None:
        who = f"explain() of pruner {self.name!r}"
        for name, value in said.items():
            if tuple(value.shape) != tuple(kept.shape) or not (value.is_floating_point() or value.dtype == torch.bool):
                raise ValueError(
                    f"{who} gives {name!r} as {value.dtype} of shape {tuple(value.shape)} at {stage.site}. Return "
                    f"floating scores or bool rules of shape {tuple(kept.shape)}."
                )
        rules = [value & tokens.valid for value in said.values() if value.dtype == torch.bool]
        if rules and not torch.equal(torch.stack(rules).sum(0), kept.long()):
            raise ValueError(
                f"{who} names rules at {stage.site} that do not add up to what select() keeps. Mark every kept token "
                "by exactly one rule, and no other token."
            )
