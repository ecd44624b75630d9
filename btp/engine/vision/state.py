"""Token state in the vision tower: tokens alive of each picture, and their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from btp.core.host import FixedRows, Packed
from btp.core.keep import on_device
from btp.core.signals import Signal
from btp.core.site import Site
from btp.engine.hooks.attention_rows import gather_rows


@dataclass(frozen=True)
class Passed:
    """Snapshot of the pictures behind a stage, from which a prompt's record is made later.

    Attributes:
        site: Site of the stage; None for what left the tower.
        after: tokens alive per picture.
        slots: [P, K] those alive.
        size: [P, K] original tokens each stands for; None where nothing was merged here.
        cut, ordered: as those of `Pictures`, by then.
    """

    site: Site | None
    after: tuple[int, ...]
    slots: Tensor
    size: Tensor | None
    cut: bool
    ordered: bool


@dataclass
class Pictures:
    """The pictures of one pass through the tower. P pictures, N tokens each before any cut, N' alive.

    A generate() encodes pictures before it calls the model, so nothing here knows of prompts.

    Attributes:
        total: N.
        slots: [P, N'] which of the picture's tokens each is, in their order; -1 padded at the end.
        seats: [P, N'] row of the uncut tower at which each of them stands, ascending; -1 padded at the end.
        fixed: rows of the uncut tower that are no tokens, ascending.
        size: [P, N'] original tokens each stands for; 0 where padded.
        counts: alive per picture, known to the host.
        coord: [N, 3] (frame, row, column), the same for all.
        seen: declared signals, over all N tokens of a picture, with zeros for those that were gone.
        passed: what each stage did, in order.
        layers: (tokens that attended, tokens that passed the MLP) in each layer, class tokens included.
        entered: tokens of each picture that entered each layer.
        cut: something was withdrawn, merged or moved.
        merged: tokens flowed into each other.
        ordered: the tokens of a picture changed places.
        renumber: positions in the prompt close the gaps.
        features: [P, N, D] what the projector handed on; None until it ran.
        totals: tokens of each picture that a stage behind the tower counts; N, or what prompts have of a tile.
        present: [P, N] bool, tokens that prompts have, where they have not all: un-padding cuts tiles.
        arguments: the very object that the encoder's arguments were noted in; None where nothing was packed.
    """

    total: int
    slots: Tensor
    seats: Tensor
    fixed: tuple[int, ...]
    size: Tensor
    counts: tuple[int, ...]
    coord: Tensor
    seen: dict[Signal, Tensor] = field(default_factory=dict)
    passed: list[Passed] = field(default_factory=list)
    layers: list[tuple[int, int]] = field(default_factory=list)
    entered: list[tuple[int, ...]] = field(default_factory=list)
    cut: bool = False
    merged: bool = False
    ordered: bool = False
    renumber: bool = False
    features: Tensor | None = None
    totals: tuple[int, ...] = ()
    present: Tensor | None = None
    arguments: Mapping[str, Any] | None = None
    _memo: dict[str, Any] = field(default_factory=dict)  # where rows stand, until the next cut

    @classmethod
    def open(cls, pictures: int, grid: Sequence[int], fixed: FixedRows, device: torch.device) -> Pictures:
        """All tokens alive, in raster order on a grid of (rows, columns) or (frames, rows, columns).

        Args:
            fixed: Fixed rows of the tower.
        """
        frames, rows, columns = (1, *grid) if len(grid) == 2 else grid
        coord = torch.cartesian_prod(*(torch.arange(n, device=device) for n in (frames, rows, columns)))
        slots = torch.arange(len(coord), device=device).expand(pictures, len(coord))
        counts = (len(coord),) * pictures
        others = fixed_rows(fixed, len(coord))
        seats = sorted({*range(len(coord) + len(others))} - {*others})
        seats = on_device(seats, device).expand_as(slots)
        return cls(len(coord), slots, seats, others, torch.ones_like(slots), counts, coord, totals=counts)

    @property
    def length(self) -> int:
        """Rows of the uncut tower."""
        return self.total + len(self.fixed)

    @property
    def rows(self) -> int:
        """Rows of the tensors that the layers pass on now."""
        return self.slots.shape[1] + len(self.fixed)

    @property
    def uneven(self) -> bool:
        """Whether some pictures are padded."""
        return min(self.counts) < self.slots.shape[1]

    def arranged(self) -> tuple[Tensor, Tensor]:
        """[P, N'] the layers' row of each token and [P, F] that of each fixed row: tokens in their order among the
        fixed rows, padding behind the last patch.
        """
        if "arranged" not in self._memo:
            self._memo["arranged"] = self._arrange()
        return self._memo["arranged"]

    def _arrange(self) -> tuple[Tensor, Tensor]:
        P, n = self.slots.shape
        device = self.slots.device
        fixed = on_device(self.fixed, device, torch.long).expand(P, len(self.fixed))
        if self.in_front:
            return torch.arange(len(self.fixed), self.rows, device=device).expand(P, n), fixed
        behind = 2 * max({*range(self.length)} - {*self.fixed}) + 1
        key = torch.cat([(2 * self.seats).masked_fill(self.seats < 0, behind), 2 * fixed], 1)
        rank = key.argsort(dim=1, stable=True).argsort(dim=1)
        return rank[:, :n], rank[:, n:]

    @property
    def in_front(self) -> bool:
        """Whether all fixed rows stand in front of the tokens."""
        return self.fixed == tuple(range(len(self.fixed)))

    def places(self) -> Tensor:
        """[P, rows] row of the uncut tower at which each of the layers' rows stands; -1 where padded."""
        if "places" not in self._memo:
            fixed = self.arranged()[1]
            own = on_device(self.fixed, fixed.device, torch.long).expand_as(fixed)
            self._memo["places"] = self.laid_out(self.seats, own)
        return self._memo["places"]

    def origins(self) -> Tensor:
        """[P, rows] the layers' rows as they were in the uncut tower, whatever place a token has taken since; -1 where
        padded.
        """
        tokens, fixed = self.arranged()
        patches = on_device(sorted({*range(self.length)} - {*self.fixed}), tokens.device)
        own = on_device(self.fixed, tokens.device, torch.long).expand_as(fixed)
        return self.laid_out(patches[self.slots.clamp(min=0)].masked_fill(self.slots < 0, -1), own)

    def laid_out(self, tokens: Tensor, fixed: Tensor) -> Tensor:
        """[P, rows, ...] numbers of the tokens [P, N', ...] and of the fixed rows [P, F, ...] in the layers' order."""
        at = torch.cat(self.arranged(), 1)
        both = torch.cat([tokens, fixed], 1)
        return torch.empty_like(both).scatter(1, at.view(*at.shape, *[1] * (both.dim() - 2)).expand_as(both), both)

    def of_tokens(self, x: Tensor, axis: int) -> Tensor:
        """What there is of the tokens, of numbers over all of the layers' rows along `axis`."""
        if self.in_front:
            return x.narrow(axis, len(self.fixed), self.slots.shape[1])
        return gather_rows(x, self.arranged()[0], axis)

    def real_rows(self) -> Tensor:
        """[P, rows] bool: rows that are not padding."""
        return self.laid_out(self.slots >= 0, torch.ones_like(self.arranged()[1], dtype=torch.bool))

    def pack(self, arguments: Mapping[str, Any], packed: Sequence[Packed]) -> None:
        """Learn what the prompts will have of these pictures."""
        source = torch.cat([entry.source for entry in packed])
        present = torch.zeros(len(self.slots) * self.total, dtype=torch.bool)
        present[source[source >= 0].cpu()] = True
        present = present.view(len(self.slots), self.total)
        self.arguments, self.totals = arguments, tuple(present.sum(1).tolist())
        self.present = None if bool(present.all()) else present.to(self.slots.device)

    def shown(self) -> tuple[Pictures, Tensor | None]:
        """The tokens alive that prompts will have, and their rows [P, n], -1 padded; all of them where rows are None.

        Waits for the device where the tower cut before.
        """
        if self.present is None:
            return self, None
        real = self.present.gather(1, self.slots.clamp(min=0)) & (self.slots >= 0)
        counts = tuple(real.sum(1).tolist()) if self.cut else self.totals
        width = real.shape[1]
        rows = torch.arange(width, device=real.device).masked_fill(~real, width).sort(dim=1).values[:, : max(counts)]
        rows = rows.masked_fill(rows == width, -1)
        slots, seats = (gather_rows(x, rows).masked_fill(rows < 0, -1) for x in (self.slots, self.seats))
        size = gather_rows(self.size, rows)
        shown = replace(self, slots=slots, seats=seats, size=size, counts=counts, cut=True, present=None, _memo={})
        return shown, rows

    def state(self, site: Site | None = None, merging: bool = True) -> Passed:
        """Snapshot of the pictures now.

        Args:
            site: Site of the stage that was passed just now.
            merging: tokens flowed into each other there; sizes count then.
        """
        size = self.size if merging and (site is not None or self.merged) else None
        return Passed(site, self.counts, self.slots, size, self.cut, self.ordered)

    def take(self, keep: Tensor, counts: tuple[int, ...], sizes: Tensor | None) -> None:
        """Go on with the kept tokens, in the order of keep [P, K], -1 padded."""
        self._memo.clear()
        seats = self.seats.gather(1, keep.clamp(min=0)).masked_fill(keep < 0, self.length).sort(1).values
        self.seats = seats.masked_fill(seats == self.length, -1)
        self.slots = self.slots.gather(1, keep.clamp(min=0)).masked_fill(keep < 0, -1)
        self.size = gather_rows(self.size, keep) if sizes is None else sizes
        self.counts, self.cut = counts, True
        self.merged = self.merged or sizes is not None

    def which(self, ready: Sequence[Tensor] | None) -> list[int] | None:
        """Which of these pictures the prompt's are, in its order: beams repeat them; None where they are others.

        Args:
            ready: features that the prompt was given, one tensor a picture; None where the model encoded them itself.
        """
        if self.features is None:
            return None
        if ready is None:
            return list(range(len(self.slots)))
        storage, shape = self.features.untyped_storage().data_ptr(), self.features.shape[1:]
        if any(x.untyped_storage().data_ptr() != storage or x.shape != shape for x in ready):
            return None
        first, step = self.features.storage_offset(), self.features.stride(0)  # spread out, with a gap behind each
        return [(x.storage_offset() - first) // step for x in ready]

    def spread(self, x: Tensor, axis: int) -> Tensor:
        """What was seen of the tokens alive, over all tokens of a picture; zeros for the others."""
        if not self.cut:
            return x
        shape = list(x.shape)
        shape[axis] = self.total + 1  # padding goes behind the last one
        index = self.slots.masked_fill(self.slots < 0, self.total).to(x.device)
        return x.new_zeros(shape).scatter(axis, _along(index, x, axis), x).narrow(axis, 0, self.total)

    def alive(self, x: Tensor, axis: int) -> Tensor:
        """What was seen of all tokens of a picture, for those alive."""
        return gather_rows(x, self.slots, axis) if self.cut else x


def fixed_rows(fixed: FixedRows, tokens: int) -> tuple[int, ...]:
    """The fixed rows of a tower of so many tokens."""
    count = len(fixed(tokens))
    return tuple(fixed(tokens + count))


def rows_of(slots: Tensor, total: int) -> Tensor:
    """[P, total] which row each of a picture's tokens is; -1 for those that are gone."""
    rows = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
    table = rows.new_full((len(slots), total + 1), -1)
    return table.scatter(1, slots.masked_fill(slots < 0, total), rows)[:, :total]


def _along(index: Tensor, x: Tensor, axis: int) -> Tensor:
    """`index` [P, N'] in the shape of `x`, which has the tokens along `axis`."""
    shape = [1] * x.dim()
    shape[0], shape[axis] = index.shape
    return index.view(shape).expand(x.shape)
