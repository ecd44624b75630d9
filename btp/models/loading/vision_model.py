"""Loads a vision model without a language model, or builds its architecture with random weights."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForVideoClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
)

from btp.models.backbone import FAMILIES
from btp.models.loading.checkpoint import check_depth, first_line, read_config
from btp.models.loading.checks import saved_with
from btp.models.loading.weight_memory import check_memory, stored_bytes

OWN = {"btp_vim": "btp.models.vim", "btp_plainmamba": "btp.models.plainmamba"}


def load_model(
    config: Mapping[str, Any], folder: Path | None, device: torch.device
) -> tuple[PreTrainedModel, Any, Mapping[str, Any]]:
    """The model in eval mode, its picture processor, and what transformers says of the weights (empty for random ones).

    Args:
        config: the model group's keys.
        folder: what `find_checkpoint` returned.
        device: Device that the weights go to.

    Raises:
        ValueError: the checkpoint is no vision model that can be followed, or is broken; or a key has no effect here.
    """
    for key in ("quantize", "device_map"):
        if config[key] is not None:
            raise ValueError(
                f"model.{key} is {config[key]}, but vision models without a language model are loaded whole onto one "
                f"device. Set model.{key}=null."
            )
    about = config["config"] if folder is None else read_config(folder)
    architecture = _architecture(about, folder)
    auto, dtype = _auto(architecture.model_type), getattr(torch, config["dtype"])
    attention = {"attn_implementation": config["attention"]} if architecture.model_type not in OWN else {}
    processor = None if folder is None else _processor(folder, config["processor"])
    if config["weights"] == "random":
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
            torch.manual_seed(0)
            model = auto.from_config(architecture, dtype=dtype, **attention)
        return model.eval(), processor, {}
    assert folder is not None
    check_memory(stored_bytes(folder, dtype, None), device, dtype)
    try:
        model, info = auto.from_pretrained(
            folder, dtype=dtype, device_map={"": device}, local_files_only=True, output_loading_info=True, **attention
        )
    except Exception as error:
        raise ValueError(
            f"the checkpoint in {folder} cannot be loaded as a vision model: {first_line(error)} Set model.path to a "
            f"complete checkpoint.{saved_with(about)}"
        ) from error
    return model.eval(), processor, info


def sketch_model(config: Mapping[str, Any], folder: Path | None) -> PreTrainedModel:
    """The architecture on the meta device, without memory for its weights."""
    architecture = _architecture(config["config"] if folder is None else read_config(folder), folder)
    with torch.device("meta"):
        return _auto(architecture.model_type).from_config(architecture, dtype=getattr(torch, config["dtype"])).eval()


def _architecture(about: Mapping[str, Any], folder: Path | None) -> PreTrainedConfig:
    family = about.get("model_type")
    if family not in (*FAMILIES, *OWN):
        raise ValueError(
            f"the model is of the family {family}, whose tokens cannot be followed without a language model. Set "
            f"model.path to one of: {', '.join((*FAMILIES, *OWN))}."
        )
    if family in OWN:
        importlib.import_module(OWN[family])  # which makes the family known to transformers
    if folder is not None:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    check_depth(about, "model.config")
    try:
        return AutoConfig.for_model(**about)
    except Exception as error:
        raise ValueError(f"model.config describes no model of transformers: {error}. Correct it.") from error


def _auto(family: str) -> Any:
    if family in MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES:
        return AutoModelForVideoClassification
    if family in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
        return AutoModelForObjectDetection
    return AutoModelForImageClassification


def _processor(folder: Path, arguments: Mapping[str, Any]) -> Any:
    """What turns pictures, or lists of frames, into pixel_values.

    Raises:
        ValueError: there is none in the folder.
    """
    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, **arguments)
    except Exception as error:
        raise ValueError(
            f"the checkpoint in {folder} has no picture processor that can be read: {first_line(error)} Copy "
            "preprocessor_config.json of the original model into it."
        ) from error
