"""Instantiates the classes that a config names by `_target_`: the one place where a config decides which code runs.

hydra.utils.instantiate calls whatever is named, and resolves interpolations on the way. Here every class in the config
is looked at before the first one is called, and values are taken as they are.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from btp.results.shipped import CONF

TARGET = "_target_"
PROJECT = "btp"
DATA = ("btp.pruners.", "btp.tasks.", "btp.models.")  # what a file that somebody else wrote may name
_NAMED = re.compile(r"(?:_target_|^adapter): *[\"']?([\w.]+)", re.MULTILINE)
PLACE = "hydra.sweep.dir"  # where a sweep lies: resume gives its own
_SAFE = ("hydra.sweep.", "hydra.sweeper.", "hydra.launcher.")
_PLAIN = re.compile(r"[\w.,:-]*")  # no list, no path, nothing for a shell
Kind = TypeVar("Kind")


@runtime_checkable
class Samples(Protocol):
    """What a dataset's class has at least."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def make(node: Mapping[str, Any], kind: type[Kind], key: str) -> Kind:
    """Build what a node of a user's own config names.

    The outermost class is of the kind asked for. Classes inside are of that kind too, or of this project, or of the
    package of the outermost.

    Args:
        node: `_target_` and the arguments of its class, which may be such nodes themselves; resolved.
        kind: what it has to be: a class, or a protocol of methods.
        key: Key of the node, for messages.

    Raises:
        ValueError: something else is named. Nothing was called then. A class's own complaints come through.
    """
    for place, inner in targets(node, key):
        _check(place, inner, kind, node)
    return _built(node)


def targets(node: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node with a `_target_` in `node`, outermost first, with its key."""
    if isinstance(node, Mapping):
        if TARGET in node:
            yield key, node
        for name, value in node.items():
            yield from targets(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list | tuple):
        for at, value in enumerate(node):
            yield from targets(value, f"{key}.{at}")


def find_class(path: Any, key: str) -> type:
    """The class that a dotted path names; its module is imported.

    Args:
        key: Key of the path, for messages.

    Raises:
        ValueError: there is no such class.
    """
    module, _, name = str(path).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{key} is {path}, but there is no such class: {error}. Correct the path.") from None
    if not isinstance(found, type):
        raise ValueError(f"{key} is {path}, which is no class. Nothing was called. Name a class of your own or of btp.")
    return found


def foreign(config: Mapping[str, Any], conf: Path = CONF) -> str | None:
    """Why a config that comes from a file of somebody else would run code that is not this project's; None if not.

    Classes that the user's own yamls name are not foreign. No module outside of the project is imported to find out.

    Args:
        config: Config of a run, resolved.
        conf: folder of the user's yamls.
    """
    texts = (file.read_text(encoding="utf-8") for file in conf.rglob("*.yaml"))
    own = {name for text in texts for name in _NAMED.findall(text) if not name.startswith(f"{PROJECT}.")}
    for place, node in targets(config, ""):
        if node[TARGET] not in own and not _of_project(node[TARGET]):
            return f"{place}.{TARGET} is {node[TARGET]}"
    model = config.get("model")
    if isinstance(model, Mapping):
        adapter = str(model.get("adapter"))
        if adapter not in own and not adapter.startswith(f"{PROJECT}.models."):
            return f"model.adapter is {model.get('adapter')}"
        if model.get("trust_remote_code") not in (None, False):
            return "model.trust_remote_code is true"
    return None


def chooses_code(words: Iterable[str]) -> str | None:
    """The first word of a recorded command line that says which code runs; None where all of it is this project's.

    Args:
        words: Words as a sweep.json holds them, whoever wrote it.
    """
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        last = key.rpartition(".")[2]
        plain = _PLAIN.fullmatch(value) is not None
        ours = all(one.startswith(DATA) for one in value.split(",")) and plain
        if (
            (word.startswith("-") and word not in ("-m", "--multirun"))
            or (last in (TARGET, "adapter") and not ours)
            or (TARGET in word and last != TARGET)
            or last in ("trust_remote_code", "include_path")
            or (key.startswith("hydra.") and key != PLACE and not (key.startswith(_SAFE) and plain))
        ):
            return word
    return None


def _of_project(path: Any) -> bool:
    """Whether a path names a class that is defined in one of the packages that data may name."""
    if not isinstance(path, str) or not path.startswith(DATA):
        return False
    try:
        found = find_class(path, TARGET)
    except ValueError:
        return False
    return f"{found.__module__}.".startswith(DATA)


def _check(key: str, node: Mapping[str, Any], kind: type, whole: Mapping[str, Any]) -> None:
    strange = sorted(name for name in map(str, node) if name.startswith("_") and name != TARGET)
    if strange:
        raise ValueError(
            f"{key}.{strange[0]} has no effect: beside {TARGET} a class takes its own arguments. Remove it."
        )
    found = find_class(node[TARGET], f"{key}.{TARGET}")
    if issubclass(found, kind):
        return
    wanted = "a class with __len__ and __getitem__" if kind is Samples else f"a subclass of {_path(kind)}"
    home = str(whole[TARGET]).split(".")[0]
    if node is whole:
        raise ValueError(f"{key}.{TARGET} is {node[TARGET]}, which is not {wanted}. Nothing was called. Name one.")
    if found.__module__.split(".")[0] not in (PROJECT, home):
        raise ValueError(
            f"{key}.{TARGET} is {node[TARGET]}, which is neither {wanted} nor of the package {home}. Nothing was "
            f"called. Let a class of {home} make it."
        )


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__name__}"


def _built(node: Any) -> Any:
    if isinstance(node, Mapping):
        made = {name: _built(value) for name, value in node.items() if name != TARGET}
        return find_class(node[TARGET], TARGET)(**made) if TARGET in node else made
    if isinstance(node, list | tuple):
        return [_built(value) for value in node]
    return node
