"""Position-rebalanced top-k, against the bias of attention towards late tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from btp.core.keep import on_device


def rebalanced_top(
    scores: Tensor,
    k: Sequence[int],
    candidates: Sequence[int],
    split: Sequence[int],
    valid: Tensor | None = None,
) -> Tensor:
    """Take the `candidates` highest scores of a row, then of these the early tokens first.

    Rotary positions favour tokens near the end of a prompt. Of the candidates, those whose index is below
    `split` are kept in order of score, then the others, up to `k`. Ties go to the lowest index, NaN ranks
    last. No host sync.

    Args:
        scores: [B, N], higher = keep.
        k: B counts.
        candidates: B counts, each in [k, valid tokens of the row].
        split: B indices; early tokens are those in front of it.
        valid: [B, N] bool, real tokens in front; None = all.

    Returns:
        [B, max(k)] indices in the order of choice, shorter rows padded with -1 at the end.

    Raises:
        ValueError: a row's candidates are fewer than its k or more than N.

    Source: Li et al. 2025, arXiv:2505.22038, section 4.2. The paper splits at N / 2, the released code at the
    number of tokens the stage keeps.
    """
    N, device = scores.shape[1], scores.device
    if not all(0 <= a <= b <= N for a, b in zip(k, candidates, strict=True)):
        raise ValueError(
            f"rebalanced_top was asked for {tuple(k)} of {tuple(candidates)} candidates among {N} tokens. "
            "Candidates must lie between k and the tokens there are."
        )
    falling = -scores  # NaN sorts last
    if valid is not None:
        falling = falling.masked_fill(~valid, torch.nan)
    most = max(candidates, default=0)
    order = falling.argsort(dim=1, stable=True)[:, :most]  # [B, C]
    if device.type == "cpu":  # where reading is free and an operation costs more than what it does here
        return _read(order, k, candidates, split)
    return _queued(order, k, candidates, split)


def _read(order: Tensor, k: Sequence[int], candidates: Sequence[int], split: Sequence[int]) -> Tensor:
    """The choice among `order` [B, C], row by row."""
    widest, rows = max(k, default=0), []
    for row, count, most, early in zip(order.tolist(), k, candidates, split, strict=True):
        mine = row[:most]
        first = [i for i in mine if i < early] + [i for i in mine if i >= early]
        rows.append(first[:count] + [-1] * (widest - count))
    return torch.tensor(rows, dtype=torch.long).view(len(rows), widest)


def _queued(order: Tensor, k: Sequence[int], candidates: Sequence[int], split: Sequence[int]) -> Tensor:
    """The same, all rows at once and nothing read."""
    most, device = order.shape[1], order.device
    late = order >= _column(split, device)
    if min(candidates, default=0) < most:  # behind the late ones
        late = late.long().masked_fill(torch.arange(most, device=device) >= _column(candidates, device), 2)
    first = late.argsort(dim=1, stable=True)[:, : max(k, default=0)]
    found = order.gather(1, first)
    if min(k, default=0) == found.shape[1]:
        return found
    return found.masked_fill(torch.arange(found.shape[1], device=device) >= _column(k, device), -1)


def _column(numbers: Sequence[int], device: torch.device) -> Tensor | int:
    """[B, 1] one number per row; a plain int where all are the same, which costs no tensor."""
    if len(set(numbers)) == 1:
        return numbers[0]
    return on_device(tuple(numbers), device)[:, None]
