"""An adapter of peft in place of a checkpoint: its folder holds what was trained, and names the model it belongs to.

Imports no torch. Everything that reads a checkpoint's config or weights reads the base model's.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter of peft, and no weights of a whole model."""
    weights = (file.name for pattern in ("*.safetensors", "pytorch_model*.bin") for file in folder.glob(pattern))
    return (folder / CONFIG).is_file() and all(name in WEIGHTS for name in weights)


def adapter_file(folder: Path) -> Path:
    """The file with an adapter's weights.

    Raises:
        ValueError: there is none.
    """
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(f"{folder} holds {CONFIG} but no weights ({' or '.join(WEIGHTS)}). Complete the download.")
    return found


def base_of(folder: Path) -> Path:
    """The folder of the model that an adapter belongs to.

    Raises:
        ValueError: peft is not installed, the adapter names no model or one that is not at hand, or it is of a kind
            that cannot be merged into the model's weights.
    """
    about = _about(folder)
    name = about.get("base_model_name_or_path")
    merge = (
        "Or merge it once: model = AutoModelForImageTextToText.from_pretrained(base), then PeftModel.from_pretrained("
        f"model, {str(folder)!r}).merge_and_unload().save_pretrained(new), and the processor with it; set model.path "
        "to new."
    )
    if not name:
        raise ValueError(f"{folder / CONFIG} names no base_model_name_or_path, so its model is not known. {merge}")
    if str(about.get("peft_type", "")).endswith(("TUNING", "PROMPT")) or about.get("num_virtual_tokens"):
        raise ValueError(
            f"{folder} holds an adapter of type {about['peft_type']}, which puts learned tokens into every prompt and "
            "cannot be merged into weights. Use an adapter such as LoRA, or the model without it."
        )
    if importlib.util.find_spec("peft") is None:
        raise ValueError(
            f"model.path is {folder}, which holds an adapter ({CONFIG}) of the model {name} and no model of its own. "
            f"Install peft (pip install peft), and it is merged as it is loaded. {merge}"
        )
    return _at_hand(folder, str(name), about.get("revision"), merge)


def _at_hand(folder: Path, name: str, revision: str | None, merge: str) -> Path:
    for place in (Path(name).expanduser(), folder / name):
        if (place / "config.json").is_file():
            return place
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError) as error:  # the hub's own errors are either
        raise ValueError(
            f"model.path is {folder}, which holds an adapter of the model {name}: that is neither a folder here nor in "
            f"the local hub cache. Download it (`hf download {name}`), or correct base_model_name_or_path in "
            f"{folder / CONFIG}. {merge}"
        ) from error


def _about(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}. Download it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object. Download it again.")
    return found
