"""Model yamls by family of checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from btp.models.loading.checkpoint import read_config
from btp.results.shipped import CONF

YAMLS = CONF / "model"


def check_family(model: Mapping[str, Any], folder: Path | None) -> None:
    """Refuse a checkpoint of another family than the model yaml's: its adapter and processor would not fit.

    Args:
        model: the model group's keys.
        folder: Folder of the checkpoint; None without one.

    Raises:
        ValueError: names the families, and the yamls for the checkpoint's.
    """
    wanted = (model["config"] or {}).get("model_type")
    if folder is None or wanted is None:
        return
    found = read_config(folder)["model_type"]
    if found == wanted:
        return
    names = yamls_for(found)
    if names:
        choose = " or ".join(f"model={name}" for name in names)
        advice = f"Choose {choose} with model.path={folder}."
    else:
        advice = "No yaml in conf/model is for that family; docs/models.md says how to write one."
    raise ValueError(f"model={model['name']} is for {wanted} checkpoints, but the one in {folder} is {found}. {advice}")


def yamls_for(family: str) -> list[str]:
    """Names of the model yamls whose architecture is of `family`, those with a published checkpoint only."""
    found = []
    for path in sorted(YAMLS.glob("*.yaml")):
        about = yaml.safe_load(path.read_text(encoding="utf-8"))
        if about.get("hub") and (about.get("config") or {}).get("model_type") == family:
            found.append(path.stem)
    return found


def depth_and_width(name: str) -> tuple[int | None, int | None]:
    """Decoder layers and hidden size of a yaml's architecture; None where it does not say."""
    config = yaml.safe_load((YAMLS / f"{name}.yaml").read_text(encoding="utf-8")).get("config") or {}
    text = config.get("text_config") or config
    return text.get("num_hidden_layers"), text.get("hidden_size")
