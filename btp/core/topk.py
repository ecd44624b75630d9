"""Top-k of ragged rows, with ties to the lowest index, so that runs repeat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from btp.core.keep import on_device


def top_k(scores: Tensor, k: Sequence[int], valid: Tensor | None = None, distinct: bool = False) -> Tensor:
    """Indices of the k[b] highest scores of each row b, ascending.

    Ties go to the lowest index. No host sync. NaN counts as the lowest score.

    Args:
        scores: [B, N], higher = keep.
        k: B counts, each at most the row's valid entries.
        valid: [B, N] bool, real entries in front; None = all.
        distinct: Whether no two real entries of a row are equal, as `untied` leaves them: then nothing is sorted but
            what stays.

    Returns:
        [B, max(k)] int64, shorter rows padded with -1 at the end.

    Raises:
        ValueError: the counts do not match the rows, or exceed N.
    """
    rows, n = scores.shape
    if len(k) != rows:
        raise ValueError(f"top_k got {len(k)} counts for {rows} rows of scores. Pass one count per row.")
    widest = max(k, default=0)
    if widest > n or min(k, default=0) < 0:
        raise ValueError(f"top_k was asked for {tuple(k)} of {n} scores. Counts must lie in 0..{n}.")
    if scores.is_floating_point():
        lowest = -torch.inf
        scores = scores.masked_fill(scores.isnan(), lowest)
    else:
        lowest = torch.iinfo(scores.dtype).min
    if valid is not None:
        scores = scores.masked_fill(~valid, lowest)
    even = min(k, default=0) == widest
    if distinct:
        order = scores.topk(widest, dim=1, sorted=not even).indices
    else:
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :widest]
    if even:
        return order.sort(dim=1).values
    unused = torch.arange(widest, device=order.device) >= on_device(tuple(k), order.device)[:, None]
    order = order.masked_fill(unused, n).sort(dim=1).values
    return order.masked_fill(order == n, -1)


def untied(scores: Tensor) -> Tensor:
    """[B, N] the order of integer scores without ties, which went to the lowest index: |scores| * N fits into int64."""
    n = scores.shape[1]
    return torch.add(torch.arange(n - 1, -1, -1, device=scores.device), scores, alpha=n)


def keep_best(scores: Tensor, k: Sequence[int], valid: Tensor, alive: Sequence[int]) -> Tensor:
    """Top-k of each head: [B, H, max(k)] ascending indices of the k[b] highest scores, -1 padded at the end.

    Where every row lets one entry go, nothing is sorted.

    Args:
        scores: [B, H or 1, n], higher = keep.
        k: per row.
        valid: [B, H, n] bool, the same count in each head of a row.
        alive: Number of real tokens, per row.
    """
    B, H, n = scores.shape
    valid = valid[:, :H]
    if set(k) == {n - 1} and set(alive) == {n}:
        # the last of the lowest goes, as the lowest index stays among equals
        worst = n - 1 - scores.flip(-1).argmin(-1, keepdim=True)
        rest = torch.arange(n - 1, device=scores.device)
        return rest + (rest >= worst)
    each = [count for count in k for _ in range(H)]
    return top_k(scores.flatten(0, 1), each, valid.flatten(0, 1)).view(B, H, -1)


def lowest(scores: Tensor) -> Tensor:
    """Scores in which a token that has none (-inf) gets the lowest finite number: it goes first, and is ranked."""
    return scores.clamp(min=torch.finfo(scores.dtype).min)


def unscored(scores: Tensor) -> Tensor:
    """Inverse of `lowest`, for displays of scores: -inf for the lowest finite number."""
    return scores.masked_fill(scores == torch.finfo(scores.dtype).min, -torch.inf)


def marked(index: Tensor, n: int) -> Tensor:
    """[B, n] bool, true at each row's `index` [B, K]; -1 marks nothing."""
    found = torch.zeros(len(index), n + 1, dtype=torch.bool, device=index.device)
    return found.scatter(1, index.masked_fill(index < 0, n), True)[:, :n]
