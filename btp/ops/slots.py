"""Small pure functions on the slots of a K/V cache; [B, H, n] tensors hold a number for every slot of every head."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from btp.core.keep import on_device

EPSILON = 1e-6  # most that all rows together may add to a decayed sum that are left out


def of_groups(x: Tensor, groups: int, mean: bool = False) -> Tensor:
    """[B, Hkv, ...] sums (or means) over the query heads that share a key head, of [B, Hq, ...]; `groups` to one."""
    B, heads = x.shape[:2]
    grouped = x.view(B, heads // groups, groups, *x.shape[2:])
    return grouped.mean(2) if mean else grouped.sum(2)


def pooled(x: Tensor, kernel: int, how: str = "max") -> Tensor:
    """[B, H, n] the maximum (or mean) over the `kernel` slots around each, those that lie off the end left out (of a
    mean: counted as 0).

    Args:
        kernel: an odd number.
        how: "max" or "mean".
    """
    B, H, n = x.shape
    flat, half = x.reshape(B * H, 1, n), kernel // 2
    over = max_pool1d if how == "max" else avg_pool1d
    return over(flat, kernel, stride=1, padding=half).view(B, H, n)


def gather_slots(x: Tensor, index: Tensor) -> Tensor:
    """Entries of x [B, H, n, ...] at index [B, H', K], of which H or H' may be 1 for all heads."""
    heads = max(x.shape[1], index.shape[1])
    index = index.expand(-1, heads, -1)
    wide = index.view(*index.shape, *[1] * (x.dim() - 3)).expand(*index.shape, *x.shape[3:])
    return x.expand(-1, heads, *x.shape[2:]).gather(2, wide)


def page_of(valid: Tensor, page: int) -> Tensor:
    """[B, H, n] number of the page that each slot lies on: runs of `page` valid slots; anything of others."""
    return (valid.cumsum(2) - 1).clamp(min=0) // page


def page_sums(x: Tensor, valid: Tensor, page: int) -> Tensor:
    """[B, H, P] sums of x [B, H, n] over the pages of its valid slots, P pages in the longest row."""
    number = page_of(valid, page).expand_as(x)
    pages = -(-x.shape[2] // page)
    zero = x.new_zeros(*x.shape[:2], pages)
    return zero.scatter_add(2, number, x.masked_fill(~valid, 0.0))


def spread(probs: Tensor, rows_valid: Tensor) -> Tensor:
    """[B, H, n] mean of [B, H, R, n] over its real rows [B, R]."""
    counts = rows_valid.sum(1).clamp(min=1)[:, None, None]
    return probs.masked_fill(~rows_valid[:, None, :, None], 0.0).sum(2) / counts


def decayed(rows: int, decay: float, device: torch.device) -> Tensor:
    """[rows] float32 factors decay^(rows behind); 0^0 is 1."""
    return on_device(decay, device) ** torch.arange(rows - 1, -1, -1, device=device)


def rows_that_count(decay: float, rows: int) -> int:
    """Last rows outside of which a decayed sum of probabilities gets EPSILON at most.

    A row that lies w behind adds at most decay^w, all from there on decay^w / (1 - decay).
    """
    if decay in (0.0, 1.0):
        return 1 if decay == 0.0 else rows
    return min(rows, math.ceil(math.log(EPSILON * (1.0 - decay)) / math.log(decay)))
