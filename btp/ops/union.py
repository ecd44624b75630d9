"""Union of two selections, each token once, and no more than a row may keep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from btp.core.keep import on_device


def joined(
    chosen: Tensor, extra: Tensor, counts: Sequence[int], sure: Sequence[int], more: Sequence[int]
) -> tuple[Tensor, list[int]]:
    """`chosen`, and behind it what of `extra` is not in it yet, as far as each row's count goes. No host sync.

    Args:
        chosen: [B, M] indices in the order of choice, distinct but for -1, at most `counts` of a row.
        extra: [B, S] likewise; -1 counts for nothing.
        counts: B numbers, the most indices of a row.
        sure: B numbers, distinct indices that a row of `chosen` has for certain.
        more: the same of `extra`.

    Returns:
        [B, M'] indices in the order of choice, -1 where there is none; and how many distinct ones each row has for
        certain: exactly as many as it has on the CPU, where reading is free.
    """
    if chosen.device.type == "cpu":
        return _read(chosen, extra, counts)
    return _queued(chosen, extra, counts), [min(k, max(pair)) for k, *pair in zip(counts, sure, more, strict=True)]


def _read(chosen: Tensor, extra: Tensor, counts: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Row by row."""
    pairs = zip(chosen.tolist(), extra.tolist(), counts, strict=True)
    rows = [[i for i in dict.fromkeys([*mine, *more]) if i >= 0][:k] for mine, more, k in pairs]
    width = max(map(len, rows))
    padded = [[*row, *[-1] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.long).view(len(rows), width), [len(row) for row in rows]


def _queued(chosen: Tensor, extra: Tensor, counts: Sequence[int]) -> Tensor:
    """All rows at once and nothing read."""
    new = (extra >= 0) & ~(extra[:, :, None] == chosen[:, None]).any(2)
    every = counts[0] if len(set(counts)) == 1 else on_device(tuple(counts), chosen.device)
    room = every - (chosen >= 0).sum(1)
    fits = new & (new.cumsum(1) <= room[:, None])
    return torch.cat([chosen, extra.masked_fill(~fits, -1)], dim=1)
