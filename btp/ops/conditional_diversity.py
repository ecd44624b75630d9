"""Greedy search for the most probable set of a determinantal point process: relevant tokens that differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.keep import on_device

NOISE = 8  # units of rounding below which a token adds nothing to those chosen


def diverse_set(x: Tensor, quality: Tensor, k: Sequence[int], valid: Tensor | None = None) -> Tensor:
    """Pick the token that enlarges the determinant of the chosen ones most, k times.

    The kernel is quality_i * cosine(i, j) * quality_j. A pick needs one row of it, which is made when it is needed, so
    that no N x N table is held: k picks cost O(k N (D + k)). A token that lies in the span of those chosen adds
    nothing; of such tokens the lowest index comes first, as of all equals. No host sync.

    Args:
        x: [B, N, D] features, any scale.
        quality: [B, N], 0 or more.
        k: B numbers of tokens to pick, each in [0, valid tokens of the row].
        valid: [B, N] bool, real tokens in front; None = all.

    Returns:
        [B, max(k)] indices in the order of picking, shorter rows padded with -1 at the end.

    Raises:
        ValueError: k does not match the rows, or is not in [0, N].

    Source: Chen et al. 2018, arXiv:1709.05135, algorithm 1.
    """
    B, N, _ = x.shape
    counts = tuple(k)
    if len(counts) != B or min(counts, default=0) < 0 or max(counts, default=0) > N:
        raise ValueError(f"diverse_set was asked for {counts} of {N} tokens in {B} rows. Pass one count per row.")
    exact = torch.promote_types(x.dtype, torch.float32)
    scaled = normalize(x.detach().to(exact), dim=-1) * quality.to(exact)[..., None]
    left = scaled.square().sum(-1)  # [B, N] what each would add
    noise = NOISE * torch.finfo(exact).eps * left
    taken = torch.zeros_like(left, dtype=torch.bool) if valid is None else ~valid
    most = max(counts, default=0)
    parts = left.new_zeros(B, most, N)  # each token's share along every pick's own direction
    picks = torch.full((B, most), -1, device=x.device)
    for turn in range(most):
        if x.device.type == "cpu" and not left.masked_fill(taken, 0).any():
            rest = taken.to(torch.uint8).argsort(dim=1, stable=True)[:, : most - turn]  # those not taken, ascending
            picks[:, turn:] = rest
            break
        pick = left.masked_fill(taken, -1).argmax(1, keepdim=True)
        picks[:, turn : turn + 1] = pick
        gain = left.gather(1, pick)
        row = (scaled @ scaled.gather(1, pick[..., None].expand(-1, -1, x.shape[2])).mT)[..., 0]  # [B, N]
        before = parts[:, :turn]
        mine = before.gather(2, pick[:, None].expand(-1, turn, -1))  # [B, turn, 1]
        share = (row - (mine * before).sum(1)) / gain.sqrt().clamp(min=torch.finfo(exact).tiny)
        share = share.masked_fill(gain <= 0, 0)
        parts[:, turn] = share
        left = left - share.square()
        left = left.masked_fill(left <= noise, 0)
        taken = taken.scatter(1, pick, True)
    unused = torch.arange(most, device=x.device) >= on_device(counts, x.device)[:, None]
    return picks.masked_fill(unused, -1)


def ascending(picks: Tensor, n: int) -> Tensor:
    """`picks` [B, K] of n tokens, sorted, with the -1 at the end."""
    ordered = picks.masked_fill(picks < 0, n).sort(dim=1).values
    return ordered.masked_fill(ordered == n, -1)
