"""Which tokens of each picture are alive on their way through the vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from btp.core.signals import Signal
from btp.core.site import Site
from btp.engine.rows import gather_rows


@dataclass(frozen=True)
class Passed:
    """What one stage did with the pictures; a prompt's record is made of it later.

    Attributes:
        site: of the stage.
        before, after: tokens alive per picture.
        slots: [P, K] those alive behind it.
        size: [P, K] original tokens each stands for; None where nothing was merged here.
    """

    site: Site
    before: tuple[int, ...]
    after: tuple[int, ...]
    slots: Tensor
    size: Tensor | None


@dataclass
class Pictures:
    """The pictures of one pass through the tower. P pictures, N tokens each before any cut, N' alive.

    A generate() encodes pictures before it calls the model, so nothing here knows of prompts.

    Attributes:
        total: N.
        slots: [P, N'] which of the picture's tokens each row is, in the order of the rows; -1 padded at the end.
        size: [P, N'] original tokens each stands for; 0 where padded.
        counts: alive per picture, known to the host.
        coord: [N, 3] (frame, row, column), the same for all.
        seen: declared signals, over all N tokens of a picture, with zeros for those that were gone.
        passed: what each stage did, in order.
        layers: (tokens that attended, tokens that passed the MLP) in each layer, class tokens included.
        cut: something was withdrawn, merged or moved.
        merged: tokens flowed into each other.
        renumber: positions in the prompt close the gaps.
        features: [P, N, D] what the projector handed on; None until it ran.
    """

    total: int
    slots: Tensor
    size: Tensor
    counts: tuple[int, ...]
    coord: Tensor
    seen: dict[Signal, Tensor] = field(default_factory=dict)
    passed: list[Passed] = field(default_factory=list)
    layers: list[tuple[int, int]] = field(default_factory=list)
    cut: bool = False
    merged: bool = False
    renumber: bool = False
    features: Tensor | None = None

    @classmethod
    def open(cls, pictures: int, grid: tuple[int, int], device: torch.device) -> Pictures:
        """All tokens alive, row by row on a grid of (rows, columns)."""
        rows, columns = grid
        every = torch.arange(rows * columns, device=device)
        coord = torch.stack([torch.zeros_like(every), every // columns, every % columns], dim=1)
        slots = every.expand(pictures, len(every))
        return cls(len(every), slots, torch.ones_like(slots), (len(every),) * pictures, coord)

    def take(self, keep: Tensor, counts: tuple[int, ...], sizes: Tensor | None) -> None:
        """Go on with the kept tokens, in the order of keep [P, K], -1 padded."""
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


def order_in_prompt(slots: Tensor, picture: Tensor, slot: Tensor, total: int, width: int) -> Tensor:
    """[B, width] indices of a prompt's visual tokens that are alive, pictures in turn, each in its own order.

    Args:
        slots: [P, N'] tokens alive of each picture of the prompt, -1 padded.
        picture, slot: [B, N] of the prompt's visual tokens, -1 padded.
        total: tokens of a picture.
        width: tokens alive in the row that has most; shorter rows are -1 padded.
    """
    row = rows_of(slots, total)[picture.clamp(min=0), slot.clamp(min=0)]
    gone = (row < 0) | (picture < 0)
    order = (picture * total + row).masked_fill(gone, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)
    order = order[:, :width]
    return order.masked_fill(gone.gather(1, order), -1)


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
