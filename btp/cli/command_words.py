"""Parsing of the command line as people type it into what Hydra reads. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from btp.runner.yaml_keys import LOADER

FOLDER = ("--config-dir", "-cd")
SEARCHPATH = "hydra.searchpath"
VALUED = ("--config-name", "-cn", "--config-path", "-cp", *FOLDER, "--cfg", "-c", "--package", "-p")
VALUED += ("--info", "-i", "--experimental-rerun")  # Hydra's flags with a value of their own
SYNTAX = frozenset(",=[]{}()'\"\\")  # what may mean something to Hydra in a value


def overrides_of(argv: Sequence[str]) -> list[str]:
    """The words that change the config."""
    return [word for word in argv if _is_override(word)]


def stray_word(argv: Sequence[str]) -> str | None:
    """The first word that is neither a flag, nor the value of one, nor changes the config; None without any."""
    for before, word in zip(["", *argv], argv, strict=False):
        known = word.startswith("-") or _is_override(word) or before in VALUED
        if word.startswith("=") or not known:
            return word
    return None


def hydra_words(conf: Path, argv: Sequence[str]) -> list[str]:
    """A command line that Hydra reads as it was meant.

    Flags may stand behind the words that change the config. A value with letters outside ASCII, which Hydra takes in
    quotes only, gets them. New keys of a mapping that conf leaves empty for the user's own need no `+`. `--config-dir`
    becomes the word for it that every composition reads.

    Args:
        conf: folder of the yamls.

    Raises:
        ValueError: the folder of `--config-dir` is not there.
    """
    argv = _with_searchpath(argv)
    flags = [word for word in argv if not _is_override(word)]
    words = [_in_quotes(word) for word in overrides_of(argv)]
    return [*flags, *_added(conf, words)]


def quoted(key: str, value: object) -> str:
    """`key=value` for a value that Hydra is to take as it is, whatever stands in it."""
    text = str(value).replace("${", "\\${")
    return f"{key}={QuotedString(text, Quote.double).with_quotes()}"


def folders_of(overrides: Sequence[Override]) -> list[Path]:
    """Config directories of the user's own that words name."""
    found: list[Any] = []
    for override in overrides:
        value: Any = override.value() if override.key_or_group == SEARCHPATH else []
        found += value if isinstance(value, list) else [value]
    texts = [one.text if isinstance(one, QuotedString) else str(one) for one in found]
    return [Path(text.removeprefix("file://")) for text in texts if "://" not in text.removeprefix("file://")]


def _with_searchpath(argv: Sequence[str]) -> list[str]:
    """`--config-dir DIR` as a word, which Hydra's flag is not where a config is composed to be looked at."""
    rest, words = [], iter(argv)
    for word in words:
        flag, _, value = word.partition("=")
        if flag not in FOLDER:
            rest.append(word)
            continue
        folder = Path(value or next(words, ""))
        if not folder.is_dir():
            raise ValueError(f"{flag} is {folder}, but there is no such folder. Name one with groups of yamls in it.")
        inside = QuotedString(f"file://{folder.absolute()}", Quote.double).with_quotes()
        rest.append(f"{SEARCHPATH}=[{inside}]")
    return rest


def _is_override(word: str) -> bool:
    return (not word.startswith("-") and "=" in word) or word.startswith(("~", "+"))


def _in_quotes(word: str) -> str:
    key, _, value = word.partition("=")
    return word if value.isascii() or SYNTAX & set(value) else quoted(key, value)


def _added(conf: Path, words: list[str]) -> list[str]:
    """The words, with + in front of those that fill a mapping which the composed config has empty."""
    asked = [word for word in words if _within(word, _empty_mappings(conf))]
    if not asked:
        return words
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            groups = [word for word in words if word not in asked and _chooses(word)]
            composed = compose("config", overrides=[_without_sweep(word) for word in groups])
    except (HydraException, OmegaConfBaseException):
        return words  # find_fault says what is wrong
    mine = [place for place in _empty_mappings(conf) if isinstance(OmegaConf.select(composed, place), DictConfig)]
    return [f"+{word}" if _within(word, mine) else word for word in words]


def _chooses(word: str) -> bool:
    """Whether a word chooses an option of a group, or says where more of them are."""
    key = word.split("=", 1)[0]
    return "." not in key or key == SEARCHPATH


def _within(word: str, places: Sequence[str]) -> bool:
    """Whether a word fills one of these mappings: with a key, or with several in braces."""
    key, _, value = word.partition("=")
    return any((key == place and value.lstrip()[:1] == "{") or key.startswith(f"{place}.") for place in places)


def _without_sweep(word: str) -> str:
    """A choice of a group with its first option: those that a sweep goes over have the same mappings."""
    return word if "[" in word else word.split(",", 1)[0]


@cache
def _empty_mappings(conf: Path) -> list[str]:
    """Dotted keys that yamls of a group have as `{}`: the user fills them with keys of any name."""
    found: set[str] = set()
    for file in conf.glob("*/*.yaml"):
        content: Any = yaml.load(file.read_text(encoding="utf-8"), LOADER)
        found.update(f"{file.parent.name}.{path}" for path in _empty(content))
    return sorted(found)


def _empty(content: Any, path: str = "") -> Iterator[str]:
    for key, value in content.items() if isinstance(content, dict) else ():
        place = f"{path}.{key}" if path else str(key)
        if value == {}:
            yield place
        else:
            yield from _empty(value, place)
