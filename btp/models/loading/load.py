"""Loads a checkpoint onto its device, or builds an architecture without one."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel

from btp.models.backbone import Backbone
from btp.models.decoder_host import DecoderHost
from btp.models.loading.checkpoint import check_keys, find_checkpoint, first_line, model_folder, read_config
from btp.models.loading.checks import check_attention, check_kind, refuse_code, saved_with
from btp.models.loading.greedy import asked_generation, make_greedy
from btp.models.loading.kinds import KINDS, Kind
from btp.models.loading.peft_folder import is_adapter
from btp.models.loading.processor import load_processor, load_text_processor
from btp.models.loading.quantize import quantization
from btp.models.loading.random_weights import build, describe, empty
from btp.models.loading.trial import try_picture, try_prompt, try_text
from btp.models.loading.vision_model import load_model, sketch_model
from btp.models.loading.weight_memory import check_memory, stored_bytes

__all__ = ["Loaded", "find_adapter", "find_checkpoint", "load", "sketch"]

DEFAULTS = {  # for callers in Python, who may leave these out
    "adapter": "btp.models.lvlm.LVLM",
    "processor": {},
    "chat": True,
    "device_map": None,
    "quantize": None,
    "trust_remote_code": False,
}

SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True)
class Loaded:
    """A model ready to run.

    Attributes:
        host: the model as the engine sees it: an LVLM, a TextLM or a Backbone.
        processor: makes inputs from pictures and text; None for an architecture without a checkpoint.
        notes: what a reader of results should know of how the checkpoint's files were taken, a sentence each.
    """

    host: Any
    processor: Any
    notes: tuple[str, ...] = ()


def load(config: Mapping[str, Any], folder: Path | None, device: torch.device) -> Loaded:
    """Load a model in eval mode onto `device`, with a processor that pads on the left; it generates greedily.

    Args:
        config: the model group's keys.
        folder: what `find_checkpoint` returned.
        device: Device that the weights go to, unless model.device_map spreads them.

    Raises:
        ValueError: the checkpoint is of another kind than model.adapter is for, is broken or does not
            fit, its small files do not go with its weights, or a key asks for what this machine has not; the message
            names the key.
    """
    config = DEFAULTS | dict(config)
    check_keys(config)
    adapter = find_adapter(config["adapter"])
    if issubclass(adapter, Backbone):
        model, processor, info = load_model(config, folder, device)
        if info and folder is not None:
            _check_whole(info, folder)
        return Loaded(adapter(model), processor)
    dtype = getattr(torch, config["dtype"])
    trusted = config["trust_remote_code"]
    kind = KINDS[adapter.kind]
    if folder is not None:
        check_kind(folder, trusted, kind)
    if config["weights"] == "random":
        architecture = _architecture(config, folder, kind)
        processor = None if folder is None else _processor(config, folder, adapter)
        model = build(architecture, device, dtype, config["attention"], kind)
        make_greedy(model)
        return Loaded(adapter(model.eval()), processor)
    assert folder is not None
    processor = _processor(config, folder, adapter)
    inputs = try_prompt(folder, processor) if kind is KINDS["image-text"] else None
    asked = asked_generation(folder)
    model = _pretrained(config, folder, device, dtype, kind)
    make_greedy(model, asked.special, processor.tokenizer.pad_token_id)
    host = adapter(model.eval())
    if inputs is None:
        try_text(folder, processor, host)
    else:
        try_picture(folder, processor, host, inputs)
    note = asked.note()
    return Loaded(host, processor, (note,) if note else ())


def sketch(config: Mapping[str, Any], folder: Path | None) -> Any:
    """The architecture without memory for its weights: modules on the meta device, example inputs on the CPU.

    Args:
        config: the model group's keys.
        folder: what `find_checkpoint` returned; None takes model.config.

    Raises:
        ValueError: as `load`.
    """
    config = DEFAULTS | dict(config)
    check_keys(config)
    adapter = find_adapter(config["adapter"])
    seen = type(adapter.__name__, (adapter,), {"device": torch.device("cpu")})  # where its example inputs lie
    if issubclass(adapter, Backbone):
        return seen(sketch_model(config, folder))
    kind, dtype = KINDS[adapter.kind], getattr(torch, config["dtype"])
    model = empty(_architecture(config, folder, kind), torch.device("meta"), dtype, config["attention"], kind)
    return seen(model.eval())


def _processor(config: Mapping[str, Any], folder: Path, adapter: type[DecoderHost]) -> Any:
    trusted = config["trust_remote_code"]
    if adapter.kind == "text":
        return load_text_processor(folder, config["chat"], trusted)
    return load_processor(folder, config["processor"], trusted)


def _architecture(config: Mapping[str, Any], folder: Path | None, kind: Kind) -> PreTrainedConfig:
    """Of a folder's config.json, or of model.config."""
    if folder is None:
        return describe(config["config"])
    check_kind(folder, config["trust_remote_code"], kind)
    trusted = config["trust_remote_code"]
    return AutoConfig.from_pretrained(model_folder(folder), local_files_only=True, trust_remote_code=trusted)


