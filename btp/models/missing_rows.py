"""Hidden state alignment: scans over sequences with missing rows, over which the state goes on decaying.

A kept row arrives with the time that passed since the kept row before it. Whose step size counts at the missing rows in
between is open, since it would have depended on them: `gap` says which reading is taken. A convolution in front of the
scan reads zeros at missing places (`conv: aligned`), or what has closed up to them (`closed`).

Source: Zhan et al. 2024, arXiv:2409.18962, section on hidden state alignment; the released code has no such scan.
"""

from __future__ import annotations

import torch
from torch import Tensor


def time_passed(delta: Tensor, steps: Tensor | None, gap: str, resting: Tensor) -> Tensor:
    """How long the state decays on its way to each kept row.

    Args:
        delta: [K, B, E] step sizes of the kept rows, in the order of the scan.
        steps: [K, B] step of the whole scan at which each is visited, ascending, -1 where padded; None where no row is
            missing.
        gap: own, each step between takes the size of the row that arrives | prev, of the one before | mean, the mean
            over the kept rows | bias, `resting` | none, no time passes.
        resting: [E] step size of a row of zeros.

    Returns:
        [K, B, E]. What stands at the first row, and at padding, has no effect on a scan.
    """
    if steps is None or gap == "none":
        return delta
    between = torch.diff(steps, dim=0, prepend=steps[:1] - 1).clamp(min=1)[..., None].to(delta.dtype) - 1
    if gap == "own":
        return delta * (between + 1)
    if gap == "prev":
        return delta + between * torch.cat([delta[:1], delta[:-1]])
    if gap == "bias":
        return delta + between * resting
    real = (steps >= 0)[..., None].to(delta.dtype)
    return delta + between * ((delta * real).sum(0) / real.sum(0))


def spread_rows(x: Tensor, places: Tensor, length: int) -> Tensor:
    """[length, B, E] rows [K, B, E] at their places [K, B], zeros elsewhere; what is padded (-1) is left out."""
    whole = x.new_zeros(length + 1, *x.shape[1:])
    at = places.masked_fill(places < 0, length)[..., None].expand_as(x)
    return whole.scatter(0, at, x)[:-1]


def rows_at(x: Tensor, places: Tensor) -> Tensor:
    """[K, B, E] of [length, B, E]; padding gets the first row."""
    return x.gather(0, places.clamp(min=0)[..., None].expand(*places.shape, x.shape[-1]))
