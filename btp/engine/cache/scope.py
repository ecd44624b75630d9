"""Scope of a cache stage (all, visual, text): slots that it may evict, and their indices among all slots."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from btp.engine.cache.layer_slots import Held
from btp.ops.slots import gather_slots


@dataclass(frozen=True)
class WayBack:
    """Map from the slots of a scope to all slots of a layer.

    Attributes:
        scope: all | visual | text.
        index: [B, H, m] where the slots shown lie among all; None where they are all of them.
    """

    scope: str
    index: Tensor | None

    def whole(self, held: Held, shown: Held, stay: Tensor, counts: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
        """Which of all slots stay, and how many per row; what the method said of them comes along."""
        self.carry(held, shown)
        if self.index is None:
            return stay, counts
        others = tuple(n - m for n, m in zip(held.alive, shown.alive, strict=True))
        inside = held.visual if self.scope == "visual" else (held.position >= 0) & ~held.visual
        heads = max(stay.shape[1], inside.shape[1])
        stays = ((held.position >= 0) & ~inside).expand(-1, heads, -1)
        kept = stay & (shown.position >= 0)
        spare = torch.cat([stays, stays[..., :1]], dim=2)  # padding of the index writes behind the slots
        target = self.index.masked_fill(shown.position < 0, held.size).expand(-1, heads, -1)
        stays = spare.scatter(2, target, kept.expand(-1, heads, -1))[..., : held.size]
        return stays, tuple(a + b for a, b in zip(counts, others, strict=True))

    def carry(self, held: Held, shown: Held) -> None:
        """Hand the method's numbers back to the slots and heads that they are of."""
        held.running = shown.running
        if self.index is None:
            held.carried = shown.carried
            return
        for name, x in shown.carried.items():
            heads = max(x.shape[1], self.index.shape[1])
            zero = x.new_zeros(x.shape[0], heads, held.size + 1)
            target = self.index.masked_fill(shown.position < 0, held.size).expand(-1, heads, -1)
            held.carried[name] = zero.scatter(2, target, x.expand(-1, heads, -1))[..., : held.size]

    def count(self, held: Held, counts: tuple[int, ...]) -> None:
        """Note how many visual slots are left, where the stage told them apart."""
        if self.scope == "visual":
            held.visual_alive = counts
        elif self.scope == "all":
            held.visual_alive = ()


def restricted(held: Held, scope: str) -> tuple[Held, WayBack]:
    """The slots of a scope, shorter rows padded in front, so that the newest token is the last where it is in scope.

    Args:
        scope: all | visual | text.
    """
    if scope == "all":
        shown = Held(held.position, held.visual, held.alive, held.visual_alive, dict(held.carried), held.running)
        return shown, WayBack(scope, None)
    real = held.position >= 0
    inside = held.visual if scope == "visual" else real & ~held.visual
    text = tuple(n - v for n, v in zip(held.alive, held.visual_alive, strict=True))
    counts = held.visual_alive if scope == "visual" else text
    index = inside.to(torch.int8).argsort(dim=2, stable=True)[..., held.size - max(counts) :]
    position = gather_slots(held.position, index).masked_fill(~gather_slots(inside, index), -1)
    carried = {name: gather_slots(x, index) for name, x in held.carried.items()}
    shown = Held(position, gather_slots(held.visual, index), counts, counts, carried, held.running)
    return shown, WayBack(scope, index)
