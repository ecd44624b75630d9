"""Cost of a schedule by formula, before anything is built or run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from btp.core.schedule import Schedule
from btp.core.site import EVERY
from btp.measure.architecture import Architecture
from btp.measure.flops import prefill, visual_pdrop
from btp.measure.kv import layer_bytes
from btp.measure.segments import Segments


def held(schedule: Schedule, visual: Sequence[int], text: int) -> list[int]:
    """Slots that each layer's cache holds behind the prompt: what entered, or what a stage at llm.cache leaves of it.

    Args:
        visual: visual tokens that entered each layer.
        text: text tokens of the prompt.
    """
    stages = {s.site.layer: s for s in schedule if s.site.kind == "cache" and s.phase != "decode"}
    slots = []
    for layer, n in enumerate(visual):
        stage = stages.get(layer, stages.get(EVERY))
        if stage is None:
            slots.append(n + text)
            continue
        scoped = {"all": n + text, "visual": n, "text": text}[str(stage.settings.get("scope", "all"))]
        slots.append(n + text - scoped + min(scoped, stage.count(scoped)))
    return slots


def planned_costs(
    sizes: Architecture,
    schedule: Schedule,
    total: int,
    text: int,
    dtype: torch.dtype,
    segments: Segments = (),
) -> dict[str, Any]:
    """Counts of one sample under a schedule, under the names of cost.json.

    Selection and its signals are not in flops_prefill: what they take is counted while they run. It is None where the
    vision tower's part does not follow from sizes: for an architecture that is `counted`, and where tokens leave
    between the tower's layers.

    Args:
        sizes: Sizes of the model.
        schedule: solved; empty for the unpruned model.
        total: visual tokens of the sample.
        text: text tokens of the prompt.
        dtype: Data type of the cache.
        segments: what the vision tower runs over for the sample.
    """
    decoder = sizes.decoder
    visual = schedule.tokens_per_layer(total, decoder.layers)
    tokens = [(n + text,) for n in visual]
    inside = [stage for stage in schedule if stage.site.tower == "vision"]
    flops = None
    if not sizes.counted and all(stage.site.kind == "output" for stage in inside):
        passed = [(lengths[0], lengths[0]) for lengths in segments] if inside else ()
        projected = [stage.count(total) for stage in inside]
        flops = prefill(sizes, tokens, segments, passed=passed, projected=projected)
    return {
        "tokens_avg": sum(visual) / len(visual),
        "flops_visual_pdrop": visual_pdrop(visual, decoder.hidden, decoder.ffn),
        "flops_prefill": flops,
        "kv_mib": sum(layer_bytes(decoder, (n,), dtype) for n in held(schedule, visual, text)) / 2**20,
    }
