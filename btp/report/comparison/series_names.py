"""Names for several runs of one method, by the settings in which their configs differ."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from btp.results.reader import RunFolder

_GROUPS = ("pruner", "schedule", "stages", "calibration", "seed", "model", "task")
_DEPTH = "pruner.layer"  # of a withdrawal: its budget, which names its rows but starts no other series
_NO_VARIANT = re.compile(
    r"^(schedule|pruner\.schedule)(\..*)?\.keep$"  # counts are budgets
    r"|^pruner\.(name|layer)$"
    r"|^model\.(name|path|hub|revision|device_map|download)$"
    r"|^(calibration|task)\.(.*\.)?_target_$"
)
RANDOM = ("random", "randomslots")  # classes of random selection, of tokens and of slots
_MOST = 3  # settings that a label names
_LONGEST = 24  # characters of a value


def variants(runs: Sequence[RunFolder]) -> list[dict[str, str]]:
    """What to call the method and its controls in each run.

    Runs of one pruner that differ in a setting beside their budget get it behind the name: `btp (stages=2)`. Counts in
    a schedule are a budget. Named are the settings that the commands differ in, and others only where these do not tell
    all runs apart; each by the last word of its key, and none that a run does not have.

    Returns:
        Per run: arm -> label; arms that are not named keep their title.
    """
    settings = [flat({key: run.config[key] for key in _GROUPS if key in run.config}) for run in runs]
    words = [command_words(run) for run in runs]
    out: list[dict[str, str]] = []
    for i, run in enumerate(runs):
        alike = [j for j, other in enumerate(runs) if _pruner(other) == _pruner(run)]
        told = _told([settings[j] for j in alike], [words[j] for j in alike])[alike.index(i)]
        suffix = f" ({', '.join(told)})" if told else ""
        out.append({arm.arm: arm.title + suffix for arm in run.methods})
    _by_seed(runs, settings, out)
    return out


def depths(runs: Sequence[RunFolder]) -> list[str]:
    """Of runs of one pruner that withdraw in front of several layers, the layer as `layer=7`; "" for all others."""
    found = [flat(run.config).get(_DEPTH) for run in runs]
    out = []
    for run, depth in zip(runs, found, strict=True):
        others = {f for other, f in zip(runs, found, strict=True) if _pruner(other) == _pruner(run)}
        out.append(f"layer={depth}" if depth is not None and len(others) > 1 else "")
    return out


def command_words(run: RunFolder) -> dict[str, str]:
    """The overrides on a run's command line, key -> value, in their order."""
    try:
        words = shlex.split(str(run.run.get("command") or ""))
    except ValueError:  # a quote that is not closed
        return {}
    pairs = (word.lstrip("+~").partition("=") for word in words if "=" in word)
    return {key: value for key, _, value in pairs}


def _by_seed(runs: Sequence[RunFolder], settings: Sequence[Mapping[str, Any]], out: list[dict[str, str]]) -> None:
    """Random selection differs by its seed."""
    seeds = [f.get("seed") for f in settings]
    if len(set(map(str, seeds))) < 2:
        return
    for run, seed, labels in zip(runs, seeds, out, strict=True):
        for arm in run.arms:
            if arm.pruner in RANDOM:
                labels[arm.arm] = f"{arm.title} (seed={seed})"


def _pruner(run: RunFolder) -> tuple[str, ...]:
    return tuple(arm.title for arm in run.methods)


def _told(settings: Sequence[Mapping[str, Any]], words: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Per run of one method: the settings that tell it from the others, as `key=value`."""
    keys = list(dict.fromkeys(key for one in settings for key in one))
    varied = [k for k in keys if not _NO_VARIANT.search(k) and len({_value(one, k) for one in settings}) > 1]
    said = list(dict.fromkeys(key for one in words for key in one))
    chosen = [key for key in said if key in varied]
    behind = [key for word in said for key in varied if key.startswith(f"{word}.")]
    for key in dict.fromkeys([*behind, *varied]):
        if _apart(settings, [_DEPTH, *chosen, key]) > _apart(settings, [_DEPTH, *chosen]):
            chosen.append(key)
    fewest = min(_MOST, len(chosen))
    while _apart(settings, [_DEPTH, *chosen[:fewest]]) < _apart(settings, [_DEPTH, *chosen]):
        fewest += 1
    chosen = chosen[:fewest]
    names = _shortest(chosen)
    texts = {key: _cut([_value(one, key) for one in settings if key in one]) for key in chosen}
    return [[f"{names[k]}={texts[k][_value(one, k)]}" for k in chosen if k in one] for one in settings]


def _apart(settings: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> int:
    """How many kinds of runs some keys tell apart."""
    return len({tuple(_value(one, key) for key in keys) for one in settings})


def _shortest(keys: Sequence[str]) -> dict[str, str]:
    """Each key's last words, as many as no other key ends in; the kind of a group goes by the group."""
    whole = {key: key.removeprefix("pruner.").removesuffix(".kind").split(".") for key in keys}
    out = {}
    for key, parts in whole.items():
        n = 1
        while n < len(parts) and any(other[-n:] == parts[-n:] for k, other in whole.items() if k != key):
            n += 1
        out[key] = ".".join(parts[-n:])
    return out


def _value(settings: Mapping[str, Any], key: str) -> str | None:
    """A setting as text; None where there is no such key."""
    if key not in settings:
        return None
    value = settings[key]
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text.rsplit(".", 1)[-1] if text.startswith("btp.") else text


def _cut(values: Sequence[str]) -> dict[str, str]:
    """Values without what long ones have in common; never without what they differ in."""
    distinct = list(dict.fromkeys(values))
    if max(map(len, distinct), default=0) <= _LONGEST:
        return {value: value for value in distinct}
    shared = 0
    while len({value[: shared + 1] for value in distinct}) == 1 < len(distinct):
        shared += 1
    start = max(distinct[0][:shared].rfind(mark) for mark in "/._-") + 1
    rests = {value: f"…{value[start:]}" if start else value for value in distinct}
    shorter = {value: f"{rest[: _LONGEST - 1]}…" if len(rest) > _LONGEST else rest for value, rest in rests.items()}
    return shorter if len(set(shorter.values())) == len(distinct) else rests


def flat(node: Any, at: str = "") -> dict[str, Any]:
    """A nested config as dotted keys."""
    parts = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else None
    if parts is None:
        return {at: node}
    out: dict[str, Any] = {}
    for key, value in parts:
        out |= flat(value, f"{at}.{key}" if at else str(key))
    return out
