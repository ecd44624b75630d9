"""Budgets of stages in the K/V cache: slots per key head, averaged over the decoder layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from btp.core.keep import fit_times, is_fit
from btp.core.schedule import Schedule, Stage


def in_cache(stages: Sequence[Stage]) -> bool:
    """Whether there are stages, and all evict from the K/V cache, so that no token leaves between layers."""
    return bool(stages) and all(stage.site.kind == "cache" for stage in stages)


def chooses_slots(stages: Sequence[Stage]) -> bool:
    """Whether a stage leaves some slots of the K/V cache and not others, alone or behind cuts between layers."""
    return any(stage.site.kind == "cache" and not stage.withdraws_all for stage in stages) or in_cache(stages)


def over_steps(stages: Sequence[Stage]) -> bool:
    """Whether slots leave in decode steps too, so that their mean is one over steps."""
    return any(stage.site.kind == "cache" and stage.phase != "prefill" for stage in stages)


def fit_slots(schedule: Schedule, budget: Mapping[str, Any], layers: int, total: float) -> Schedule:
    """Fill every `fit` and `fit*X` at llm.cache, so that the mean over all layers meets the run's budget.

    Layers without a stage hold every slot. What every layer keeps is one number for all samples, or one share.

    Args:
        budget: the config's: `slots`, or else `share` of the prompt's slots.
        layers: decoder layers.
        total: slots of a prompt, mean over the samples: what numbers and shares in the schedule are weighed by.

    Raises:
        ValueError: no budget counts slots, or the layers that keep theirs leave it no room.
    """
    stages = [stage for stage in schedule if stage.site.kind == "cache"]
    if not any(is_fit(stage.keep) for stage in stages):
        return schedule
    slots, share = budget.get("slots"), budget["share"]
    if slots is None and share is None:
        raise ValueError(
            f"budget.tokens is {budget['tokens']}, which counts tokens between layers, but {stages[0].site} keeps "
            "slots of the cache. Set budget.slots, or budget.share for a share of the prompt's slots."
        )
    wanted = share if slots is None else min(slots / total, 1.0)
    named = {stage.site.layer: stage for stage in stages if not stage.site.every_layer}
    rest = next((stage for stage in stages if stage.site.every_layer), None)
    fixed = weight = 0.0
    for layer in range(layers):
        stage = named.get(layer, rest)
        if stage is not None and is_fit(stage.keep):
            weight += fit_times(stage.keep) or 1.0
        else:
            keep = 1.0 if stage is None else stage.keep
            fixed += keep if isinstance(keep, float) else float(keep) / total
    each = (wanted * layers - fixed) / weight
    if each <= 0:
        raise ValueError(
            f"A budget of {wanted * total:.4g} slots on average cannot be met: layers that say themselves what they "
            f"keep hold {fixed * total / layers:.4g} on average over all {layers}. Raise budget.slots (or "
            "budget.share), or lower their keep."
        )

    def filled(stage: Stage) -> Stage:
        mine = min(each * (fit_times(stage.keep) or 1.0), 1.0)
        if slots is None:
            return replace(stage, keep=mine)
        alone = not fixed and fit_times(stage.keep) is None
        return replace(stage, keep=int(slots) if alone else max(1, round(mine * total)))

    return Schedule(tuple(filled(s) if s in stages and is_fit(s.keep) else s for s in schedule))
