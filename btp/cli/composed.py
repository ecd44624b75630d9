"""A config from words, for callers in Python: composed, checked and resolved as the command line does it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir

from btp.cli.check_config import settled
from btp.cli.overrides import find_fault, swept
from btp.cli.values import resolved
from btp.results.shipped import CONF
from btp.runner.pruner_lists import name_lists


def composed(words: Sequence[str], where: str = "") -> dict[str, Any]:
    """The resolved config of these words, with them as its `command`.

    Args:
        words: Words as on the command line, `key=value` each.
        where: they come from, in front of messages.

    Raises:
        ValueError: what is wrong with a word.
    """
    words = name_lists(words)
    fault = find_fault(CONF, words)
    if fault:
        raise ValueError(f"{where}{fault}")
    if several := swept(CONF, words):
        word, _ = several
        raise ValueError(f"{where}{word} has several values, and this is one run. One value that is a list is [a,b].")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = settled(resolved(compose("config", overrides=words)), words)
    config["command"] = " ".join(words)
    return config


def word(key: str, value: Any) -> str:
    """`key=value` for a value of Python, in quotes where Hydra asks for them."""
    return f"{key}={value_word(value)}"


def value_word(value: Any) -> str:
    """A value as a word has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}: {value_word(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(value_word, value))}]"
    if isinstance(value, str) and value[:1] not in "[{'\"" and set(value) & set(" ,:[]{}()\\="):
        return json.dumps(value)
    return str(value)


def budget_word(budget: float) -> str:
    """The word of a budget: a share of the visual tokens up to 1, tokens above."""
    tokens = isinstance(budget, int | float) and budget > 1
    return word(f"budget.{'tokens' if tokens else 'share'}", budget)
