"""Token state of a prompt and its answer under stages of phase `both`: which are computed, and their slots.

Tokens are named by their column: a prompt's place as the host sees it (padding included), and behind the prompt one
column for each token of the answer. Columns rise in the order in which tokens see each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from btp.core.signals import Signal
from btp.core.topk import marked
from btp.engine.decoder.lazy.skipped_states import Parked
from btp.engine.decoder.prefill import Run

TABLES = ("position_ids", "position_embeddings")


@dataclass
class Behind:
    """The layers behind one stage, up to the next.

    Attributes:
        slots: [B, n] column of each of their K/V slots, in order of arrival; -1 where nobody may see it.
        parked: who stayed behind in front of them.
        whole: their slots are those that the host knows of: none left in the prefill, here or before.
        shares: what stayed of the tokens in front, per row, in the prefill.
        carried: numbers that the pruner gave to columns when it was asked last, [B, up to T] each.
    """

    slots: Tensor
    whole: bool
    shares: tuple[float, ...]
    parked: Parked = field(default_factory=Parked)
    carried: dict[str, Tensor] = field(default_factory=dict)


class State:
    """One prompt and its answer; new for each prefill. B rows, S prompt length, T columns so far, R rows under way.

    Attributes:
        valid: [B, T] bool, columns of tokens in front of the first stage.
        position: [B, T] place among the row's real tokens; -1 of padding.
        slots: [B, n] column of each K/V slot in the layers that run now.
        alive: [B, T] bool, columns that are seen there in this forward.
        rows: [B, R] column of each row there, ascending, -1 for filling.
        newest: [B, 1] column of the last token.
        whole: nothing is other than the host has it, in the layers that run now.
        plain: the same of this forward: whoever is alive is seen, and the host's own masks say so.
        even: every row sees every slot up to its own.
        sights: signals seen in this forward, over the slots.
        memo, masks: positions and masks of the layers that run now, by device.
        entered: (first layer, visual tokens, all tokens) behind each stage in the prefill, per row.
        first: [B, n] slots of the layers in front of the first stage.
        behind: Layers behind each stage passed, by its number.
        tables: what the host passes by position (ids; cos and sin), by column: [B, T, ...] each.
    """

    def __init__(self, run: Run) -> None:
        view = run.ledger.now
        S = run.prompt_length
        self.first = view.place.masked_fill(~view.attended, -1)
        self.valid = marked(self.first, S)
        real = run.ledger.valid
        self.position = (real.cumsum(1) - 1).masked_fill(~real, -1)
        self.behind: dict[int, Behind] = {}
        self.tables: dict[str, tuple[Tensor, ...]] = {}
        self._place, self._step = view.place, 0
        self._new = self.first
        self.entered: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []
        self._held: dict[int, tuple[int, ...]] = {}
        self._restart()

    def advance(self, step: int) -> None:
        """Begin the forward of a decode step; does nothing where it has begun.

        Args:
            step: Step of the answer, 1 for the first behind the prompt.
        """
        if step == self._step:
            return
        self._step, B, S = step, len(self.valid), self.valid.shape[1]
        self.valid = torch.cat([self.valid, self.valid.new_ones(B, 1)], dim=1)
        self.position = torch.cat([self.position, self.position.amax(1, keepdim=True) + 1], dim=1)
        self._new = self._place = self.first.new_full((B, 1), S)
        self.first = torch.cat([self.first, self._new], dim=1)
        self._restart()

    @property
    def total(self) -> int:
        """T, columns so far."""
        return self.valid.shape[1]

    def go_on(self, slots: Tensor, alive: Tensor, even: bool) -> None:
        """Enter the layers behind a stage, with the rows as they are."""
        self.slots, self.alive, self.even = slots, alive, even
        self.memo.clear()
        self.masks.clear()

    def hold(self, layer: int, computed: tuple[int, ...]) -> None:
        """Note how many tokens, per row, the layers from `layer` on computed in this forward."""
        before = self._held.get(layer, (0,) * len(computed))
        self._held[layer] = tuple(map(sum, zip(before, computed, strict=True)))

    def held(self, at: int) -> tuple[int, ...] | None:
        """Tokens that layer `at` computed so far, per row; None in front of the first stage."""
        return next((self._held[layer] for layer in sorted(self._held, reverse=True) if layer <= at), None)

    def row_of(self) -> Tensor:
        """[B, T] row of each column among those under way, -1 where it is none of them."""
        return _index(self.rows, self.total)

    def slot_of(self) -> Tensor:
        """[B, T] slot of each column in the layers that run now, -1 where it has none."""
        return _index(self.slots, self.total)

    def seen_slots(self) -> Tensor:
        """[B, n] column of each slot in the layers that run now, -1 where it is not seen in this forward."""
        seen = self.alive.gather(1, self.slots.clamp(min=0))
        return self.slots.masked_fill(~seen, -1)

    def by_position(self, mask: Tensor) -> Tensor:
        """[B, T] a bool mask over columns as one over positions."""
        return marked(self.position.masked_fill(~mask, -1), self.total)

    def collect(self, arguments: Mapping[str, Any]) -> None:
        """Keep what the host passes by position for the tokens of this forward, once a forward.

        Args:
            arguments: Arguments of the layer behind the first stage.
        """
        for name in TABLES:
            given = arguments.get(name)
            if given is None:
                continue
            parts = given if isinstance(given, tuple) else (given,)
            placed = tuple(self._by_column(part, name) for part in parts)
            old = self.tables.get(name)
            self.tables[name] = placed if old is None else tuple(map(_joined, old, placed))

    def tables_of_rows(self, device: torch.device) -> dict[str, Any]:
        """Collected masks, positions and RoPE tables for the rows under way, as a layer takes them."""
        row = self.rows.clamp(min=0)
        found: dict[str, Any] = {}
        for name, parts in self.tables.items():
            taken = tuple(_take(part, row.to(part.device)).to(device) for part in parts)
            found[name] = taken if name == TABLES[1] else taken[0]
        return found

    def _restart(self) -> None:
        self.alive, self.rows, self.slots = self.valid, self._new, self.first
        self.whole = self.plain = self.even = True
        self.sights: dict[Signal, Tensor] = {}
        self.memo: dict[torch.device, dict[str, Any]] = {}
        self.masks: dict[torch.device, Tensor | None] = {}
        columns = torch.arange(self.total, device=self.valid.device)
        self.newest = columns.expand_as(self.valid).masked_fill(~self.valid, -1).amax(1, keepdim=True)

    def _by_column(self, table: Tensor, name: str) -> Tensor:
        if table.dim() not in (2, 3) or (name == TABLES[1] and table.dim() != 3):
            raise RuntimeError(
                f"{name} of shape {tuple(table.shape)} reached a decoder layer; [B, S] or [B, S, d] was expected. "
                "This family needs an adapter in btp.models."
            )
        place = self._place.to(table.device)
        table = table.expand(len(place), *table.shape[1:])
        if self._step:
            return table
        spare = self.total  # filling writes behind the columns
        at = place.masked_fill(place < 0, spare)
        at = at if table.dim() == 2 else at[..., None].expand_as(table)
        return table.new_zeros(len(place), spare + 1, *table.shape[2:]).scatter(1, at, table)[:, :spare]


def _index(columns: Tensor, total: int) -> Tensor:
    """[B, total] entry of each column in `columns` [B, n], -1 where it has none."""
    entry = torch.arange(columns.shape[1], device=columns.device).expand_as(columns)
    found = torch.full((len(columns), total + 1), -1, device=columns.device)
    return found.scatter(1, columns.masked_fill(columns < 0, total), entry)[:, :total]


def _joined(old: Tensor, new: Tensor) -> Tensor:
    return torch.cat([old, new.to(old)], dim=1)


def _take(table: Tensor, row: Tensor) -> Tensor:
    if table.dim() == 2:
        return table.gather(1, row)
    return table.gather(1, row[..., None].expand(-1, -1, table.shape[-1]))
