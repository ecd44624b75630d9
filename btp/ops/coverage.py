"""Greedy set cover: each pick is the token that adds most to what the chosen ones stand for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.keep import on_device
from btp.ops.row_blocks import row_blocks

COMBINES = ("multiply", "add")
ASKED_AT_ONCE = 8  # tokens that are asked anew together at first; more each time that none of them wins


def coverage_set(
    x: Tensor, weight: Tensor, k: Sequence[int], combine: str = "multiply", valid: Tensor | None = None
) -> Tensor:
    """Pick k tokens, each of the highest coverage gain combined with its weight.

    A set covers a token by the highest cosine that any of it has to the token, 0 if none is above 0. The gain of a pick
    is what it adds to the sum over all tokens. Ties go to the lowest index. One N x N table per row of the batch. A
    pick asks all tokens what each of them would add, O(k N^2), without a host sync. On the CPU, where reading is free,
    it asks those alone that may still win, since no gain ever rises; the picks are the same.

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
    weight, most = weight.to(exact), max(counts, default=0)
    if x.device.type == "cpu" and (combine == "add" or not (weight < 0).any()):
        picks = torch.full((B, most), -1)
        for row, (table, count, length) in enumerate(zip(alike, counts, real.sum(1).tolist(), strict=True)):
            picks[row, :count] = lazily(table[:length, :length], weight[row, :length], count, combine)
        return picks
    picks = in_full(alike, weight, most, combine, ~real)
    unused = torch.arange(most, device=x.device) >= on_device(counts, x.device)[:, None]
    return picks.masked_fill(unused, -1)


def in_full(alike: Tensor, weight: Tensor, k: int, combine: str, taken: Tensor) -> Tensor:
    """[B, k] picks by asking all tokens at every pick.

    Args:
        alike: [B, N, N] cosines, 0 for padding.
        weight: [B, N].
        taken: [B, N] bool, tokens that cannot be picked.
    """
    B, N, _ = alike.shape
    covered = alike.new_zeros(B, 1, N)
    picks = torch.full((B, k), -1, device=alike.device)
    for turn in range(k):
        gain = (alike - covered).clamp_(min=0).sum(2)
        worth = gain * weight if combine == "multiply" else gain + weight
        pick = worth.masked_fill(taken, -torch.inf).argmax(1, keepdim=True)
        picks[:, turn : turn + 1] = pick
        taken = taken.scatter(1, pick, True)
        covered = torch.maximum(covered, alike.gather(1, pick[..., None].expand(-1, -1, N)))
    return picks


def lazily(alike: Tensor, weight: Tensor, k: int, combine: str) -> Tensor:
    """[k] picks of one row, without asking tokens again whose last answer is below the best.

    A gain found before an earlier pick bounds the gain now, also after rounding: no term of its sum has grown. So the
    weights must not be negative where they multiply.

    Args:
        alike: [N, N] cosines.
        weight: [N].

    Source: Minoux 1978, "Accelerated greedy algorithms for maximizing submodular set functions".
    """
    combined = torch.mul if combine == "multiply" else torch.add
    covered = alike.new_zeros(len(alike))
    blocks = row_blocks(len(alike), alike[:1].nbytes, alike.device)
    bound = combined(torch.cat([alike[some].clamp(min=0).sum(1) for some in blocks] or [covered]), weight)
    asked = torch.zeros(len(alike), dtype=torch.long)  # behind how many picks each bound was found
    picks: list[int] = []
    for turn in range(k):
        block = ASKED_AT_ONCE
        while asked[best := int(bound.argmax())] < turn:
            which = bound.topk(min(block, len(bound))).indices
            which = which[(asked[which] < turn) & (bound[which] > -torch.inf)]
            gain = (alike[which] - covered).clamp_(min=0).sum(1)
            bound[which] = combined(gain, weight[which])
            asked[which] = turn
            block *= 2
        picks.append(best)
        bound[best] = -torch.inf
        covered = torch.maximum(covered, alike[best])
    return torch.tensor(picks, dtype=torch.long)
