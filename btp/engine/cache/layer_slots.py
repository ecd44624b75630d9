"""Slots of one layer's K/V cache: token of each slot, and the method's numbers that travel with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from btp.ops.slots import gather_slots


@dataclass(eq=False)
class Held:
    """Slots of one layer. B rows, H heads (1 as long as all hold the same), n slots; changed in place as a run goes on.

    Attributes:
        position: [B, H, n] place in the row's unpruned sequence, -1 without a token.
        visual: [B, H, n] bool.
        alive: slots with a token, per row and head; visual_alive the visual ones among them, where the stage's scope
            tells them apart.
        carried: [B, H, n] numbers of the method.
        running: [B, H, ...] numbers of the method that are of a head and not of its slots.
    """

    position: Tensor
    visual: Tensor
    alive: tuple[int, ...]
    visual_alive: tuple[int, ...]
    carried: dict[str, Tensor] = field(default_factory=dict)
    running: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """n."""
        return self.position.shape[2]

    @property
    def even(self) -> bool:
        """Whether every slot holds a token."""
        return min(self.alive) == self.size

    def grow(self, position: Tensor) -> None:
        """One more token per row at `position` [B, 1]."""
        B, H, _ = self.position.shape
        self.position = torch.cat([self.position, position[:, None].expand(B, H, 1)], dim=2)
        self.visual = torch.cat([self.visual, self.visual.new_zeros(B, self.visual.shape[1], 1)], dim=2)
        self.alive = tuple(n + 1 for n in self.alive)
        self.carried = {k: torch.cat([x, x.new_zeros(*x.shape[:2], 1)], dim=2) for k, x in self.carried.items()}

    def evict(self, cache: object, stay: Tensor, counts: tuple[int, ...], in_place: bool) -> Tensor:
        """Evict all slots that do not stay, here and in the cache.

        Args:
            cache: the layer's cache, with keys and values [B, Hkv, n, d].
            stay: [B, H', n] bool, of slots with a token; H' 1 for all heads.
            counts: how many stay, per row.
            in_place: where one entry leaves of every row, the last one takes its place, and nothing else moves;
                otherwise all stand in order behind it, shorter rows filled in front.

        Returns:
            [B, H', G] positions of what left, -1 padded.
        """
        n, K = self.size, max(counts)
        single = all(alive - count <= 1 for alive, count in zip(self.alive, counts, strict=True))
        if in_place and n - 1 == K and single:
            gone = self._swap(cache, stay)
        else:
            gone = self._gather(cache, stay, n - K, n - min(counts))
        self.alive = counts
        return gone

    def _gather(self, cache: object, stay: Tensor, first: int, most: int) -> Tensor:
        order = stay.to(torch.int8).argsort(dim=2, stable=True)  # what leaves, then what stays, each in order
        left = order[..., :most]
        places = gather_slots(self.position, left)
        gone = places.masked_fill(gather_slots(stay, left), -1)
        kept = order[..., first:]
        self.position = gather_slots(self.position, kept).masked_fill(~gather_slots(stay, kept), -1)
        self.visual = gather_slots(self.visual, kept)
        self.carried = {name: gather_slots(x, kept) for name, x in self.carried.items()}
        for name in ("keys", "values"):
            setattr(cache, name, gather_slots(getattr(cache, name), kept))
        return gone

    def _swap(self, cache: object, stay: Tensor) -> Tensor:
        n = self.size
        real = self.position >= 0
        leaves = (~stay).to(torch.int8) + (real & ~stay).to(torch.int8)  # a token before filling
        victim = leaves.argmax(2, keepdim=True)
        gone = gather_slots(self.position, victim)
        for name in ("keys", "values"):
            x = getattr(cache, name)
            wide = victim.expand(-1, x.shape[1], -1)[..., None].expand(-1, -1, 1, x.shape[3])
            setattr(cache, name, x.scatter_(2, wide, x[:, :, n - 1 :].clone())[:, :, : n - 1])
        self.position = _moved(self.position, victim)
        self.visual = _moved(self.visual, victim)
        self.carried = {name: _moved(x, victim) for name, x in self.carried.items()}
        return gone


def _moved(x: Tensor, victim: Tensor) -> Tensor:
    """x [B, H, n] without the entry at `victim` [B, H', 1], the last one in its place."""
    heads = max(x.shape[1], victim.shape[1])
    x = x.expand(-1, heads, -1)
    return x.scatter(2, victim.expand(-1, heads, -1), x[..., -1:])[..., :-1]
