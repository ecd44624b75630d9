"""Checks of cache stages (llm.cache) against model and method before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from btp.core.cache_pruner import check_cache_settings, evicts_nothing, scope_of
from btp.core.host import PROMPT_TOKENS, Host
from btp.core.pruner import Pruner
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal


def each_layer(schedule: Schedule, num_layers: int) -> Iterator[tuple[int, Stage]]:
    """(index in the schedule, stage) with one stage for each layer that llm.cache.* stands for.

    Layers that the schedule names by themselves, as llm.cache.0, have their own stage.
    """
    named = {stage.site.layer for stage in schedule if stage.site.kind == "cache"}
    for i, stage in enumerate(schedule):
        if not stage.site.every_layer:
            yield i, stage
            continue
        for layer in range(num_layers):
            if layer not in named:
                yield i, replace(stage, site=stage.site.of_layer(layer))


def check_cache_stages(host: Host, pruner: Pruner | None, schedule: Schedule) -> None:
    """Refuse what cannot be, or has no effect.

    Raises:
        ValueError: names the config key.
    """
    for i, stage in enumerate(schedule):
        if stage.site.kind != "cache":
            continue
        check_cache_settings(i, stage)
        if stage.positions != "original":
            raise ValueError(
                f"schedule.{i}.positions is {stage.positions} at {stage.site}, but keys lie in the cache as they were "
                f"turned. Set pruner.schedule.{i}.positions=original."
            )
        scope, kept = scope_of(stage), stage.withdraws_all or evicts_nothing(stage)
        if scope != "all" and host.unit == PROMPT_TOKENS:
            raise ValueError(
                f"schedule.{i}.scope is {scope}, but {type(host.model).__name__} has no pictures: all of its slots are "
                f"one kind. Set pruner.schedule.{i}.scope=all."
            )
        if stage.withdraws_all and scope == "all":
            raise ValueError(
                f"schedule.{i}.keep is 0 at {stage.site}, which leaves a step nothing to attend to. Keep a slot or "
                f"more, or set pruner.schedule.{i}.scope=visual."
            )
        if pruner is not None and not kept and not hasattr(pruner, "evict"):
            raise ValueError(
                f"schedule.{i}.site is {stage.site}, but pruner {pruner.name!r} chooses tokens between layers and no "
                "slots of the cache. Choose llm.input or llm.layer.N, or a cache method, as snapkv."
            )
    if len(schedule) > 0 and schedule[-1].site.every_layer:
        named = {stage.site.layer for stage in schedule if stage.site.kind == "cache"}
        if named >= set(range(host.num_layers)):
            i = len(schedule) - 1
            raise ValueError(
                f"schedule.{i}.site is llm.cache.*, but the schedule names all {host.num_layers} layers by themselves, "
                "so it has no effect. Remove it."
            )


def check_cache_signal(signal: Signal, stage: Stage, who: str) -> None:
    """Refuse a signal that is not there when a cache stage decides, or a cache's signal at any other stage.

    Raises:
        ValueError: says what can be asked for.
    """
    if stage.site.kind == "cache" and signal.site != stage.site:
        raise ValueError(
            f"{who} asks for {signal}, but its stage evicts at {stage.site}, where that layer's own keys, values and "
            f"attention are to be seen. Ask for Signal(kind, stage.site)."
        )
    if stage.site.kind != "cache" and signal.site.kind == "cache":
        raise ValueError(
            f"{who} asks for {signal}, but its stage cuts at {stage.site}. Slots are shown to stages at llm.cache."
        )
    if signal.rows == "window" and stage.phase != "prefill":
        raise ValueError(
            f"{who} asks for {signal} in phase {stage.phase}, but a decode step has one row. Set phase: prefill, or "
            "ask for rows last or decayed."
        )