def find_adapter(path: str) -> type[Any]:
    """The class at a dotted path.

    Raises:
        ValueError: there is none, or it is no host.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"model.adapter is {path}, but it cannot be imported: {error}. Set model.adapter to the dotted path of a "
            "class, such as btp.models.lvlm.LVLM."
        ) from error
    if not (isinstance(found, type) and issubclass(found, DecoderHost | Backbone)):
        raise ValueError(
            f"model.adapter is {path}, which is not a subclass of btp.models.lvlm.LVLM, btp.models.text.TextLM or "
            "btp.models.backbone.Backbone. Set model.adapter to one."
        )
    return found


def _pretrained(
    config: Mapping[str, Any], folder: Path, device: torch.device, dtype: torch.dtype, kind: Kind
) -> PreTrainedModel:
    """The weights of a folder, read straight onto their device, or onto those of model.device_map."""
    check_attention(config["attention"])
    device, spread = _places(config["device_map"], device)
    quantized = quantization(config["quantize"], folder, device, dtype)
    needed = stored_bytes(folder, dtype, config["quantize"])
    if spread is None:
        check_memory(needed, device, dtype)
    asked = {"quantization_config": quantized} if quantized else {}
    try:
        model, info = kind.auto.from_pretrained(
            model_folder(folder),
            dtype=dtype,
            attn_implementation=config["attention"],
            device_map=spread or {"": device},
            local_files_only=True,
            trust_remote_code=config["trust_remote_code"],
            output_loading_info=True,
            output_attentions=False,  # a config that asks for them is refused with sdpa
            generation_config=GenerationConfig(),  # the checkpoint's is not even read
            **asked,
        )
    except torch.OutOfMemoryError as error:
        check_memory(needed, device, dtype)
        raise ValueError(
            f"{device} ran out of memory while {folder} was loaded. Set model.device_map=auto or model.quantize=4bit."
        ) from error
    except Exception as error:
        if "trust_remote_code" in str(error):
            refuse_code(folder)
        raise ValueError(
            f"the checkpoint in {folder} cannot be loaded as {kind.called}: {first_line(error)} "
            f"Set model.path to a complete checkpoint.{saved_with(read_config(folder))}"
        ) from error
    _check_whole(info, folder)
    return _merged(model, folder) if is_adapter(folder) else model


def _merged(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A model with an adapter of peft added to its weights, so that nothing of peft is left in it."""
    from peft import PeftModel  # pyright: ignore[reportMissingImports]

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")  # parts would stay as they were
            return PeftModel.from_pretrained(model, folder).merge_and_unload()
    except Exception as error:
        raise ValueError(
            f"the adapter in {folder} cannot be merged into its model: {first_line(error)} Look at "
            f"{folder / 'adapter_config.json'}, and at the version of peft that is installed."
        ) from error


def _places(spread: Any, device: torch.device) -> tuple[torch.device, Any]:
    """Where a model.device_map puts the weights: one device and None, or a map for transformers.

    Raises:
        ValueError: it is neither a way of spreading, nor a device, nor a map of modules to devices.
    """
    if spread is None or spread in SPREADS:
        return device, spread
    places = list(spread.values()) if isinstance(spread, Mapping) else [spread]
    try:
        devices = [torch.device(place) for place in places if place != "disk"]
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"model.device_map is {spread}, but {first_line(error)}. Set model.device_map to null, "
            f"{', '.join(SPREADS)}, a device, or a map of the model's modules to devices or disk."
        ) from error
    if "disk" not in places and len(set(devices)) == 1:
        return devices[0], None
    return device, dict(spread)


def _check_whole(info: Mapping[str, Any], folder: Path) -> None:
    """Refuse a model that transformers has filled up with noise; tell of weights that nothing reads."""
    newer = saved_with(read_config(folder))
    missing, strange = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        raise ValueError(
            f"the checkpoint in {folder} lacks {len(missing)} of the model's weights, such as {missing[0]}. Set "
            f"model.path to a complete checkpoint of the family that its config.json names.{newer}"
        )
    if strange:
        warnings.warn(
            f"the checkpoint in {folder} holds {len(strange)} weights that the model does not use, such as "
            f"{strange[0]}.{newer}",
            stacklevel=2,
        )
