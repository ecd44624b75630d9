"""Greedy set cover: each pick is the token that adds most to what the chosen ones stand for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.keep import on_device

COMBINES = ("multiply", "add")


def coverage_set(
    x: Tensor, weight: Tensor, k: Sequence[int], combine: str = "multiply", valid: Tensor | None = None
) -> Tensor:
    """Pick k tokens, each of the highest coverage gain combined with its weight.

    A set covers a token by the highest cosine that any of it has to the token, 0 if none is above 0. The gain of a pick
    is what it adds to the sum over all tokens. Ties go to the lowest index. No host sync; one N x N table per row of
    the batch, since every pick asks all tokens what each of them would add.

    Args:
        x: [B, N, D] features, any scale; finite also where padded.
        weight: [B, N], finite.
        k: B numbers of tokens to pick, each in [0, valid tokens of the row].
        combine: multiply, gain times weight | add, gain plus weight.
        valid: [B, N] bool, real tokens in front; None = all.

    Returns:
        [B, max(k)] indices in the order of picking, shorter rows padded with -1 at the end.

    Raises:
        ValueError: k does not match the rows, or is not in [0, N]; combine is unknown.

    Source: Deng et al. 2025, arXiv:2510.24214, equations 3 to 6.
    """
    B, N, _ = x.shape
    counts = tuple(k)
    if combine not in COMBINES:
        raise ValueError(f"pruner.method.combine is {combine!r}. Choose from: {', '.join(COMBINES)}.")
    if len(counts) != B or min(counts, default=0) < 0 or max(counts, default=0) > N:
        raise ValueError(f"coverage_set was asked for {counts} of {N} tokens in {B} rows. Pass one count per row.")
    exact = torch.promote_types(x.dtype, torch.float32)
    unit = normalize(x.detach().to(exact), dim=-1)
    real = torch.ones(B, N, dtype=torch.bool, device=x.device) if valid is None else valid
    unit = unit.masked_fill(~real[..., None], 0)
    alike = unit @ unit.mT  # [B, N, N], 0 for padding
    covered = alike.new_zeros(B, 1, N)
    weight, taken = weight.to(exact), ~real
    most = max(counts, default=0)
    picks = torch.full((B, most), -1, device=x.device)
    for turn in range(most):
        gain = (alike - covered).clamp_(min=0).sum(2)
        worth = gain * weight if combine == "multiply" else gain + weight
        pick = worth.masked_fill(taken, -torch.inf).argmax(1, keepdim=True)
        picks[:, turn : turn + 1] = pick
        taken = taken.scatter(1, pick, True)
        covered = torch.maximum(covered, alike.gather(1, pick[..., None].expand(-1, -1, N)))
    unused = torch.arange(most, device=x.device) >= on_device(counts, x.device)[:, None]
    return picks.masked_fill(unused, -1)
