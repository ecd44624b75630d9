"""Words of a text prompt that each layer's cache holds under an arm, of some samples, for the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from btp.core.trace import Call
from btp.engine.attach import attach
from btp.models.loading.load import Loaded
from btp.report.pages.explain_held import ends
from btp.runner.arms import Arm
from btp.runner.evaluation.data import Collate
from btp.runner.evaluation.oracle_targets import aim
from btp.runner.explain.layers import held_by_head, spread_over
from btp.tasks.sample import Sample

MOST_WORDS = 800  # of a prompt: as many from its beginning as from its end
_SPACES = ("▁", "Ġ")  # how tokenizers write a space in front of a word


def kept_words(
    loaded: Loaded, arms: Sequence[Arm], samples: Sequence[Sample], collate: Callable[..., Collate] = Collate
) -> dict[str, dict[str, Any]]:
    """Per sample: the prompt's pieces, and per arm with stages the share of key heads that hold each, in some layers.

    The prompt runs once more for each of them, up to the first token.

    Returns:
        sample -> {words, left_out (pieces in the middle), arms: {arm: {layer: shares of the words, in percent}}}.
    """
    found = {}
    for sample in samples:
        inputs = collate(loaded.processor)([sample]).to(loaded.host.device, loaded.host.dtype).inputs
        words, mine = pieces(loaded.processor.tokenizer, inputs["input_ids"][0].tolist()), {}
        for arm in arms:
            if not arm.schedule or arm.picture != "full":
                continue
            shares = _held(loaded, arm, sample, inputs)
            mine[arm.name] = {str(at): ends(_percent(shares[at]), MOST_WORDS) for at in _layers(shares)}
        out = max(0, len(words) - MOST_WORDS)
        found[sample.id] = {"words": ends(words, MOST_WORDS), "left_out": out, "arms": mine}
    return found


def held(call: Call, visual: Tensor) -> Tensor:
    """[L, S] share of key heads of each layer that hold a token behind the prompt, of a call's first row.

    Args:
        visual: [S] bool, tokens that could leave between layers, of the row without padding.
    """
    return torch.stack([heads.float().mean(0) for heads in held_by_head(call, visual)])


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """A prompt token by token, with the spaces between words where they stand."""
    names = tokenizer.convert_ids_to_tokens(list(ids))
    marked = any(str(name).startswith(_SPACES) for name in names)
    texts = [tokenizer.decode([i]) for i in ids]
    if not marked:  # a token is a word
        return [f" {text.strip()}" for text in texts]
    return [
        text if text.startswith(" ") or not str(name).startswith(_SPACES) else f" {text}"
        for text, name in zip(texts, names, strict=True)
    ]


def _held(loaded: Loaded, arm: Arm, sample: Sample, inputs: Mapping[str, Tensor]) -> Tensor:
    pruner = arm.build()
    aim(pruner, [sample])
    with torch.inference_mode(), attach(loaded.host, pruner, arm.schedule) as trace:
        loaded.host.generate(**inputs, max_new_tokens=1)
    return held(trace[0], loaded.host.layout(inputs).visual[0])


def _layers(shares: Tensor) -> list[int]:
    """Some layers in which something left, the first and the last of them with it."""
    cut = (shares < 1.0).any(1).nonzero().flatten().tolist()
    return [cut[i] for i in spread_over(len(cut))]


def _percent(shares: Tensor) -> list[int]:
    return (100 * shares).round().int().tolist()
