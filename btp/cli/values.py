"""Validation of a config, and of the words of a command line, by `btp.cli.schema`. No torch here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, QuotedString, RangeSweep
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from btp.cli.schema import CHOSEN, KEYS, NEEDED, fits, kind_of
from btp.cli.value_kinds import GROUP, shown
from btp.results.shipped import PROGRAM
from btp.tasks.shown import short

MOST_VALUES = 10_000  # of one key of a sweep
ENDS = {"first", "last"}  # of a balance
CLOSED = ("budget", "cost", "trainer", "schedule", "model", "logger")  # nothing reads another key in them


def check_values(config: Mapping[str, Any]) -> None:
    """Refuse a resolved config with a value of the wrong kind.

    Raises:
        ValueError: the key, what it is, what it takes.
    """
    fault = fault_of_values(config, NEEDED)
    if fault:
        raise ValueError(fault)


def fault_of_values(config: Mapping[str, Any], needed: Sequence[str] = (), at: str = "") -> str | None:
    """What is wrong with the values of a config, or of a part of one; None where nothing is.

    Args:
        needed: keys that have to be there.
        at: look at this key and those below it alone; "" at all.
    """
    for pattern, kind in KEYS.items():
        found = [(key, value) for key, value in _found(config, pattern.split(".")) if _within(key, at)]
        if pattern in needed and not found:
            return _missing(pattern)
        for key, value in found:
            fault = kind.fault(key, value)
            if fault and kind is GROUP:
                return _no_group(key, value)
            if fault:
                return fault
    return _not_finite(config, "") or _balance(config, bool(needed))


def fault_of_words(overrides: Sequence[Override], composed: DictConfig) -> str | None:
    """What is wrong with words of a command line that no composed config shows: each value of a sweep, what is deleted.

    Args:
        overrides: the words.
        composed: config of them with the first value of each, Hydra's own part with it.
    """
    for override in overrides:
        fault = _deleted(override) if override.is_delete() else _swept(override, composed)
        if fault:
            return fault
        reason = None if override.is_delete() else _idle(override, composed)
        if reason:
            return f"{short(override.input_line)} has no effect: {reason} Drop it."
    return None


def fault_of_shapes(overrides: Sequence[Override]) -> str | None:
    """Which single value is a list or a number where keys are held, for configs that cannot be composed; None if none.

    Args:
        overrides: the words.
    """
    for override in overrides:
        key, value = override.key_or_group, _plain(override.value())
        single = not (override.is_sweep_override() or override.is_delete() or isinstance(value, str))
        if single and (fault := fault_of_values(_nested(key, value), at=key)):
            return fault
    return None


def resolved(composed: DictConfig) -> dict[str, Any]:
    """A composed config as plain values.

    Args:
        composed: without Hydra's own part.

    Raises:
        ValueError: an interpolation names nothing; says which key has it.
    """
    try:
        found: Any = OmegaConf.to_container(composed, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        key = _innermost(composed, getattr(error, "full_key", None) or _first_circle(composed))
        raise ValueError(
            f"{key} is {shown(_raw(composed, key))}, which cannot be resolved: {_first_line(error)}. Set {key} to a "
            f"value, or to ${{KEY}} with a key that `{PROGRAM} --cfg job` lists."
        ) from error
    return found


def sweep_size(override: Override) -> float:
    """How many values a word has: 1 for a single one, infinite for an interval."""
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        return math.inf
    if isinstance(value, RangeSweep):
        if not value.step:
            return 0
        return max(0, math.ceil(((value.stop or 0) - (value.start or 0)) / value.step))
    return len(value.list) if isinstance(value, ChoiceSweep) else 1


def fault_of_size(override: Override) -> str | None:
    """Why a range or interval cannot be swept over; None where it can."""
    word, size = short(override.input_line), sweep_size(override)
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        if not value.start < value.end:  # type: ignore[operator]
            return f"{word} is empty: an interval goes from its lower end to its higher one. Exchange them."
        if "log" in value.tags and value.start <= 0:  # type: ignore[operator]
            return f"{word} is logarithmic, but begins at {value.start:g}. Let it begin above 0, or leave out log."
        return None
    if size < 1:
        return f"{word} has no value: range(START,STOP,STEP) leaves out STOP. Correct it, as in range(1,5)."
    if size > MOST_VALUES:
        return f"{word} has {size:,} values, and a sweep takes up to {MOST_VALUES:,} of a key. Give it a larger STEP."
    return None


def _found(node: Any, pattern: Sequence[str], place: str = "") -> Iterator[tuple[str, Any]]:
    """The values that a key of the table stands for, with their keys; none where its place is not there."""
    if not pattern:
        yield place, node
    elif isinstance(node, Mapping):
        keys = list(node) if pattern[0] == "*" else [key for key in node if str(key) == pattern[0]]
        for key in keys:
            yield from _found(node[key], pattern[1:], f"{place}.{key}" if place else str(key))


def _within(key: str, place: str) -> bool:
    return not place or key == place or key.startswith(f"{place}.")


def _missing(key: str) -> str:
    if key in CHOSEN:
        return f"{key} is not there, and every run needs one. Choose it: {key}=NAME."
    return f"{key} is not there, and every run needs it. Leave the key alone, or give it a value: {key}=..."


def _no_group(key: str, value: object) -> str:
    inner = [k.rpartition(".")[2] for k in KEYS if k.startswith(f"{key}.") and k.count(".") == key.count(".") + 1]
    advice = f"Choose one of the group ({key}=NAME), or set" if key in CHOSEN else "Set"
    return f"{key} is {shown(value)}, but holds keys of its own. {advice} one of them: {key}.{inner[0]}=..."


def _not_finite(node: Any, place: str) -> str | None:
    """A number of which nothing good comes wherever it stands."""
    if isinstance(node, float) and not math.isfinite(node):
        return f"{place} is {node}. Set {place} to a finite number."
    inner = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
    faults = (_not_finite(value, f"{place}.{key}" if place else str(key)) for key, value in inner if key != "hydra")
    return next((fault for fault in faults if fault), None)


def _balance(config: Mapping[str, Any], whole: bool) -> str | None:
    """Ends of a balance in the wrong order, or, of a whole config, not both."""
    schedule = config.get("schedule")
    balance = schedule.get("balance") if isinstance(schedule, Mapping) else None
    both = balance is not None and set(balance) >= ENDS
    if balance is None or (balance["first"] <= balance["last"] if both else not whole):
        return None
    return (
        f"schedule.balance is {shown(dict(balance))}. Give first and last with 0 <= first <= last <= 1, as "
        "{first: 0.6, last: 1.0}."
    )


def _idle(override: Override, composed: DictConfig) -> str | None:
    """Why a word changes nothing, or adds a key that is not read."""
    key = override.key_or_group
    if key == "hydra.run.dir":
        return "output is where runs go."
    if key == "hydra.mode":
        return "-m says that this is a sweep."
    if override.value() == {}:
        kind = kind_of(key)
        none = f" {key}=null does without." if kind is not None and kind.holds(None) else ""
        return f"keys in braces join those that are there.{none}"
    if not (override.is_add() or override.is_force_add()):
        return None
    place, _, last = key.rpartition(".")
    if not place and not _is_read(key, composed):
        return f"nothing reads {key}."
    if place in CLOSED and kind_of(key) is None:
        return f"nothing reads {last} in {place}."
    if place == "schedule.balance" and last not in ENDS:
        return "schedule.balance holds first and last."
    return None


def _is_read(key: str, composed: DictConfig) -> bool:
    """Whether a key at the top is one that runs read, a group, or named by an interpolation."""
    known = kind_of(key) is not None or key in composed.hydra.runtime.choices
    job = {str(name): composed._get_node(name) for name in composed if name not in ("hydra", key)}
    return known or f"${{{key}" in OmegaConf.to_yaml(OmegaConf.create(job), resolve=False)


def _deleted(override: Override) -> str | None:
    """`~key` of what runs read; entries of mappings with keys of the user's own may go."""
    key = override.key_or_group
    depth = key.count(".") + 1
    known = {tuple(pattern.split(".")[:depth]) for pattern in KEYS}
    if override.package is not None or not any(p[-1] != "*" and fits(".".join(p), key) for p in known):
        return None
    kind = kind_of(key)
    advice = f"Set {key}=null instead" if kind is not None and kind.holds(None) else "Drop the word, or give it a value"
    return f"{short(override.input_line)} takes {key} away, which runs read. {advice}."


