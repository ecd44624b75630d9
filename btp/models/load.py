"""Finds and loads checkpoints: a folder, the local hub cache, or an architecture without weights."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from packaging.version import Version
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from btp.models.lvlm import LVLM

OLDEST, NEWEST = "5.20", "6"
EMBEDDED = Path(__file__).resolve().parent
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Loaded:
    """A model ready to run.

    Attributes:
        host: the model as the engine sees it.
        processor: makes inputs from pictures and text; None for an architecture without a checkpoint.
    """

    host: LVLM
    processor: Any


def check_library() -> None:
    """Refuse a transformers whose decoder loop the engine does not know.

    Raises:
        ValueError: outside the supported versions.
    """
    found = Version(transformers.__version__)
    if not Version(OLDEST) <= found < Version(NEWEST):
        raise ValueError(
            f"transformers {found} is installed, but btp supports {OLDEST} up to, not including, {NEWEST}. "
            "Install the version that requirements.txt names."
        )


def find_checkpoint(config: Mapping[str, Any]) -> Path | None:
    """The folder that the model config means; None for random weights from the yaml's own architecture.

    Args:
        config: the model group's keys: path, hub, revision, weights, config, download, name.

    Raises:
        ValueError: no such folder, no checkpoint in it, or nothing in the local cache; says what to do.
    """
    random = config["weights"] == "random"
    if config["path"] is None:
        return None if random and config["config"] else _from_hub(config)
    asked = Path(os.path.expanduser(str(config["path"])))
    folder = asked if asked.is_dir() else EMBEDDED / asked
    if not folder.is_dir():
        near = difflib.get_close_matches(asked.name, _siblings(asked), 1)
        hint = f" Did you mean {asked.parent / near[0]}?" if near else ""
        raise ValueError(f"model.path is {asked}, but there is no such folder.{hint} Set model.path to a checkpoint.")
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"model.path is {asked}, but it holds no config.json, so it is not a checkpoint. "
            "Set model.path to a folder made by save_pretrained or downloaded from a hub."
        )
    if not random and not any(folder.glob(pattern) for pattern in WEIGHTS if list(folder.glob(pattern))):
        raise ValueError(
            f"model.path is {asked}, which holds a config.json but no weights ({' or '.join(WEIGHTS)}). "
            "Complete the download, or set model.weights=random to measure cost without them."
        )
    return folder


def _siblings(path: Path) -> list[str]:
    return [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []


def _from_hub(config: Mapping[str, Any]) -> Path:
    if config["hub"] is None:
        raise ValueError(f"model {config['name']!r} has neither a path nor a hub name. Set model.path.")
    try:
        folder = snapshot_download(config["hub"], revision=config["revision"], local_files_only=not config["download"])
    except (LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"model {config['name']!r} needs the weights of {config['hub']}, and they are not in the local hub "
            f"cache. Download them (`hf download {config['hub']}`, or model.download=true) and set model.path to "
            "the folder, or set model.weights=random to measure cost without weights."
        ) from error
    return Path(folder)


def load(config: Mapping[str, Any], folder: Path | None, device: torch.device) -> Loaded:
    """Load a model in eval mode onto `device`, with a processor that pads on the left.

    Args:
        config: the model group's keys.
        folder: what `find_checkpoint` returned.
        device: where the weights go, unless model.device_map spreads them.

    Raises:
        ValueError: the checkpoint is of no family that transformers can answer pictures with, or is broken.
    """
    dtype = getattr(torch, config["dtype"])
    if config["weights"] == "random":
        return _random(config, folder, device, dtype)
    assert folder is not None
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=config["attention"],
            device_map=config["device_map"],
            local_files_only=True,
        )
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"the checkpoint in {folder} cannot be loaded as a vision-language model: {reason} "
            "Set model.path to a complete checkpoint of a family that transformers knows."
        ) from error
    if config["device_map"] is None:
        model.to(device)
    _check_processor(processor, folder)
    processor.tokenizer.padding_side = "left"
    return Loaded(LVLM(model.eval()), processor)


def _random(config: Mapping[str, Any], folder: Path | None, device: torch.device, dtype: torch.dtype) -> Loaded:
    """Build the architecture on the device itself, with whatever the initialisation leaves in it."""
    if folder is not None:
        architecture = AutoConfig.from_pretrained(folder, local_files_only=True)
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    else:
        architecture = AutoConfig.for_model(**config["config"])
        processor = None
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(
            architecture, dtype=dtype, attn_implementation=config["attention"]
        )
    return Loaded(LVLM(model.eval()), processor)


def _check_processor(processor: Any, folder: Path) -> None:
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(
            f"the checkpoint in {folder} has no chat template, so no prompt can be built. "
            "Add its chat_template.jinja to the folder of model.path."
        )
