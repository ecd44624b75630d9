"""Refuses signals that a host cannot show, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from btp.core.host import PROMPT_TOKENS, Host, Packed, Tower
from btp.core.schedule import Stage
from btp.core.signals import BLOCKS, Signal
from btp.core.site import Site
from btp.engine.decoder.probe import IN_ATTENTION

_ELSEWHERE = "llm.input and llm.layer.N (docs/support.md has what works on which model)."
_TOGETHER = (
    "What can be put together for these: attention (rows mean, form probs), queries and keys of a layer, and hidden at "
    "vision.output."
)


def attention_name(host: Host) -> str:
    """The decoder's attention implementation."""
    return host.decoder.config._attn_implementation  # type: ignore[union-attr, return-value]


def vision_tower(host: Host, who: str, instead: str = "Use stages and signals of the language model") -> Tower:
    """The vision tower, where tokens can be followed from its features to the prompt.

    Args:
        host: the model.
        who: asks, for the message.
        instead: what to do where visual tokens are made of several of the tower's.

    Raises:
        ValueError: there is none, or its tokens cannot be followed; names who asked.
    """
    tower = host.towers.get("vision")
    if tower is not None and host.decoder is None:
        return tower
    if tower is not None and tower.pooled:
        raise ValueError(
            f"{who} works in the vision tower, but {_joined(host, tower.pooled)}, so that none of them stays or leaves "
            f"by itself. {instead}: {_ELSEWHERE}"
        )
    if tower is None and host.unit == PROMPT_TOKENS:
        raise ValueError(
            f"{who} works in the vision tower, but {type(host.model).__name__} has none: all of its prompt is text. "
            "Use a method that works in the language model, as random, diversity or fastv."
        )
    if tower is None or tower.feature is None or tower.token_axis != 1 or host.projector is None:
        kind = "no vision tower" if tower is None else "a vision tower whose tokens cannot be followed yet"
        kind = getattr(host, "unfollowed", "") or kind
        raise ValueError(
            f"{who} works in the vision tower, but {type(host.model).__name__} has {kind} (one layer read by the "
            "projector, one token per patch, pictures [P, N, C]). Use a method that works in the language model."
        )
    return tower


def check_packing(host: Host, kind: str, packed: Sequence[Packed]) -> None:
    """Refuse pictures and videos whose visual tokens are blends of the vision tower's.

    Raises:
        ValueError: says which, why and what works instead.
    """
    for i, entry in enumerate(packed):
        if bool(((entry.source < 0) & (entry.coord[:, 1] >= 0)).any()):
            what = f"{'Picture' if kind == 'image' else 'Video'} {i} of the batch"
            raise ValueError(
                f"{what} comes to the language model as tokens that are none of the vision tower's: "
                f"{getattr(host, 'blends', 'this family resizes or pools them')}. The schedule or its pruner has a "
                "stage or a signal in the vision tower, which could not be followed. Use a method that works in the "
                "language model (llm.input, llm.layer.N)."
            )


def layer_of(tower: Tower, site: Site) -> int:
    """The layer that a site of this tower means; `vision.feature` is resolved."""
    if site.kind == "feature":
        assert tower.feature is not None  # held by vision_tower
        return tower.feature
    return max(site.layer, 0)


