"""Tells runs of one method apart by the settings in which their configs differ."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from btp.report.load import RunFolder

_GROUPS = ("pruner", "schedule", "stages", "calibration", "seed", "model", "task")
_NO_VARIANT = re.compile(
    r"^(schedule|pruner\.schedule)(\..*)?\.keep$"  # counts and the layer of a withdrawal are budgets
    r"|^pruner\.(name|layer)$"
    r"|^model\.(name|path|hub|revision|device_map|download)$"
    r"|^(calibration|task)\.(.*\.)?_target_$"
)
_MOST = 3  # settings that a label names


def variants(runs: Sequence[RunFolder]) -> list[dict[str, str]]:
    """What to call the method and its controls in each run.

    Runs of one pruner that differ in a setting beside their budget get it behind the name: `btp (stages=2)`. Counts in
    a schedule are a budget.

    Returns:
        Per run: arm -> label; arms that are not named keep their title.
    """
    settings = [flat({key: run.config[key] for key in _GROUPS if key in run.config}) for run in runs]
    out: list[dict[str, str]] = []
    for run, mine in zip(runs, settings, strict=True):
        alike = [f for other, f in zip(runs, settings, strict=True) if _pruner(other) == _pruner(run)]
        out.append({arm.arm: arm.title + _suffix(mine, alike) for arm in run.methods})
    _by_seed(runs, settings, out)
    return out


def _by_seed(runs: Sequence[RunFolder], settings: Sequence[Mapping[str, Any]], out: list[dict[str, str]]) -> None:
    """Selection by lot differs by its seed."""
    seeds = [f.get("seed") for f in settings]
    if len(set(map(str, seeds))) < 2:
        return
    for run, seed, labels in zip(runs, seeds, out, strict=True):
        for arm in run.arms:
            if arm.pruner == "random":
                labels[arm.arm] = f"{arm.title} (seed={seed})"


def _pruner(run: RunFolder) -> tuple[str, ...]:
    return tuple(arm.title for arm in run.methods)


def _suffix(mine: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> str:
    keys = dict.fromkeys(key for one in alike for key in one)
    varied = [k for k in keys if not _NO_VARIANT.search(k) and len({str(one.get(k)) for one in alike}) > 1]
    if "schedule.kind" in varied:  # kinds have settings of their own
        varied = [k for k in varied if k == "schedule.kind" or not k.startswith("schedule.")]
    if "seed" in varied:
        varied = [k for k in varied if not k.endswith(".seed")]
    if not varied:
        return ""
    said = [f"{k.removeprefix('pruner.').removesuffix('.kind')}={_short(mine.get(k))}" for k in varied[:_MOST]]
    return f" ({', '.join(said)}{', …' if len(varied) > _MOST else ''})"


def _short(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    text = text.rsplit(".", 1)[-1] if text.startswith("btp.") else text
    return text if len(text) <= 24 else f"{text[:23]}…"


def flat(node: Any, at: str = "") -> dict[str, Any]:
    """A nested config as dotted keys."""
    parts = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else None
    if parts is None:
        return {at: node}
    out: dict[str, Any] = {}
    for key, value in parts:
        out |= flat(value, f"{at}.{key}" if at else str(key))
    return out
