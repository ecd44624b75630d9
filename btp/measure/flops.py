"""Floating point operations of a prefill: by the field's formula, by our own, and counted while it runs.

Our formula and the counter count the same things: matrix products and convolutions, a multiply-add as two.
Norms, activations, softmax and rotary turns are left out (well under a percent in models of use).
Attention is counted in full although a causal mask hides half of it, as kernels and papers mostly do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from btp.measure.architecture import Architecture, Encoder, Stack
from btp.measure.segments import Segments


def visual_pdrop(tokens_per_layer: Iterable[int], hidden: int, ffn: int) -> int:
    """The field's "TFLOPs": sum over layers of 4nd^2 + 2n^2d + 3ndm, a multiply-add counted once.

    Only visual tokens and only decoder layers count; heads are taken as ungrouped, the MLP as gated.

    Args:
        tokens_per_layer: n, visual tokens of one sample that enter each decoder layer.
        hidden: d.
        ffn: m.

    Source: Xing et al. 2024 (PyramidDrop), arXiv:2410.17247, sec. 3.3.
    """
    d, m = hidden, ffn
    return sum(4 * n * d**2 + 2 * n**2 * d + 3 * n * d * m for n in tokens_per_layer)


def prefill(
    sizes: Architecture,
    tokens: Sequence[Sequence[int]],
    segments: Segments = (),
    *,
    passed: Sequence[tuple[int, int]] = (),
    projected: Sequence[int] = (),
    selection: int = 0,
    logit_rows: int | None = None,
) -> int:
    """Operations of a prefill over all rows of a batch, a multiply-add counted as two.

    Vision tower, projector, all tokens in the decoder, and the output head. Real tokens count; what the
    machine computes for padding and filling is not in it. Generation takes logits of the last token only.

    Args:
        sizes: Sizes of the model.
        tokens: real tokens of each row that entered each decoder layer (`Call.tokens`): L tuples of B.
        segments: per vision layer, the lengths its attention ran over; none without a picture.
        passed: tokens of a picture that attended and that passed the MLP in each vision layer, where some left there
            (`Call.vision`); empty where all of `segments` ran.
        projected: tokens of each picture that the projector took (`Call.projected`); empty likewise.
        selection: operations of the pruner and of the signals it saw, counted apart.
        logit_rows: tokens that the output head turns into logits; None takes one per row.

    Raises:
        ValueError: as many layers ran as the architecture does not have.
    """
    if len(tokens) != sizes.decoder.layers:
        raise ValueError(
            f"tokens has {len(tokens)} layers, but the architecture has {sizes.decoder.layers}. "
            "Pass Call.tokens of a finished prefill of the same model."
        )
    decoder = sum(layer(sizes.decoder, row, row**2) for entered in tokens for row in entered)
    rows = len(tokens[0]) if logit_rows is None else logit_rows
    head = 2 * rows * sizes.decoder.hidden * sizes.vocab
    tower = shortened(sizes, segments, passed, projected) if passed else vision(sizes, segments)
    return tower + decoder + head + selection


def layer(stack: Stack, tokens: int, pairs: int) -> int:
    """Operations of one layer for `tokens` tokens and `pairs` (query, key) pairs of its attention."""
    return attention_block(stack, tokens, pairs) + mlp_block(stack, tokens)


def attention_block(stack: Stack, tokens: int, pairs: int) -> int:
    """Operations of one layer's attention, its four projections included."""
    inner = stack.heads * stack.head_dim
    projections = 2 * inner + 2 * stack.kv_heads * stack.head_dim  # q and out, k and v
    return 2 * tokens * stack.hidden * projections + 4 * pairs * inner


def mlp_block(stack: Stack, tokens: int) -> int:
    """Operations of one layer's MLP."""
    return 2 * tokens * stack.hidden * (3 if stack.gated else 2) * stack.ffn


