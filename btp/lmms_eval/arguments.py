"""The arguments of lmms-eval's command line as words of ours, composed as run.py composes them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from btp.cli.check_config import check_config
from btp.cli.composed import budget_word, value_word
from btp.cli.composed import composed as from_words
from btp.results.shipped import CONF
from btp.runner.model_yamls import yamls_for
from btp.runner.pruner_lists import JOIN

PART = "harness"  # stands for tasks that lmms-eval's own command line chooses


def composed(
    path: str | None, pruner: str, budget: float | None, batch: int, device: str | None, more: Mapping[str, Any]
) -> dict[str, Any]:
    """The resolved config.

    Args:
        path: Path of a checkpoint; None takes the model group's own.
        pruner: name, or names joined by a plus.
        budget: share of the visual tokens up to 1, tokens above; None takes the config's.
        batch: samples a forward.
        device: cpu, cuda or cuda:N; None takes a GPU where there is one.
        more: any other key or group of the config.

    Raises:
        ValueError: says which argument to change.
    """
    words = [f"{key}={value_word(value)}" for key, value in more.items()]
    if path is not None:
        words.append(f"model.path={value_word(str(path))}")
        if "model" not in more:
            words.append(f"model={_yaml_for(Path(os.path.expanduser(str(path))))}")
    several = JOIN in str(pruner)
    words.append(f"pruner=[{pruner.replace(JOIN, ',')}]" if several else f"pruner={value_word(pruner)}")
    if budget is not None:
        words.append(budget_word(budget))
    words += [f"trainer.batch={batch}", f"tasks=[{PART}]", "task=lmms_eval", *_trainer(device)]
    config = from_words(words, "--model_args: ")
    config["controls"] = None  # lmms-eval's command line runs one model
    check_config(config)
    return config


def _yaml_for(folder: Path) -> str:
    """A yaml of the checkpoint's family, where all of them treat it alike."""
    if not (folder / "config.json").is_file():
        return "pocket"  # what loads it will say what is wrong with the path
    family = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    names = yamls_for(family)
    kinds = {json.dumps([_yaml(name)[key] for key in ("adapter", "processor")]) for name in names}
    if len(kinds) == 1:
        return names[0]
    which = f"{' and '.join(names)} differ" if names else f"no yaml in conf/model is for model_type {family}"
    raise ValueError(
        f"--model_args: path={folder} does not say which model yaml it goes with: {which}. Add model=NAME."
    )


def _yaml(name: str) -> Mapping[str, Any]:
    return yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text(encoding="utf-8"))


def _trainer(device: str | None) -> list[str]:
    if device is None:
        return []
    kind, _, number = str(device).partition(":")
    if kind == "cpu":
        return ["trainer=cpu"]
    if kind != "cuda":
        raise ValueError(f"--model_args: device is {device}. Choose from: cpu, cuda, cuda:N.")
    return ["trainer.accelerator=gpu", f"trainer.devices=[{number}]" if number else "trainer.devices=1"]
