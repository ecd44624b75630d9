"""Finds checkpoints, in a folder or in the local hub cache, and sees whether they are whole. Imports no torch."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from btp.models.loading.peft_folder import adapter_file, base_of, is_adapter

EMBEDDED = Path(__file__).resolve().parents[1]
MOST_LAYERS = 1000
_DEPTH = re.compile(r"(^|_)(n|num)?_?(layers?|depths?|blocks?)(_types)?$")  # how configs call a number of layers
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def find_checkpoint(config: Mapping[str, Any]) -> Path | None:
    """The folder that the model config means; None for random weights from the yaml's own architecture.

    Args:
        config: the model group's keys: path, hub, revision, weights, config, download, name.

    Raises:
        ValueError: no such folder, no whole checkpoint in it, nothing in the local cache, or a key without effect;
            says what to do.
    """
    random = config["weights"] == "random"
    if config["path"] is None:
        if not (random and config["config"]):
            return _complete(_from_hub(config), config, f"The copy of {config['hub']} in the local hub cache")
        _refuse_revision(config, "builds the architecture of the yaml")
        return None
    _refuse_revision(config, f"takes {config['path']} as it lies there")
    asked = Path(os.path.expanduser(str(config["path"])))
    folder = asked if asked.exists() else EMBEDDED / asked
    if folder.is_file():
        raise ValueError(f"model.path is {asked}, which is a file. Set model.path to the folder of the checkpoint.")
    if not folder.is_dir() and asked == Path("checkpoints") / str(config["name"]):
        raise ValueError(
            f"model.path is {asked}, but the weights of {config['name']} do not ship with this version. Train it by "
            f"python -m experiments.embedded.train {config['name']} (a tuned one by action=train: see its yaml) and "
            f"set model.path to the folder that it ends in, as work/{config['name']}/model."
        )
    if not folder.is_dir():
        near = _nearest(asked)
        hint = f" Did you mean {near}?" if near else ""
        raise ValueError(f"model.path is {asked}, but there is no such folder.{hint} Set model.path to a checkpoint.")
    return _complete(folder, config, f"model.path is {asked}, which")


def check_keys(config: Mapping[str, Any]) -> None:
    """Refuse keys that random weights leave without effect.

    Args:
        config: the model group's keys.

    Raises:
        ValueError: weights that are built on one device in one dtype are to be quantised or spread.
    """
    for key in ("quantize", "device_map"):
        if config["weights"] == "random" and config[key] is not None:
            raise ValueError(
                f"model.{key} is {config[key]}, but model.weights is random: that builds the model on one device, in "
                f"model.dtype. Set model.{key}=null, or load a checkpoint."
            )


def read_config(folder: Path) -> dict[str, Any]:
    """What a checkpoint's config.json says.

    Raises:
        ValueError: it is not JSON, or names no model_type.
    """
    folder = model_folder(folder)
    found = read_json(folder / "config.json", "Download it again, or restore it from the original model.")
    if "model_type" not in found:
        raise ValueError(
            f"{folder / 'config.json'} names no model_type, so it is no config of a transformers model. Set model.path "
            "to a checkpoint in the format of save_pretrained."
        )
    check_depth(found, str(folder / "config.json"))
    return found


def check_depth(about: Mapping[str, Any], where: str) -> None:
    """Refuse an architecture of more layers than any model has, before one of them is built.

    Args:
        about: a model's config; configs of its parts lie in it.
        where: it comes from, for the message.

    Raises:
        ValueError: names the key and the bound.
    """
    for key, value in about.items():
        if isinstance(value, Mapping):
            check_depth(value, where)
        count = len(value) if isinstance(value, list) else value
        if not (_DEPTH.search(str(key)) and isinstance(count, int) and count > MOST_LAYERS):
            continue
        raise ValueError(
            f"{where}: {key} says {count:,} layers, more than the {MOST_LAYERS:,} that are built. Correct {key}, or "
            "restore the file from the original model."
        )


def model_folder(folder: Path) -> Path:
    """Where a checkpoint's config and weights lie: in its folder, or in that of the model an adapter of peft is for.

    Raises:
        ValueError: the adapter cannot be used; says what to do.
    """
    return base_of(folder) if is_adapter(folder) else folder


def checkpoint_folders(folder: Path) -> list[Path]:
    """All folders whose files make the model."""
    return list(dict.fromkeys([model_folder(folder), folder]))


def weight_files(folder: Path) -> list[Path]:
    """The files with weights that a checkpoint needs, by its index where it has one; empty without weights.

    Raises:
        ValueError: the index is corrupt, or names a file that is not there.
    """
    if is_adapter(folder):
        return [*weight_files(base_of(folder)), adapter_file(folder)]
    for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        index = folder / name
        if index.is_file() and not (folder / name.removesuffix(".index.json")).is_file():
            needed = sorted(set(read_json(index, "Download it again.").get("weight_map", {}).values()))
            lost = [shard for shard in needed if not (folder / shard).is_file()]
            if lost:
                raise ValueError(
                    f"{index} names {len(needed)} files with weights, but {len(lost)} of them "
                    f"{'is' if len(lost) == 1 else 'are'} not there: {', '.join(lost[:3])}"
                    f"{', ...' if len(lost) > 3 else ''}. Complete the download (`hf download` goes on where it "
                    "stopped)."
                )
            return [folder / shard for shard in needed]
    return next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), [])


def _complete(folder: Path, config: Mapping[str, Any], what: str) -> Path:
    if is_adapter(folder):
        adapter_file(folder)
        base = base_of(folder)
        _complete(base, config, f"{what} holds an adapter of peft: its model in {base}")
        return folder
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{what} holds no config.json, so it is not a checkpoint. "
            "Set model.path to a folder made by save_pretrained or downloaded from a hub."
        )
    read_config(folder)
    if config["weights"] != "random" and not weight_files(folder):
        raise ValueError(
            f"{what} holds a config.json but no weights ({' or '.join(WEIGHTS)}). "
            "Complete the download, or set model.weights=random to measure cost without them."
        )
    return folder


def _refuse_revision(config: Mapping[str, Any], instead: str) -> None:
    if config["revision"] is not None:
        raise ValueError(
            f"model.revision is {config['revision']}, which says what to take from a hub, but this run {instead}. Set "
            "model.revision=null, or model.path=null and model.hub to the repository."
        )


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Args:
        advice: what to do about a broken one, for the message.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}. {advice}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object. {advice}")
    return found


def _nearest(asked: Path) -> Path | None:
    """A folder of nearly the same name at the same place, else the embedded checkpoint that was meant."""
    beside = [p.name for p in asked.parent.iterdir() if p.is_dir()] if asked.parent.is_dir() else []
    near = difflib.get_close_matches(asked.name, beside, 1)
    if near:
        return asked.parent / near[0]
    embedded = [p.parent.relative_to(EMBEDDED).as_posix() for p in EMBEDDED.glob("checkpoints/*/config.json")]
    near = difflib.get_close_matches(asked.as_posix(), embedded, 1)
    return Path(near[0]) if near else None


def _from_hub(config: Mapping[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    hub, revision = config["hub"], config["revision"]
    if hub is None:
        raise ValueError(f"model {config['name']!r} has neither a path nor a hub name. Set model.path.")
    try:
        return Path(snapshot_download(hub, revision=revision, local_files_only=not config["download"]))
    except (OSError, ValueError) as error:  # the hub's own errors are either
        there = _revisions(hub)
        asked = f"{hub} at revision {revision}" if revision else hub
        command = f"hf download {hub}" + (f" --revision {revision}" if revision else "")
        hint = f" The cache holds its revisions {', '.join(there)}; model.revision chooses one." if there else ""
        tried = (
            f"could not be downloaded ({first_line(error)})" if config["download"] else "are not in the local hub cache"
        )
        raise ValueError(
            f"model {config['name']!r} needs the weights of {asked}, and they {tried}.{hint} Download them "
            f"(`{command}`, or model.download=true), or set model.path to a folder that holds them, or "
            "model.weights=random to measure cost without weights."
        ) from error


def _revisions(hub: str) -> list[str]:
    """Branches, tags and commits of a repository in the local cache."""
    from huggingface_hub import constants

    home = Path(constants.HF_HUB_CACHE) / f"models--{hub.replace('/', '--')}"
    named = [p.relative_to(home / "refs").as_posix() for p in sorted((home / "refs").rglob("*")) if p.is_file()]
    return named or [p.name for p in sorted((home / "snapshots").glob("*"))]


def first_line(error: BaseException) -> str:
    """What an error of a library says, without the rest of what it says; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
