"""Semantic-aware temporal accumulation (STA): redundancy of video tokens by a Markov chain over chunks of frames.

Source: Ding et al. 2023, arXiv:2308.04549, and its released code, which the defaults follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.keep import on_device

TINY = 1e-12


def activity(states: Tensor, real: Tensor) -> Tensor:
    """How active each token of a chunk is: 0 for the weakest, 1 for the strongest, by the sum of absolute channels.

    Args:
        states: [B, M, C].
        real: [B, M] bool.

    Returns:
        [B, M] float32 or better; 0 throughout where all are alike.
    """
    total = states.to(torch.promote_types(states.dtype, torch.float32)).abs().sum(-1)
    low = total.masked_fill(~real, torch.inf).amin(1, keepdim=True)
    spread = total.masked_fill(~real, -torch.inf).amax(1, keepdim=True) - low
    return ((total - low) / torch.where(spread > 0, spread, 1.0)).where(spread > 0, 0.0)


def transported(keys: Tensor, real: Tensor, before: Tensor, mass: Tensor) -> Tensor:
    """[B, M] mass that flows into each token of a chunk from the chunk before.

    Each earlier token hands all of its mass on, shared out by a softmax over the tokens of this chunk.

    Args:
        keys: [B, M, d] unit keys of this chunk.
        real: [B, M] bool.
        before: [B, P, d] unit keys of the chunk before.
        mass: [B, P] theirs; 0 where padded.
    """
    alike = (keys @ before.mT).masked_fill(~real[..., None], -torch.inf)
    return (alike.softmax(1) @ mass[..., None])[..., 0]


def most_alike(keys: Tensor, real: Tensor, drop: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The tokens of the first chunk, which has none before it, in the order of the released code.

    Every second token, from the first on, looks for the one most like it among the others; those with the most alike
    partner go. The others come first, in their places, then the ones that stay, least alike in front. A chunk that
    loses more than its even tokens is halved and looked at again.

    Args:
        keys: [B, M, d] unit keys.
        real: [B, M] bool, real ones in front.
        drop: Tokens dropped of each row, fewer than its real ones.

    Returns:
        [B, M] every token once, those to keep in front in their order, and [B, ceil(M / 2)] the similarities of the
        even ones in the first round.
    """
    orders, first = [], None
    for b, wanted in enumerate(drop):
        left = real[b].nonzero().flatten()
        gone: list[Tensor] = []
        while True:
            evens, odds = left[::2], left[1::2]
            alike = (keys[b, evens] @ keys[b, odds].mT).amax(1) if len(odds) else keys.new_zeros(len(evens))
            first = [] if first is None else first
            if not gone:
                first.append(alike)
            ranked = alike.argsort(stable=True)
            goes = min(wanted, len(evens))
            stay, leave = evens[ranked[: len(evens) - goes]], evens[ranked[len(evens) - goes :]]
            left, wanted = torch.cat([odds, stay]), wanted - goes
            gone.insert(0, leave)
            if not wanted:
                break
            left = left.sort().values
        padding = (~real[b]).nonzero().flatten()
        orders.append(torch.cat([left, *gone, padding]))
    width = -(-real.shape[1] // 2)
    padded = [torch.cat([x, x.new_zeros(width - len(x))]) for x in first or []]
    return torch.stack(orders), torch.stack(padded)


def accumulate(
    keys: Tensor, states: Tensor, real: Tensor, keep: Sequence[Sequence[int]], backwards: bool, first: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Choose tokens chunk by chunk.

    Args:
        keys: [B, T, M, d] of T chunks of up to M tokens, any scale.
        states: [B, T, M, C] what the layer handed on.
        real: [B, T, M] bool, real ones in front.
        keep: T counts for each of the B rows; 1 or more where there are tokens.
        backwards: walk from the last chunk to the first.
        first: which tokens of the first chunk hand mass on: all of them (the released code) | kept (the paper).

    Returns:
        Per chunk in time order [B, M] every token once, those to keep in front, in the released code's order; and the
        scores of the 2nd, 3rd, ... chunk in the order walked, [B, M], of which the lowest stay.
    """
    keys = normalize(keys.to(torch.promote_types(keys.dtype, torch.float32)), dim=-1, eps=TINY)
    T, M = keys.shape[1:3]
    walk = range(T - 1, -1, -1) if backwards else range(T)
    orders: dict[int, Tensor] = {}
    scores: list[Tensor] = []
    before = mass = None
    for step, t in enumerate(walk):
        here, wanted = real[:, t], on_device([row[t] for row in keep], keys.device)[:, None]
        if step == 0:
            drop = [int(n) - row[t] for n, row in zip(here.sum(1).tolist(), keep, strict=True)]
            order, _ = most_alike(keys[:, t], here, drop)
            kept = torch.arange(M, device=keys.device) < wanted
            stays = here if first == "all" else torch.zeros_like(here).scatter(1, order, kept)
            mass = stays.to(keys.dtype)
        else:
            assert before is not None
            assert mass is not None
            flow = transported(keys[:, t], here, before, mass)
            score = flow * (1 - activity(states[:, t], here))
            scores.append(score)
            order = score.masked_fill(~here, torch.inf).argsort(dim=1, stable=True)
            kept = torch.zeros_like(here).scatter(1, order, torch.arange(M, device=keys.device) < wanted)
            mass = flow * kept
            mass = mass / mass.sum(1, keepdim=True).clamp(min=TINY)
        orders[t], before = order, keys[:, t]
    return [orders[t] for t in range(T)], scores
