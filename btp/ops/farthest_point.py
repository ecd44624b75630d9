"""Farthest-point sampling: a set of tokens in which each lies as far as possible from all others.

The state is one vector, the similarity of every token to its nearest chosen one. A pick compares it with one
more row and takes the least, so that k picks cost O(k N) beside the similarities. What is the same for both ways of
picking stands here: on the CPU, where reading a value is free (`picks_read`), and on a device, where it would make the
host wait (`picks_queued`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from btp.ops.farthest_point_cpu import read
from btp.ops.farthest_point_cuda import queued

DISTANCES = ("cosine", "l1", "l2")


def farthest_points(
    x: Tensor,
    seed: Tensor,
    k: int | Sequence[int],
    valid: Tensor | None = None,
    at_least: Sequence[int] | None = None,
    distance: str = "cosine",
    ordered: bool = False,
) -> Tensor:
    """Grow `seed` to `k` tokens, each as far as possible from all chosen so far.

    Distances are made in float32, or in the precision of `x` where that is higher. Ties go to the lowest index.
    No token is taken twice, also where all that is left repeats what was taken; a token of length 0 repeats others
    of its kind and is at cosine distance 1 from the rest. No host sync, unless `x` is on the CPU, where reading is
    free.

    Args:
        x: [B, N, D] features, any scale; padded tokens may hold any finite values.
        seed: [B, M] indices already chosen, in any order; -1 and repeats count for nothing, and a row may not
            have more than k others. A row without any starts from the token whose nearest other one is
            farthest.
        k: tokens to return per row, one number or B of them, each in [0, valid tokens of the row].
        valid: [B, N] bool, real tokens in front; None = all.
        at_least: B numbers, distinct seeds that each row has for certain; saves idle picks on a device.
        distance: cosine (1 - cosine) | l1 | l2.
        ordered: seeds first, ascending, and the others behind them in the order of picking.

    Returns:
        [B, max(k)] int64, ascending unless `ordered`, shorter rows padded with -1 at the end.

    Raises:
        ValueError: k does not match the rows, or is not in [0, N], or the distance is unknown.

    Source: Alvar et al. 2025, arXiv:2503.02175, algorithm 1 (their code takes the minimum over all chosen
    rows anew at every pick); Li et al. 2025, arXiv:2505.22038, section 4.2, for the seeds.
    """
    B, N, _ = x.shape
    counts = (k,) * B if isinstance(k, int) else tuple(k)
    if len(counts) != B:
        raise ValueError(f"farthest_points got {len(counts)} counts for {B} rows. Pass one count per row.")
    if min(counts, default=0) < 0 or max(counts, default=0) > N:
        raise ValueError(f"farthest_points was asked for {counts} of {N} tokens. Counts must lie in 0..{N}.")
    if distance not in DISTANCES:
        raise ValueError(f"distance is {distance!r}. Choose from: {', '.join(DISTANCES)}.")
    power = None if distance == "cosine" else float(distance[1])
    x = x.detach()
    x = x if x.dtype == torch.float64 else x.float()
    if x.device.type == "cpu":
        return read(x, seed, counts, valid, power, ordered)
    sure = tuple(at_least) if at_least is not None else (0,) * B
    return queued(x, seed, counts, valid, sure, power, ordered)
