"""Checks of model, pruner and schedule against each other before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from btp.core.cache_pruner import CachePruner
from btp.core.host import PROMPT_TOKENS, Host, unwrapped
from btp.core.pruner import Pruner
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal
from btp.engine.checks.cache_plan import check_cache_signal, check_cache_stages, each_layer
from btp.engine.checks.decode_stages import check_in_decode, check_needs
from btp.engine.checks.signals import attention_name, check_signal, instead, vision_tower
from btp.engine.checks.sliding_window import layer_kinds
from btp.engine.hooks.arguments import Binding
from btp.engine.hooks.flash import FLASH

_ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True)
class PlannedStage:
    """A stage, what its decision needs to see, and its place in the schedule."""

    stage: Stage
    index: int
    needs: tuple[Signal, ...]


def make_plan(host: Host, pruner: Pruner | None, schedule: Schedule) -> tuple[PlannedStage, ...]:
    """Everything that can be refused before the first batch.

    Raises:
        ValueError: the model, the schedule or the pruner ask for what cannot be, or for what has no effect.
    """
    vision = host.towers.get("vision")
    for i, stage in enumerate(schedule):
        _check_tower(host, i, stage)
    schedule.check(host.num_layers, None if vision is None else len(vision.layers))
    if schedule:
        check_host(host)
    for i, stage in enumerate(schedule):
        _check_stage(host, i, stage)
    check_in_decode(host, pruner, schedule)
    check_cache_stages(host, pruner, schedule)
    _check_positions(schedule)
    _check_weighing(host, pruner, schedule)
    if pruner is None:
        for i, stage in enumerate(schedule):
            if not stage.withdraws_all and not (isinstance(stage.keep, float) and stage.keep == 1.0):
                raise ValueError(
                    f"schedule.{i}.keep is {stage.keep} at {stage.site}, but there is no pruner to decide "
                    "which "
                    "tokens stay. Set pruner, or keep: 0 or 1.0."
                )
            extra = [key for key in stage.settings if key != "scope" or stage.site.kind != "cache"]
            if extra and not stage.in_decode:
                raise ValueError(f"schedule.{i}.{extra[0]} is set, but there is no pruner. Remove it.")
    elif not schedule:
        raise ValueError(
            f"pruner {pruner.name!r} has no stage, so it would do nothing. Give it a schedule, or run pruner=none."
        )
    else:
        pruner.check(schedule)
        _check_text(host, pruner, schedule)
    stages = each_layer(schedule, host.num_layers)
    return tuple(PlannedStage(stage, i, _needs(host, pruner, i, stage)) for i, stage in stages)


def check_host(host: Host) -> None:
    """Refuse models whose tokens cannot be moved or seen faithfully.

    Raises:
        ValueError: training mode, a wrapper around the model, an attention implementation, a kind of layers or a
            family that is not supported; the message names it.
    """
    if host.model.training:
        raise ValueError("The model is in training mode. Call model.eval(); pruning is built for inference only.")
    inside = unwrapped(host.model)
    if inside is not host.model:
        raise ValueError(
            f"{type(host).__name__}.model is a {type(host.model).__name__} around {type(inside).__name__}, which calls "
            "it past the engine. Make the host anew from it: LVLM(model) takes wrappers off."
        )
    if host.decoder is None:
        _check_backbone(host)
        return
    if attention_name(host) not in (*_ATTENTION, FLASH):
        raise ValueError(
            f"The decoder runs attention implementation {attention_name(host)!r}; masks of unequal layers are built "
            f"for {', '.join(_ATTENTION)} and {FLASH} only. Load the model with attn_implementation=sdpa, which uses "
            "fused kernels too."
        )
    layer_kinds(host)
    layer = Binding(host.towers["llm"].layers[0])
    lent = [name for name in ("per_layer_input", "shared_kv_states") if name in layer]
    if lent:
        raise ValueError(
            f"Layers of {type(host.decoder).__name__} take {' and '.join(lent)}, which hold rows of tokens that "
            "a cut would have to take along, and this is not built yet. Use a family whose layers take hidden states "
            "alone, such as gemma3 in place of Gemma 4."
        )
    if "deepstack_features" in Binding(host.decoder):
        raise ValueError(
            f"{type(host.decoder).__name__} adds vision features in front of layers of its own choice "
            "(deepstack_features), which is not built yet. Use a family that adds them behind its first layers, as "
            "Qwen3-VL does, or none."
        )


def _check_backbone(host: Host) -> None:
    """Refuse a vision model whose attention takes no weights for single keys."""
    used = getattr(host.vision.config, "_attn_implementation", None)  # type: ignore[union-attr]
    if host.towers["vision"].attends and used not in _ATTENTION:
        raise ValueError(
            f"{type(host.model).__name__} runs attention implementation {used!r}, which cannot leave padded rows out. "
            "Load the model with attn_implementation=sdpa."
        )


def _check_tower(host: Host, i: int, stage: Stage) -> None:
    """Refuse a stage in a tower that the model has not."""
    if host.decoder is None and (stage.site.tower == "llm" or stage.site.kind == "output"):
        last, lacks = len(host.towers["vision"].layers) - 1, "language model"
        lacks = lacks if stage.site.tower == "llm" else "projector"
        raise ValueError(
            f"schedule.{i}.site is {stage.site}, but {type(host.model).__name__} has no {lacks}: its stages stand at "
            f"vision.layer.0 to vision.layer.{last}, or at vision.mlp.N. Set schedule.{i}.site to one of them."
        )


def _check_stage(host: Host, i: int, stage: Stage) -> None:
    if stage.site.kind == "feature":
        raise ValueError(f"schedule.{i}.site is {stage.site}, where nothing can be cut. Set it to vision.output.")
    if stage.site.tower == "vision":
        _check_vision(host, i, stage)
    if stage.phase != "prefill" and not stage.in_decode and stage.site.kind != "cache":
        raise ValueError(f"schedule.{i}.phase is {stage.phase}, which is not built yet. Set phase: prefill.")
    extra = [key for key in stage.settings if stage.site.kind != "cache" or key not in CachePruner.stage_settings]
    if stage.withdraws_all and extra:
        key = extra[0]
        raise ValueError(f"schedule.{i}.{key} has no effect, because keep is 0 there. Remove it.")
    if stage.of == "alive" and not isinstance(stage.keep, float) and not stage.in_decode:
        raise ValueError(
            f"schedule.{i}.of is alive, which has no effect: {stage.keep} says how many tokens stay. Write a share, or "
            "remove it."
        )
    if stage.positions == "renumber" and host.decoder is not None and host.rotary is None:
        raise ValueError(
            f"schedule.{i}.positions is renumber, but {type(host.decoder).__name__} adds positions to its embeddings, "
            f"where they cannot be changed between layers. Set pruner.schedule.{i}.positions=original."
        )
    rope = {} if host.decoder is None else getattr(host.decoder.config, "rope_parameters", None) or {}
    if stage.positions == "renumber" and "mrope_section" in rope:
        raise ValueError(
            f"schedule.{i}.positions is renumber, but {type(host.decoder).__name__} turns positions in "
            "several axes, "
            f"where closing gaps has no agreed meaning. Set pruner.schedule.{i}.positions=original."
        )


def _check_text(host: Host, pruner: Pruner, schedule: Schedule) -> None:
    """Refuse a method that goes by a picture, where all of a prompt is text."""
    if host.unit != PROMPT_TOKENS:
        return
    for i, stage in enumerate(schedule):
        if stage.withdraws_all:
            continue
        text = next((signal for signal in pruner.needs(stage) if signal.rows == "text"), None)
        why = "goes by where tokens lie in a picture" if pruner.needs_grid(stage) else ""
        why = why if text is None else f"asks for {text}, the text beside a picture"
        if why:
            raise ValueError(
                f"pruner {pruner.name!r} {why} at schedule.{i} ({stage.site}), but {type(host.model).__name__} has no "
                f"picture: its stages prune {host.unit}. Choose a pruner that goes by tokens alone, as random, "
                "diversity or fastv, or a vision-language model."
            )


def _check_positions(schedule: Schedule) -> None:
    inside = [(i, stage) for i, stage in enumerate(schedule) if stage.site.tower == "vision"]
    for (i, a), (j, b) in pairwise(inside):
        if a.positions != b.positions:
            raise ValueError(
                f"schedule.{j}.positions is {b.positions}, but schedule.{i}.positions is {a.positions}. What left in "
                "the vision tower leaves the prompt in one go: set both to the same."
            )


def _check_weighing(host: Host, pruner: Pruner | None, schedule: Schedule) -> None:
    inside = any(stage.site.kind in ("layer", "mlp") for stage in schedule if stage.site.tower == "vision")
    if not inside or not getattr(pruner, "proportional_attention", False):
        return
    used = host.vision.config._attn_implementation  # type: ignore[union-attr]
    if used not in _ATTENTION:
        raise ValueError(
            f"The vision tower runs attention implementation {used!r}, which takes no weights for merged tokens. Load "
            "the model with attn_implementation=sdpa, or set pruner.method.proportional_attention=false."
        )


def _check_vision(host: Host, i: int, stage: Stage) -> None:
    tower = vision_tower(host, f"schedule.{i}.site is {stage.site}: the stage", instead(i))
    assert tower.feature is not None
    if stage.site.layer > tower.feature:
        raise ValueError(
            f"schedule.{i}.site is {stage.site}, but the projector reads the output of vision layer {tower.feature}, "
            f"so a cut there changes nothing. Choose vision.layer.{tower.feature} or earlier, or vision.output."
        )
    if stage.withdraws_all and stage.site.kind != "output" and not tower.fixed_count:
        raise ValueError(
            f"schedule.{i}.keep is 0 at {stage.site}, which leaves the layers of a vision tower without class token "
            "nothing to compute. Set the site to vision.output."
        )
    if stage.site.kind == "mlp" and None in (tower.mlp, tower.mlp_norm):
        raise ValueError(
            f"schedule.{i}.site is {stage.site}, but no MLP with a norm in front of it was found inside the layers of "
            "the vision tower. Use vision.layer.N."
        )


def _needs(host: Host, pruner: Pruner | None, i: int, stage: Stage) -> tuple[Signal, ...]:
    if pruner is None or stage.withdraws_all:
        return ()
    try:
        needs = tuple(pruner.needs(stage))
    except ValueError as error:
        raise ValueError(f"pruner {pruner.name!r} cannot work at schedule.{i}.site: {error}") from None
    if stage.in_decode:
        check_needs(needs, i, stage, f"pruner {pruner.name!r}")
    for signal in needs:
        check_signal(host, signal, f"pruner {pruner.name!r}")
        check_cache_signal(signal, stage, f"pruner {pruner.name!r}")
        if not signal.ready_for(stage.site):
            later = signal.site.layer + (0 if signal.at_input else 1)
            if signal.site.kind == "input":
                first = "llm.input"
            elif signal.site.tower == "vision":
                first = "vision.output" if signal.site.kind in ("feature", "output") else f"vision.layer.{later}"
            else:
                first = f"llm.layer.{later}"
            raise ValueError(
                f"pruner {pruner.name!r} asks for {signal.kind} at {signal.site}, but its stage cuts at {stage.site}. "
                f"A stage may only use signals from sites before it. Set schedule.{i}.site to {first} or later."
            )
        if signal.kind == "preview" and signal.site != stage.site:
            raise ValueError(
                f"pruner {pruner.name!r} asks for {signal}, but its stage cuts at {stage.site}: that layer has run by "
                f"then. Ask for its attention, or for the preview of the layer at schedule.{i}.site."
            )
    return needs
