"""KL layer search: the first layer from which a model can do without its visual tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DIRECTIONS = ("withdrawn", "full")


def divergence(withdrawn: Tensor, full: Tensor, direction: str) -> Tensor:
    """KL divergence of the next token's distribution with and without visual tokens, in nats.

    Args:
        withdrawn: [..., V] log-probabilities of the model without visual tokens from some layer on.
        full: [..., V] those of the unpruned model, of a shape that broadcasts.
        direction: withdrawn, for KL(withdrawn || full) | full, for KL(full || withdrawn).

    Returns:
        [...] divergences, in float32 or in the precision of the inputs where that is higher. A token that the
        weighing distribution rules out adds nothing.

    Raises:
        ValueError: the direction is unknown.

    Source: Lin et al. 2024, arXiv:2405.05803; the released code weighs by the withdrawn model.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"pruner.search.direction is {direction!r}. Choose from: {', '.join(DIRECTIONS)}.")
    exact = torch.promote_types(torch.promote_types(withdrawn.dtype, full.dtype), torch.float32)
    p, q = (withdrawn, full) if direction == "withdrawn" else (full, withdrawn)
    p, q = p.to(exact), q.to(exact)
    return (p.exp() * (p - q)).masked_fill(p == -torch.inf, 0.0).sum(-1)


def first_passing(divergences: Tensor | Sequence[float], candidates: Sequence[int], eta: float, none: int) -> int:
    """The first candidate layer whose withdrawal moves the prediction by no more than `eta`.

    Args:
        divergences: [C] means over samples, one per candidate. NaN never passes.
        candidates: C layers, in the order in which they are tried.
        eta: most divergence that passes.
        none: what to return where no candidate passes; the number of layers means no withdrawal.

    Returns:
        A candidate, or `none`.

    Raises:
        ValueError: the two differ in length.

    Source: Lin et al. 2024, arXiv:2405.05803. The released code defines nothing where no candidate passes.
    """
    found = torch.as_tensor(divergences).tolist()
    if len(found) != len(candidates):
        raise ValueError(
            f"{len(found)} divergences came for {len(candidates)} candidate layers. Pass one mean per candidate."
        )
    return next((layer for layer, moved in zip(candidates, found, strict=True) if moved <= eta), none)
