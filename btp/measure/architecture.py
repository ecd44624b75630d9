"""Architecture sizes of a model, from which its cost follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_ABSENT = object()
COMPUTED = ("llava", "llava_next", "qwen2_5_vl")  # families of which formula and counter agree to the last digit


@dataclass(frozen=True)
class Stack:
    """A stack of equal transformer layers.

    Attributes:
        layers: Number of layers.
        hidden: D, width of the hidden states.
        ffn: width inside the MLP.
        heads: query heads.
        kv_heads: key and value heads; fewer than `heads` where they are grouped.
        head_dim: d, size of a head.
        gated: True for an MLP of three matrices (gate, up, down), False for two.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    gated: bool


@dataclass(frozen=True)
class Encoder:
    """A vision tower over patches.

    Attributes:
        stack: its layers; all of them are counted, as all run even where an earlier one is read.
        patch_inputs: numbers in a patch: channels * patch height * patch width * frames in a patch.
        patches: patches of one picture; 0 where pictures have any size.
        class_tokens: tokens beside the patches that run through the layers.
        class_projected: the projector gets them too.
        merge: patches per side that become one visual token.
        window: merged tokens per side of an attention window; 0 where every layer sees its whole frame.
        full_layers: layers that see their whole frame in spite of `window`.
    """

    stack: Stack
    patch_inputs: int
    patches: int = 0
    class_tokens: int = 0
    class_projected: bool = False
    merge: int = 1
    window: int = 0
    full_layers: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Architecture:
    """A vision-language model; `vision` is None for a language model.

    Attributes:
        decoder: the language model's layers.
        vocab: rows of the output head.
        vision: the vision tower.
        projector: (inputs, outputs) of each of its matrices, in order.
        counted: the model has a tower whose operations do not follow from its config; what a prefill takes is
            counted while it runs, not computed.
    """

    decoder: Stack
    vocab: int
    vision: Encoder | None = None
    projector: tuple[tuple[int, int], ...] = ()
    counted: bool = False


def architecture(config: Any, *, gated: bool = True, strict: bool = True) -> Architecture:
    """Read the sizes off a model's config, by its attributes alone.

    Knows configs with `text_config` and `vision_config` in the way of LLaVA and LLaVA-NeXT (CLIP or SigLIP without a
    pooling head, a projector of two matrices, any decoder with the usual names) and of Qwen2.5-VL, and configs of a
    language model alone. For another family, build an `Architecture` by hand.

    Args:
        config: Config of the whole model.
        gated: the decoder's MLP has three matrices; a config does not say so.
        strict: refuse other families; False reads their decoder and says `counted`.

    Raises:
        ValueError: an attribute is missing, or the vision tower is of another kind.
    """
    text = getattr(config, "text_config", None) or config
    decoder = _stack(text, gated)
    vocab = _read(text, "vocab_size")
    vision = getattr(config, "vision_config", None)
    if vision is None:
        return Architecture(decoder, vocab)
    tower = str(getattr(vision, "model_type", "without a model_type"))
    if not strict and getattr(config, "model_type", None) not in COMPUTED:
        return Architecture(decoder, vocab, counted=True)
    if "qwen2_5_vl" in tower:
        return _packed(vision, decoder, vocab)
    if "clip" in tower or "siglip" in tower:
        return _square(config, vision, decoder, vocab)
    raise ValueError(
        f"The vision tower is {tower}; architecture() knows how to read clip, siglip and qwen2_5_vl. "
        "Build a btp.measure.architecture.Architecture by hand."
    )


def _square(config: Any, vision: Any, decoder: Stack, vocab: int) -> Architecture:
    stack = _stack(vision, gated=False)
    patch = _read(vision, "patch_size")
    layers_read = getattr(config, "vision_feature_layer", -1)
    features = stack.hidden * (len(layers_read) if isinstance(layers_read, list | tuple) else 1)
    has_class = "siglip" not in vision.model_type
    encoder = Encoder(
        stack=stack,
        patch_inputs=getattr(vision, "num_channels", 3) * patch**2,
        patches=(_read(vision, "image_size") // patch) ** 2,
        class_tokens=1 if has_class else 0,
        class_projected=has_class and getattr(config, "vision_feature_select_strategy", "default") == "full",
    )
    return Architecture(decoder, vocab, encoder, ((features, decoder.hidden), (decoder.hidden, decoder.hidden)))


def _packed(vision: Any, decoder: Stack, vocab: int) -> Architecture:
    stack = _stack(vision, gated=getattr(vision, "hidden_act", "") == "silu")
    patch, merge = _read(vision, "patch_size"), vision.spatial_merge_size
    encoder = Encoder(
        stack=stack,
        patch_inputs=getattr(vision, "in_channels", 3) * patch**2 * _read(vision, "temporal_patch_size"),
        merge=merge,
        window=getattr(vision, "window_size", 0) // patch // merge,
        full_layers=frozenset(getattr(vision, "fullatt_block_indexes", ())),
    )
    wide = stack.hidden * merge**2
    out = _read(vision, "out_hidden_size")
    return Architecture(decoder, vocab, encoder, ((wide, wide), (wide, out)))


def _stack(config: Any, gated: bool) -> Stack:
    hidden = _read(config, "hidden_size")
    heads = _read(config, "num_attention_heads", "num_heads")
    return Stack(
        layers=_read(config, "num_hidden_layers", "depth"),
        hidden=hidden,
        ffn=_read(config, "intermediate_size", "ffn_dim"),
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
        gated=gated and not hasattr(config, "ffn_dim"),  # OPT's MLP has two matrices
    )


def _read(config: Any, *names: str) -> int:
    for name in names:
        found = getattr(config, name, _ABSENT)
        if isinstance(found, int):
            return found
    raise ValueError(
        f"{type(config).__name__} has no {' or '.join(names)}, so this model's cost does not follow from its "
        "config. Build a btp.measure.architecture.Architecture by hand."
    )
