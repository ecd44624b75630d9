"""Checks of the top-level keys of a group's yamls against each other: names misspelt and missing ones."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

OTHERS = ("hydra", "experiment")  # groups whose yamls have little in common
MANY = 5  # yamls that have a key in common, from which on it is no coincidence
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast; each command reads every yaml of conf
NEAR = 0.75  # from this likeness on, a key that only one yaml has is another one misspelt


def fault_of_keys(conf: Path, composed: DictConfig) -> str | None:
    """What is wrong with the keys of the groups that were chosen; None where nothing is.

    Args:
        composed: Config composed with Hydra's own part, which says what was chosen.
    """
    for chosen, option in composed.hydra.runtime.choices.items():
        group, _, place = str(chosen).partition("@")
        node = OmegaConf.select(composed, place or group, throw_on_missing=False)
        if isinstance(node, DictConfig) and option:
            parts = (node.get("parts") or {}).items()
            for name, one in ((str(option), node), *parts):
                fault = fault_of_option(conf, group, name, {str(key) for key in one})
                if fault:
                    return fault
    return None


def fault_of_option(conf: Path, group: str, option: str, keys: Collection[str] | None = None) -> str | None:
    """What is wrong with the keys of one yaml.

    Args:
        keys: Keys of the group in the end; None reads its file, which says nothing where it builds on others.
    """
    if group.split("/")[0] in OTHERS:
        return None
    others = {name: found for name, found in _yamls(conf / group).items() if name != option and found is not None}
    keys = _yamls(conf / group).get(option) if keys is None else keys
    if not others or keys is None:
        return None
    known, needed = set().union(*others.values()), set.intersection(*map(set, others.values()))
    where = f"conf/{group}/{option}.yaml"
    for own in sorted(set(keys) - known):
        near = difflib.get_close_matches(own, sorted(known - set(keys)), 1, NEAR)
        if near:
            return f"unknown key {own} in {where}. Did you mean {near[0]}?"
    lost = sorted(needed - set(keys))
    if lost and len(others) >= MANY:
        return f"{where} has no `{lost[0]}`, which every other yaml of {group} has. Write it, null where it has none."
    return None


@cache
def _yamls(folder: Path) -> dict[str, frozenset[str] | None]:
    """Top-level keys by the name of the yaml; None of one that builds on others, or cannot be read."""
    return {file.stem: _keys(file) for file in sorted(folder.glob("*.yaml"))}


def _keys(file: Path) -> frozenset[str] | None:
    try:
        found: Any = yaml.load(file.read_text(encoding="utf-8"), LOADER)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return frozenset(map(str, found)) if isinstance(found, dict) and "defaults" not in found else None
