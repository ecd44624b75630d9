"""Token importance from the output of a state space scan."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("clip", "none", "l1", "l2")


def importance(y: Tensor, kind: str) -> Tensor:
    """[B, N] scores of gated outputs [B, N, E], mean over channels, in float32 or better.

    Args:
        kind: clip, what is negative counts as zero | none | l1, absolute values | l2, the root of the mean square.

    Source: Zhan et al. 2024, arXiv:2409.18962, equation of the importance and its table of variants.
    """
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    if kind == "l2":
        return y.square().mean(-1).sqrt()
    return {"clip": lambda: y.clamp(min=0), "none": lambda: y, "l1": lambda: y.abs()}[kind]().mean(-1)
