"""`pruner=[fastervlm,btp]` on the command line: several pruners as one, without a yaml of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

GROUP, JOIN = "pruner", "+"
CHAIN = "btp.pruners.composition.Chain"


def name_lists(words: Iterable[str]) -> list[str]:
    """Replace lists of pruners by options that compose them, and tell Hydra what those are.

    `pruner=[a,b]` becomes `pruner=a+b`, also among the values of a sweep. Words that Hydra cannot read stay as they
    are: `find_fault` explains them.

    Raises:
        ValueError: a list with a pruner twice, or with something that is no name.
    """
    return [_named(word) if word.lstrip("+").startswith(GROUP) and "[" in word else word for word in words]


def method_of(pruner: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The config of a pruner's method; that of a composition holds the methods of its parts."""
    parts = pruner.get("parts")
    if not parts:
        return pruner["method"]
    return {"_target_": CHAIN, "parts": {name: part["method"] for name, part in parts.items()}}


def as_typed(word: str) -> str:
    """The word of a command line that `name_lists` made this one of."""
    key, _, value = word.partition("=")
    if key.lstrip("+").split("@")[0] != GROUP or JOIN not in value:
        return word
    return f"{key}=[{value.replace(JOIN, ',')}]"


def _named(word: str) -> str:
    try:
        (override,) = OverridesParser.create().parse_overrides([word])
    except HydraException:
        return word
    if override.key_or_group != GROUP:
        return word
    return f"{word.split('=', 1)[0]}={','.join(map(_option, _values(override)))}"


def _values(override: Override) -> list[object]:
    value = override.value()
    return list(value.list) if isinstance(value, ChoiceSweep) else [value]


def _option(value: object) -> str:
    """The option that stands for one value, registered where it is a composition."""
    if not isinstance(value, list):
        return str(value)
    parts = [str(part) for part in value]
    if len(set(parts)) < len(parts) or not all(part.isidentifier() for part in parts) or not parts:
        raise ValueError(
            f"{GROUP}=[{','.join(parts)}] is no composition. Name each pruner once, as in {GROUP}=[fastervlm,btp]."
        )
    if len(parts) == 1:
        return parts[0]
    name = JOIN.join(parts)
    node = {
        "defaults": [f"{part}@parts.{part}" for part in parts],
        "name": "_".join(parts),
        "method": None,
        "schedule": None,
    }
    ConfigStore.instance().store(group=GROUP, name=name, node=node)
    return name
