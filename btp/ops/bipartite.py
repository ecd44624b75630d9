"""Bipartite soft matching: every second token looks for its most similar one among the others; the best pairs merge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.keep import on_device
from btp.core.selection import MergePlan
from btp.ops.merge import merge_sizes, merge_states

ORDERS = ("raster", "halves", "similar")


def match_pairs(
    metric: Tensor, alive: Sequence[int], remove: Sequence[int], order: str, lead: int = 0, every: int = 2
) -> tuple[Tensor, Tensor]:
    """One step of matching: the `remove` tokens most similar to a destination flow into it.

    Counted from 0, every second token is a destination (1, 3, ...), the others are sources. Each source looks for the
    destination of highest cosine; the sources with the highest ones go. Ties go to the lowest index. No host sync.

    Args:
        metric: [B, N, D] features, any scale, finite also where padded.
        alive: tokens of each row, real ones in front.
        remove: tokens that go, per row; at most its sources.
        order: of the tokens that stay: raster (ascending) | halves (sources that stay, then destinations) | similar
            (the same, the sources by descending cosine). A row that loses none stays as it is.
        lead: rows in front of the tokens that take no part but count in even and odd: a class token is one.
        every: every so many tokens one is a destination, the last of each group.

    Returns:
        [B, K] the tokens that stay, in `order`, -1 padded at the end, and [B, N] where each token flows, itself for
        one that stays; K is the most that stay in a row.

    Raises:
        ValueError: order is unknown, or a row cannot lose so many in one step.

    Source: Bolya et al. 2023, arXiv:2210.09461, section 3. A class token (its row of similarities is -inf there) and
    a distillation token (its column is) take no part, so that leaving them out as `lead` rows gives the same.
    """
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}. Choose from: {', '.join(ORDERS)}.")
    B, N, _ = metric.shape
    for n, r in zip(alive, remove, strict=True):
        destinations = (n + lead) // every - lead // every
        most = n - destinations if destinations else 0
        if not 0 <= r <= most:
            raise ValueError(
                f"match_pairs was asked to remove {r} of {n} tokens, but one step removes 0 to {most}. "
                "Take more steps (merge_to)."
            )
    device = metric.device
    index = torch.arange(N, device=device)
    real = index < on_device(tuple(alive), device)[:, None]  # [B, N]
    stay = max((n - r for n, r in zip(alive, remove, strict=True)), default=0)
    if not any(remove):
        return index.expand(B, N).masked_fill(~real, -1)[:, :stay], index.expand(B, N)

    into = slice((every - 1 - lead) % every, N, every)
    destinations = index[into]
    left = slice(lead % 2, N, 2)  # a view where it can be one
    if every != 2:
        cpu = torch.arange(N)
        left = cpu[(cpu + lead) % every != every - 1].to(device)
    sources = index[left]
    unit = normalize(metric.to(torch.promote_types(metric.dtype, torch.float32)), dim=-1)
    alike = unit[:, left] @ unit[:, into].mT  # [B, sources, destinations]
    if min(alive) < N:
        alike = alike.masked_fill_(~real[:, None, into] | ~real[:, left, None], -torch.inf)
    best, at = alike.max(2)
    partner = destinations[at]

    number = torch.arange(len(sources), device=device).expand(B, -1)
    ranked = best.argsort(dim=1, descending=True, stable=True)
    rank = torch.zeros_like(ranked).scatter_(1, ranked, number)
    goes = rank < on_device(tuple(remove), device)[:, None]  # [B, sources]

    target = index.repeat(B, 1)
    target[:, left] = torch.where(goes, partner, sources)
    place = index.repeat(B, 1)
    if order != "raster":
        place += N
        place[:, left] = rank if order == "similar" else number
    if not all(remove):
        idle = on_device([r == 0 for r in remove], device)[:, None]
        place = torch.where(idle, index, place)
    place = place.masked_fill(~real | (target != index), 2 * N)
    keep = place.argsort(dim=1, stable=True)[:, :stay]
    return keep.masked_fill(place.gather(1, keep) == 2 * N, -1), target


def merge_to(
    metric: Tensor, alive: Sequence[int], counts: Sequence[int], size: Tensor | None, order: str, lead: int = 0
) -> tuple[Tensor, MergePlan]:
    """Match in as many steps as it takes, each removing half of what is left at most.

    Between steps the metric is merged as the tokens are.

    Args:
        metric: [B, N, D] features of the tokens.
        alive: tokens of each row, real ones in front.
        counts: tokens that each row shall have.
        size: [B, N] weights: a token becomes the mean of all that flow into it by these, however many steps it takes
            (ToMe). None takes the plain mean in every step, so that what merges late weighs more (AIM).
        order, lead: as `match_pairs`; the order behind a step is the one the next step counts even and odd in.

    Returns:
        [B, max(counts)] the tokens that stay, in `order`, -1 padded at the end, and the plan that merges the others
        into them; a row of count 0 drops all without trace.

    Raises:
        ValueError: a count exceeds what is alive, or order is unknown.

    Source: ToMe as `match_pairs`; Zhong et al. 2025, arXiv:2412.03248, for the steps (576 -> 288 -> 252) and the mean.
    """
    if any(not 0 <= k <= n for n, k in zip(alive, counts, strict=True)):
        raise ValueError(f"merge_to was asked for {tuple(counts)} of {tuple(alive)} tokens. Counts must lie within.")
    B, N, _ = metric.shape
    device, exact = metric.device, torch.promote_types(metric.dtype, torch.float32)
    metric = metric.to(exact)
    weight = torch.ones(B, N, dtype=exact, device=device) if size is None else size.to(exact)
    sizes = weight
    owner = torch.arange(N, device=device).repeat(B, 1)  # where a token's group stands among those left
    real = owner < on_device(tuple(alive), device)[:, None]
    left = owner  # [B, M] the tokens left, as indices into N
    steps = _steps(alive, counts)
    for i, remove in enumerate(steps):
        kept, target = match_pairs(metric, alive, remove, order, lead)
        owner = target.gather(1, owner)
        if size is None:
            members = torch.zeros_like(sizes).scatter_add_(1, target, torch.ones_like(sizes))
            weight = weight / members.gather(1, owner)
        if i + 1 < len(steps):
            plan = MergePlan(target, sizes)
            metric = merge_states(metric, kept, plan)
            sizes = torch.ones_like(metric[..., 0]) if size is None else merge_sizes(sizes, kept, plan)
        if len(steps) > 1:
            owner = _place_of(kept, target.shape[1]).gather(1, owner)
        left = left.gather(1, kept.clamp(min=0))
        alive = [n - r for n, r in zip(alive, remove, strict=True)]
    keep = left[:, : max(counts, default=0)]
    wanted = on_device(tuple(counts), device)[:, None]
    keep = keep.masked_fill(torch.arange(keep.shape[1], device=device) >= wanted, -1)
    target = owner if len(steps) == 1 else left.gather(1, owner)
    target = target.masked_fill(~real | (wanted == 0), -1)
    return keep, MergePlan(target, weight)


def size_bias(size: Tensor) -> Tensor:
    """What proportional attention adds to the logits of a key: the log of the tokens it stands for.

    Args:
        size: [B, N], 1 or more; 0 where padded.

    Returns:
        [B, N] float32 or better, -inf where padded.

    Source: Bolya et al. 2023, arXiv:2210.09461, section 3.
    """
    return size.to(torch.promote_types(size.dtype, torch.float32)).log()


def _steps(alive: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
    """Tokens that each row loses in each step; a row that is done loses none."""
    steps, left = [], list(alive)
    while any(remove := [min(n // 2, max(n - max(k, 1), 0)) for n, k in zip(left, counts, strict=True)]):
        steps.append(remove)
        left = [n - r for n, r in zip(left, remove, strict=True)]
    return steps


def _place_of(kept: Tensor, width: int) -> Tensor:
    """[B, width] where each of the tokens `kept` stands in it; arbitrary for others."""
    place = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    spare = kept.new_zeros(len(kept), width + 1)
    return spare.scatter_(1, kept.masked_fill(kept < 0, width), place)[:, :width]