def _swept(override: Override, composed: DictConfig) -> str | None:
    """A value of a sweep that its key does not take."""
    if not override.is_sweep_override():
        return None
    key, kind = override.key_or_group, kind_of(override.key_or_group)
    if override.is_interval_sweep() and "n_trials" not in composed.hydra.sweeper:
        return f"{short(override.input_line)} is an interval, from which only a search draws: add hydra/sweeper=optuna."
    if isinstance(OmegaConf.select(composed, key), DictConfig) and kind is GROUP:
        return None  # names of options, which `find_fault` looks up
    for value in _values(override):
        fault = fault_of_values(_nested(key, value), at=key)
        if fault and override.is_interval_sweep() and isinstance(value, float) and value.is_integer():
            whole = kind is not None and kind.holds(int(value))
            return f"{short(override.input_line)}: {fault}" + (" int(interval(...)) draws whole ones." if whole else "")
        if fault:
            return f"{short(override.input_line)}: {fault}"
    return None


def _values(override: Override) -> list[Any]:
    """All values of a sweep; of an interval both ends."""
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        return [value.start, value.end]
    return [_plain(found) for found in override.sweep_iterator()]


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _nested(key: str, value: Any) -> Mapping[str, Any]:
    """A config of this key alone; empty where only composing can tell its value."""
    if isinstance(value, str) and "${" in value:
        return {}
    head, _, rest = key.partition(".")
    return {head: _nested(rest, value) if rest else value}


def _innermost(composed: DictConfig, key: str) -> str:
    """Of a key that only stands for another one, that other: the one whose value somebody wrote."""
    seen = {key}
    while found := re.fullmatch(r"\$\{([\w.]+)\}", str(_raw(composed, key))):
        if found[1] in seen or "${" not in str(_raw(composed, found[1])):
            break
        key = found[1]
        seen.add(key)
    return key


def _raw(composed: DictConfig, key: str | None) -> object:
    """What a key was given, unresolved."""
    node: Any = OmegaConf.to_container(composed, resolve=False)
    for part in (key or "").replace("[", ".").replace("]", "").split("."):
        try:
            node = node[int(part)] if isinstance(node, list) else node[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return "an interpolation"
    return node


def _first_circle(composed: DictConfig) -> str:
    """The first top-level key that refers to itself."""
    for key in composed:
        try:
            OmegaConf.to_container(OmegaConf.create({str(key): composed._get_node(key)}), resolve=True)
        except (OmegaConfBaseException, RecursionError):
            return str(key)
    return "a key of the config"


def _first_line(error: BaseException) -> str:
    return "it refers to itself" if isinstance(error, RecursionError) else str(error).splitlines()[0].rstrip(".")