def check_signal(host: Host, signal: Signal, who: str) -> None:
    """Refuse a signal that cannot be seen on this host.

    Raises:
        ValueError: names who asked, what for, and what to change.
    """
    asks = f"{who} asks for {signal}"
    if signal.site.tower == "vision":
        tower = host.towers.get("vision")
        merges = tower is not None and tower.pooled and host.projector is not None
        tower = check_merged(host, signal, asks) if merges else vision_tower(host, asks + ": it")
        if signal.rows == "cls" and not tower.fixed_count:
            if signal.kind == "hidden":
                raise ValueError(
                    f"{asks}, but the vision tower of {type(host.model).__name__} has no class token that could be "
                    "kept. Set pruner.method.cls=false where the method offers it."
                )
            raise ValueError(
                f"{asks}, but the vision tower of {type(host.model).__name__} has no class token. What every patch "
                "gets from all others would work in its place: Signal rows mean, which methods offer as "
                "pruner.method.score=received where their authors or later work did so."
            )
    elif "llm" not in host.towers:
        raise ValueError(
            f"{asks}, but {type(host.model).__name__} has no language model. Use a method that works in a vision tower."
        )
    else:
        tower = host.towers["llm"]
    if host.decoder is None and signal.site.kind == "output":
        raise ValueError(f"{asks}, but {type(host.model).__name__} has no projector. Ask at vision.layer.N.")
    if signal.site.layer >= len(tower.layers):
        raise ValueError(
            f"{asks}, but the {tower.name} tower has {len(tower.layers)} layers. "
            f"Ask for a layer from 0 to {len(tower.layers) - 1}."
        )
    if signal.kind == "projected" and not getattr(host, "pools_projected", False):
        raise ValueError(
            f"{asks}, but in {type(host.model).__name__} no frames can be seen between projector and pooling: it pools "
            "them before, or not at all. LLaVA-OneVision does behind it."
        )
    if signal.kind in (*IN_ATTENTION, "preview") and not tower.attends:
        raise ValueError(
            f"{asks}, but the {tower.name} tower has no attention. Use a method that asks for scan or hidden."
        )
    if signal.kind == "scan" and tower.directions is None:
        raise ValueError(
            f"{asks}, but the layers of {type(host.model).__name__} are no state space models. Use a method that asks "
            "for attention, keys or hidden states."
        )
    parts = {"preview": ("attention", "attention_norm"), "rotary": ("attention",)}.get(signal.kind, ())
    if signal.kind in ("update", "change") and signal.form in BLOCKS[1:]:
        parts = (str(signal.form),)
    for part in parts:
        if getattr(tower, part) is None:
            raise ValueError(
                f"{asks}, but no {part} was found inside the layers of {type(host.decoder).__name__}. "
                "Name it in this family's Tower (btp.models)."
            )
    if signal.form == "normed" and host.norm is None:
        raise ValueError(f"{asks}, but the decoder has no final norm. Use form None.")


def check_merged(host: Host, signal: Signal, asks: str) -> Tower:
    """Refuse what cannot be put together for visual tokens of which each was several patches.

    Raises:
        ValueError: says what can be seen there.
    """
    tower, used = host.towers["vision"], host.vision.config._attn_implementation  # type: ignore[union-attr]
    if not _can_be_joined(signal):
        raise ValueError(f"{asks}, but {_joined(host, tower.pooled)}. {_TOGETHER}")
    if signal.kind != "hidden" and used not in ("sdpa", "eager"):
        raise ValueError(
            f"{asks}, but the vision tower runs attention implementation {used!r}, which takes all pictures in one "
            "call. Load the model with attn_implementation=sdpa."
        )
    return tower


def check_frames(host: Host, stages: Iterable[tuple[int, Stage]], signals: Iterable[Signal], method: str) -> None:
    """Refuse stages and signals in a tower of which the frames of videos, and not pictures, are pooled.

    Args:
        stages: those in the vision tower, with their numbers in the schedule.
        signals: those of the vision tower.
        method: Name of the pruner.

    Raises:
        ValueError: says which, and what works instead.
    """
    joined = _joined(host, host.video_pooling)  # type: ignore[attr-defined]
    cut = next(iter(stages), None)
    if cut is not None:
        raise ValueError(
            f"schedule.{cut[0]}.site is {cut[1].site}: the stage works in the vision tower, but {joined}, so that none "
            f"of them stays or leaves by itself. {instead(cut[0])}: {_ELSEWHERE}"
        )
    for signal in signals:
        if not _can_be_joined(signal):
            raise ValueError(f"pruner {method!r} asks for {signal}, but {joined}. {_TOGETHER}")


def instead(index: int) -> str:
    """What to do where a stage cannot stand in the vision tower."""
    return f"Set pruner.schedule.{index}.site=llm.input where the method can, or use one for the language model"


def _can_be_joined(signal: Signal) -> bool:
    """Whether what was seen of patches says something of the visual token that several of them become."""
    mean = signal.kind == "attention" and signal.rows in ("mean", "cls") and signal.form == "probs"
    features = signal.kind == "hidden" and signal.site.kind == "output" and signal.rows is None
    return mean or features or signal.kind in ("queries", "keys")


def _joined(host: Host, what: str) -> str:
    return f"in {type(host.model).__name__} {what} joins several of the tower's tokens into each visual token"


def unseen_message(who: str, signal: Signal) -> str:
    """What to say where a declared signal never came."""
    if signal.kind in (*IN_ATTENTION, "preview"):
        why = "the layer's attention did not pass through the attention registry of transformers"
    else:
        why = "the layer ran without the hook that looks"
    return f"{who} asks for {signal}, but {why}. This family needs an adapter in btp.models."
