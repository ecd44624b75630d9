"""Removal from the prompt of tokens that were pruned in the vision tower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from btp.core.keep import on_device
from btp.core.trace import StageRecord
from btp.engine.decide import Decision
from btp.engine.decoder.prefill import Run
from btp.engine.hooks.attention_rows import gather_rows
from btp.engine.vision.state import Passed, Pictures, rows_of


def hand_over(run: Run, pictures: Pictures, which: Sequence[int]) -> tuple[Decision, bool] | None:
    """Record what each stage of the tower did to the prompts, and say what goes from them now.

    A prompt that packs its pictures in another order than the tower's (tiles put together again) keeps its own order.
    Its tokens that are none of the tower's, as the newlines between rows of tiles, go with the first cut: of the rows
    that they end nothing is whole any more. Where stages gave the tokens a new order, tile follows tile in it.

    Args:
        run: the prompts, of which nothing was cut yet.
        pictures: Pictures that passed the tower.
        which: Index of the one that belongs to each picture of the prompts, in the prompts' order.

    Returns:
        The decision and whether positions close up; None for nothing. Waits for the device where pictures are packed.
    """
    packed = run.layout.source is not None
    picture, slot = run.pictures(run.ledger.now)
    states = [*pictures.passed, pictures.state()]
    whole = torch.zeros_like(picture).masked_fill(~run.ledger.now.visual_valid, -1)  # also what is no token of a tile
    rows = [
        whole if packed and not state.cut else _rows(state, picture, slot, which, pictures.total) for state in states
    ]
    if packed:
        counts = [tuple(row) for row in torch.stack([(row >= 0).sum(1) for row in rows]).tolist()]
    else:
        counts = [_per_row(run.ledger.total, pictures.total, state.after, which) for state in states]
    before = run.ledger.total
    for state, row, after in zip(states, rows, counts, strict=True):
        keep = _in_order(state, picture, row, max(after), pictures.total, packed)
        sizes = None if state.size is None else _sizes(state.size, picture, row, keep, which)
        if state.site is not None:
            run.call.stages.append(StageRecord(state.site, before, after, keep, sizes))
            before = after
    return (Decision(keep, after, None, sizes), pictures.renumber) if pictures.cut else None


def of_prompt(x: Tensor, which: Sequence[int]) -> Tensor:
    """Pictures as the prompt has them: repeated where it is a beam."""
    return x if list(which) == list(range(len(x))) else x[on_device(which, x.device)]


def _rows(state: Passed, picture: Tensor, slot: Tensor, which: Sequence[int], total: int) -> Tensor:
    """[B, N] which row of its picture each of the prompt's visual tokens is; -1 for those that are gone."""
    slots = of_prompt(state.slots, which).to(slot.device)
    return rows_of(slots, total)[picture.clamp(min=0), slot.clamp(min=0)].masked_fill(picture < 0, -1)


def _in_order(state: Passed, picture: Tensor, row: Tensor, width: int, total: int, packed: bool) -> Tensor:
    """[B, width] indices of a prompt's visual tokens that are alive, pictures in turn, each in its own order; -1 padded
    at the end. What is packed keeps its order unless it was given a new one.
    """
    place = picture * total + row
    if packed and not state.ordered:
        place = torch.arange(row.shape[1], device=row.device).expand_as(row)
    order = place.masked_fill(row < 0, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)[:, :width]
    return order.masked_fill(row.gather(1, order) < 0, -1)


def _sizes(size: Tensor, picture: Tensor, row: Tensor, keep: Tensor, which: Sequence[int]) -> Tensor:
    """[B, K] original tokens that each of the kept ones stands for."""
    size = of_prompt(size, which).to(row.device)
    return size[gather_rows(picture, keep), gather_rows(row, keep)].masked_fill(keep < 0, 0)


def _per_row(
    totals: tuple[int, ...], per_picture: int, counts: tuple[int, ...], which: Sequence[int]
) -> tuple[int, ...]:
    """Counts per picture, added up per row of the prompt."""
    each, at = [], 0
    for total in totals:
        end = at + total // per_picture
        each.append(sum(counts[i] for i in which[at:end]))
        at = end
    return tuple(each)