def vision(sizes: Architecture, segments: Segments) -> int:
    """Operations of vision tower and projector, a multiply-add counted as two; 0 without a picture.

    Args:
        sizes: Sizes of the model.
        segments: see `btp.measure.segments`.

    Raises:
        ValueError: there are segments, but no vision tower or another number of layers.
    """
    if not any(segments):
        return 0
    if sizes.vision is None or len(segments) != sizes.vision.stack.layers:
        found = "no vision tower" if sizes.vision is None else f"{sizes.vision.stack.layers} vision layers"
        raise ValueError(
            f"segments has {len(segments)} layers, but the architecture has {found}. "
            "Make them with btp.measure.segments from the same architecture."
        )
    encoder = sizes.vision
    total, classes = sum(segments[0]), encoder.class_tokens * len(segments[0])
    embedding = 2 * (total - classes) * encoder.patch_inputs * encoder.stack.hidden
    layers = sum(layer(encoder.stack, total, sum(n**2 for n in lengths)) for lengths in segments)
    projected = _projected(encoder, total, classes)
    return embedding + layers + sum(2 * projected * a * b for a, b in sizes.projector)


def shortened(
    sizes: Architecture, segments: Segments, passed: Sequence[tuple[int, int]], projected: Sequence[int]
) -> int:
    """Operations of vision tower and projector where tokens left on the way.

    Args:
        sizes: Sizes of the model.
        segments: Segments of the uncut pictures, for their number and for the patches that were embedded.
        passed, projected: as for `prefill`.

    Raises:
        ValueError: there is no vision tower, or it has another number of layers.
    """
    if sizes.vision is None or len(passed) != sizes.vision.stack.layers:
        found = "no vision tower" if sizes.vision is None else f"{sizes.vision.stack.layers} vision layers"
        raise ValueError(f"passed has {len(passed)} layers, but the architecture has {found}. Pass Call.vision.")
    stack, pictures = sizes.vision.stack, len(segments[0])
    patches = sum(segments[0]) - sizes.vision.class_tokens * pictures
    embedding = 2 * patches * sizes.vision.patch_inputs * stack.hidden
    layers = sum(attention_block(stack, a, a**2) + mlp_block(stack, m) for a, m in passed) * pictures
    return embedding + layers + sum(2 * sum(projected) * a * b for a, b in sizes.projector)


def preview(decoder: Stack, tokens: Sequence[int], queries: int) -> int:
    """Operations of a coming layer's attention rows: queries, keys and values of all tokens, and the rows.

    Args:
        decoder: sizes of the language model.
        tokens: tokens of each row in front of the layer.
        queries: rows of attention asked for, per batch row.
    """
    wide = (decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
    return 2 * sum(tokens) * decoder.hidden * wide + attention_signal(decoder, tokens, queries)


def _projected(encoder: Encoder, total: int, classes: int) -> int:
    return (total if encoder.class_projected else total - classes) // encoder.merge**2


def attention_signal(decoder: Stack, tokens: Sequence[int], queries: int) -> int:
    """Operations of seeing attention rows beside fused attention: queries against all keys, once more.

    Signals of other kinds are read from what the model computes anyway; for previews see `preview`.

    Args:
        decoder: sizes of the language model.
        tokens: tokens of each row that entered the layer.
        queries: rows of attention asked for, per batch row: 1 for the last token.
    """
    return 2 * queries * sum(tokens) * decoder.heads * decoder.head_dim


def measured(fn: Callable[[], object]) -> int:
    """Operations that really ran inside `fn`, by torch's counter, a multiply-add counted as two.

    Signals and selection of a pruner, padding and filling are in it. Fused attention is seen where it is
    torch's own on CPU or CUDA; kernels of other packages (flash-attn, compiled ones) are not seen.
    """
    # The counter does not know the kernel that fused attention runs on a CPU.
    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused_attention}
    with FlopCounterMode(display=False, custom_mapping=fused) as counter:
        fn()
    return counter.get_total_flops()


def _fused_attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)
