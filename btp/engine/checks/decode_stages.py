"""Checks of stages that act in decode against model, pruner and the other stages."""

from __future__ import annotations

from typing import Any

from btp.core.host import PROMPT_TOKENS, Host
from btp.core.pruner import Pruner
from btp.core.schedule import IN_DECODE, Schedule, Stage
from btp.core.signals import Signal
from btp.engine.checks.signals import attention_name
from btp.engine.checks.sliding_window import layer_kinds
from btp.engine.decoder.deepstack import FEATURES
from btp.engine.hooks.arguments import Binding
from btp.engine.hooks.flash import FLASH

PROTECT = ("none", "generated")
SCOPES = ("all", "visual", "text")


def check_in_decode(host: Host, pruner: Pruner | None, schedule: Schedule) -> None:
    """Refuse what cannot be followed, or has no effect, before anything runs.

    Raises:
        ValueError: names the key and what to change.
    """
    mine = [(i, stage) for i, stage in enumerate(schedule) if stage.in_decode]
    if not mine:
        return
    for i, stage in enumerate(schedule):
        if stage.site.kind == "cache":
            raise ValueError(
                f"schedule.{i}.site is {stage.site}, but schedule.{mine[0][0]} at {mine[0][1].site} has phase "
                f"{mine[0][1].phase}, which brings tokens back to caches that this stage would have emptied. Set "
                "phase: prefill there."
            )
        if not stage.in_decode and stage.moves_prefill and stage.site > mine[0][1].site:
            raise ValueError(
                f"schedule.{i} at {stage.site} has phase {stage.phase} behind schedule.{mine[0][0]} at "
                f"{mine[0][1].site} of phase {mine[0][1].phase}, whose tokens may still come back when it has decided. "
                "Put it in front, or set phase: both there too."
            )
    if attention_name(host) == FLASH:
        raise ValueError(
            f"schedule.{mine[0][0]}.phase is both, but the decoder runs {FLASH}, where a row sees the keys in front of "
            "it: a token that comes back stands behind later ones. Set phase: prefill, or load the model with "
            "attn_implementation=sdpa (model.attention=sdpa)."
        )
    windows = [kind for kind in layer_kinds(host) if kind.window is not None]
    if windows:
        instead = "Leave that stage out" if mine[0][1].phase == "decode" else "Set phase: prefill"
        raise ValueError(
            f"schedule.{mine[0][0]}.phase is {mine[0][1].phase}, but {type(host.decoder).__name__} has layers of type "
            f"{windows[0].name} that see {windows[0].window} tokens: a token that comes back would find its keys gone. "
            f"{instead}, or use a model with full attention."
        )
    for i, stage in mine:
        _check_stage(host, pruner, i, stage)


def _check_stage(host: Host, pruner: Pruner | None, i: int, stage: Stage) -> None:
    if stage.withdraws_all:
        raise ValueError(
            f"schedule.{i}.keep is 0 in phase {stage.phase}, so that nothing is left to choose in any step. Set phase: "
            "prefill."
        )
    if stage.positions == "renumber":
        raise ValueError(
            f"schedule.{i}.positions is renumber in phase {stage.phase}, where tokens come back to their own "
            "positions. Set positions: original."
        )
    _check_settings(host, i, stage)
    if pruner is not None and pruner.reads_states(stage):
        raise ValueError(
            f"pruner {pruner.name!r} ranks tokens by their states, but schedule.{i} has phase {stage.phase}, where "
            "most tokens are keys and values alone. Set phase: prefill on that stage, or use a method that ranks by "
            "attention (and says so by reads_states)."
        )
    if host.decoder is not None and stage.phase == "both" and FEATURES in Binding(host.decoder):
        last = len(getattr(host.vision.config, "deepstack_visual_indexes", ()))  # type: ignore[union-attr]
        if stage.site.layer < last:
            raise ValueError(
                f"schedule.{i}.site is {stage.site} in phase both, but {type(host.decoder).__name__} adds vision "
                f"features behind its first {last} layers, which a token that stayed behind would miss. Set "
                f"pruner.schedule.{i}.site=llm.layer.{last} or later."
            )


def _check_settings(host: Host, i: int, stage: Stage) -> None:
    known: dict[str, Any] = {"revive": (True, False), "protect": PROTECT, "scope": (*SCOPES, None)}
    for name in IN_DECODE:
        value = stage.settings.get(name, known.get(name, (0,))[0])
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not (whole if name == "first" else value in known[name] and (name != "revive" or isinstance(value, bool))):
            choices = "an int >= 0" if name == "first" else ", ".join(map(str, known[name]))
            raise ValueError(f"schedule.{i}.{name} is {value!r}. Choose from: {choices}.")
    if stage.phase == "decode" and stage.settings.get("revive") is False:
        raise ValueError(
            f"schedule.{i}.revive is false in phase decode, where nobody stays behind in the prefill, so that no step "
            "would ask. Remove it."
        )
    scope, revive = stage.settings.get("scope"), stage.settings.get("revive", True)
    if scope in ("visual", "text") and host.unit == PROMPT_TOKENS:
        raise ValueError(
            f"schedule.{i}.scope is {scope}, but {type(host.model).__name__} takes text alone, so that nothing would "
            "tell the two apart. Remove it."
        )
    if stage.settings.get("protect", "none") != "none":
        answers = scope in ("all", "text") or (scope is None and host.unit == PROMPT_TOKENS)
        if not (answers and revive):
            why = "revive is false" if answers else "generated tokens are out of its scope"
            raise ValueError(f"schedule.{i}.protect is generated, which has no effect, because {why}. Remove it.")


def check_needs(signals: tuple[Signal, ...], i: int, stage: Stage, who: str) -> None:
    """Refuse signals that only a prefill could show.

    Raises:
        ValueError: says what can be seen in a decode step.
    """
    for signal in signals:
        if signal.kind != "attention" or signal.rows != "last" or signal.site != stage.site.previous_layer:
            raise ValueError(
                f"{who} asks for {signal} at schedule.{i}, a stage of phase {stage.phase}. What every step can show is "
                f"attention with rows last at {stage.site.previous_layer}. Set phase: prefill on that stage."
            )
