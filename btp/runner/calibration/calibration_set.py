"""Which pictures the stages of a run come from, and whether they are the task's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from btp.results.shapes import NAMED, TEXT, keys, optional, read_yaml

ARTIFACTS = {"calibration.yaml": "calibrated", "search.yaml": "searched"}  # that a run leaves beside its run.json

_SET = keys(name=optional(TEXT), path=optional(TEXT), dataset=optional(NAMED))
SHAPE = keys(calibration=optional(_SET), curves=optional(NAMED), search=optional(NAMED))


def calibration_set(folder: Path, task: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the artifacts in a run folder were made with, as run.json has it; None where there is none.

    A set is the task's own where one class reads both. An artifact of another run counts by what it says itself.

    Args:
        folder: Folder of the run.
        task: its config.

    Returns:
        name and samples of the set, own, and said: all that in a sentence.
    """
    for file, done in ARTIFACTS.items():
        path = folder / file
        made = read_yaml(path, SHAPE, "Run the command again with resume=false.") if path.exists() else {}
        known = made.get("calibration")
        if known is None:
            continue
        name, target = known.get("name", "?"), (known.get("dataset") or {}).get("_target_")
        own = target == task["dataset"]["_target_"] if target else name == task["name"]
        samples = (made.get("curves") or made.get("search") or {}).get("samples") or known.get("samples", "?")
        where = f" ({known['path']})" if known.get("path") else ""
        said = f"Stages were {done} on {samples} samples of {name}{where}"
        if not own:
            said += f", not on {task['name']}'s own pictures"
            said += "" if known.get("path") else ": calibration=folder calibration.path=FOLDER takes yours"
        return {"name": name, "samples": samples, "own": own, "said": f"{said}."}
    return None
