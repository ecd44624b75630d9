"""Kinds of models: how transformers loads each, and messages about a checkpoint of another kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)


@dataclass(frozen=True)
class Kind:
    """How models of a kind are loaded.

    Attributes:
        auto: transformers' class that reads them.
        families: model_type -> name of its class, of all families of this kind.
        called: what such a checkpoint is called.
        refusal: what one of another kind cannot do, and what to set instead.
    """

    auto: Any
    families: Mapping[str, Any]
    called: str
    refusal: str


KINDS = {
    "image-text": Kind(
        AutoModelForImageTextToText,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        "a vision-language model",
        "answers no questions on pictures: there are no visual tokens to prune in it. Set model.path to a "
        "vision-language model, or model to a text model, whose model.adapter is btp.models.text.TextLM.",
    ),
    "text": Kind(
        AutoModelForCausalLM,
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "a language model",
        "is no language model for text alone. Set model.path to one, or model.adapter=btp.models.lvlm.LVLM for a "
        "vision-language model.",
    ),
}
