"""A model and a processor as callers in Python have them, made into what the engine and the runs take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from btp.core.host import Host
from btp.models.loading.checkpoint import find_checkpoint
from btp.models.loading.load import Loaded
from btp.models.loading.processor import load_processor
from btp.models.lvlm import LVLM
from btp.runner.model_yamls import depth_and_width, yamls_for

HUB = {"path": None, "revision": None, "download": False, "weights": "pretrained", "config": None}


def host_of(model: Any) -> Host:
    """A model as the engine sees it: one that is wrapped already, a model of transformers, or a pipeline around one.

    Raises:
        ValueError: it is none of these; as `LVLM` says.
    """
    if isinstance(model, Host):
        return model
    inside = getattr(model, "model", None)
    pipeline = inside is not None and hasattr(model, "task") and hasattr(model, "preprocess")
    return LVLM(inside if pipeline else model)


def processor(where: str | Path, **arguments: Any) -> Any:
    """The processor of a checkpoint, padding on the left; it needs torchvision for videos alone.

    transformers' own AutoProcessor refuses the processors of Qwen2-VL, LLaVA-OneVision and others as a whole where
    torchvision is not installed, since they hold a part for videos.

    Args:
        where: folder of the checkpoint, or its name on the hub, of which the local cache has a copy.
        arguments: Arguments that replace what the checkpoint says, such as max_pixels.

    Raises:
        ValueError: there is no such checkpoint, or it has no processor that can be read.
    """
    folder = Path(where).expanduser()
    if not folder.is_dir():
        folder = find_checkpoint({**HUB, "hub": str(where), "name": str(where)})
        assert folder is not None
    return load_processor(folder, arguments)


def loaded_of(host: Host, given: Any) -> Loaded:
    """The model with its processor: the one given, or that of the checkpoint which the model was loaded from.

    Raises:
        ValueError: the model does not say where it comes from, there is no processor, or what is given is none.
    """
    if given is None:
        name = getattr(host.model, "name_or_path", "") or ""
        if not name:
            raise ValueError("The model does not say which checkpoint it is of. Pass processor=btp.processor(FOLDER).")
        given = processor(name)
    if getattr(given, "tokenizer", None) is None and "llm" in host.towers:
        raise ValueError(f"processor is {type(given).__name__}, which has no tokenizer. Pass btp.processor(FOLDER).")
    return Loaded(host, given)  # type: ignore[arg-type]


def model_words(host: Host) -> tuple[list[str], str]:
    """The word that chooses the yaml for a model's family, none where there is no such yaml; and the model's name.

    The name is nobody's where the model has another depth or width than all yamls of its family, so that published
    schedules count in shares of its own.
    """
    config: Any = host.model.config
    names = yamls_for(config.model_type)
    text = config.get_text_config()
    same = [name for name in names if depth_and_width(name) == (host.num_layers, text.hidden_size)]
    words = [f"model={name}" for name in (*same, *names)[:1]]
    return words, same[0] if same else f"{config.model_type}_given"


def architecture(host: Host) -> dict[str, Any]:
    """The config of a model as JSON has it."""
    config: Any = host.model.config
    return json.loads(config.to_json_string(use_diff=False))


def device_words(host: Host) -> list[str]:
    """Words for the trainer, so that a run computes where the model is."""
    device = host.device  # type: ignore[attr-defined]
    if device.type == "cpu":
        return ["trainer=cpu"]
    return ["trainer.accelerator=gpu", f"trainer.devices=[{device.index or 0}]"]
