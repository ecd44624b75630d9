"""Store of hidden states of tokens that a stage skipped, until they are revived."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.topk import marked


class Parked:
    """Slab of states in no order, each with the column it belongs to; free places are used again.

    Attributes:
        column: [B, C] column of each state, -1 where the place is free.
        states: [B, C, D]; of a free place, anything.
        counts: states held, per row, known to the host.
    """

    def __init__(self) -> None:
        self.column: Tensor | None = None
        self.states: Tensor | None = None
        self.counts: tuple[int, ...] = ()

    def put(self, column: Tensor, states: Tensor, counts: tuple[int, ...]) -> None:
        """Park states.

        Args:
            column: [B, P], -1 padded; none of them is parked already.
            states: [B, P, D].
            counts: real entries of each row.
        """
        if self.column is None or self.states is None:
            self.column, self.states, self.counts = column, states, counts
            return
        room = min(self.column.shape[1] - held for held in self.counts)
        if room < column.shape[1]:
            self._grow(max(column.shape[1] - room, self.column.shape[1] // 2))
        free = (self.column >= 0).to(torch.int8).argsort(dim=1, stable=True)[:, : column.shape[1]]  # [B, P]
        self.column = self.column.scatter(1, free, column)
        target = free[..., None].expand_as(states).to(self.states.device)
        self.states = self.states.scatter_(1, target, states.to(self.states))
        self.counts = tuple(a + b for a, b in zip(self.counts, counts, strict=True))

    def take(self, column: Tensor, total: int, counts: tuple[int, ...]) -> Tensor:
        """[B, R, D] states of parked columns, which are free from here on; of padding, anything.

        Args:
            column: [B, R] columns to give back, -1 padded.
            total: columns there are.
            counts: real entries of each row.
        """
        assert self.column is not None  # held by the invariant: whoever is seen was parked or computed
        assert self.states is not None
        place = torch.arange(self.column.shape[1], device=column.device).expand_as(self.column)
        at = column.new_zeros(len(column), total + 1)
        at = at.scatter(1, self.column.masked_fill(self.column < 0, total), place)
        found = at.gather(1, column.clamp(min=0))
        gone = marked(found.masked_fill(column < 0, -1), self.column.shape[1])
        self.column = self.column.masked_fill(gone, -1)
        self.counts = tuple(a - b for a, b in zip(self.counts, counts, strict=True))
        found = found.to(self.states.device)[..., None]
        return self.states.gather(1, found.expand(-1, -1, self.states.shape[-1]))

    def _grow(self, by: int) -> None:
        assert self.column is not None
        assert self.states is not None
        self.column = torch.cat([self.column, self.column.new_full((len(self.column), by), -1)], dim=1)
        more = self.states.new_zeros(len(self.states), by, self.states.shape[-1])
        self.states = torch.cat([self.states, more], dim=1)
