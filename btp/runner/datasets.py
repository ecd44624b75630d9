"""Datasets of a config, and digests of their local files, so that results do not outlive the files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from btp.runner.targets import TARGET, Samples, make
from btp.tasks.sample import Local

GROUPS = ("task", "calibration")


def make_dataset(node: Mapping[str, Any], key: str = "task.dataset") -> Any:
    """Build the dataset that a task's or a calibration's yaml names; its complaints come through as they are.

    Args:
        key: Key of the node in the config.

    Raises:
        ValueError: as the dataset says; or no dataset is named, or it does not take these settings.
    """
    if TARGET not in node:
        raise ValueError(f"{key} has no {TARGET}, so it names no dataset. Set {key}.{TARGET} to a class.")
    try:
        return make(node, Samples, key)
    except TypeError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{key} cannot be built from its settings: {reason}. Correct {key}.") from error


def with_contents(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config, with `task.content` and `calibration.content` where their datasets are local files.

    All identities of the run are made from it: other questions or pictures at the same path are other results. A
    calibration's also lists what was drawn. Without weights nothing is answered, and no file is looked at.

    Raises:
        ValueError: a file is missing or broken.
    """
    if config["model"]["weights"] == "random":
        return dict(config)
    found = dict(config)
    for group in GROUPS:
        dataset = make_dataset(config[group]["dataset"], f"{group}.dataset") if "path" in config[group] else None
        if isinstance(dataset, Local):
            found[group] = {**config[group], "content": dataset.content()}
    return found
