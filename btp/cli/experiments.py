"""Experiments: yamls of conf/experiment that sweep by themselves and say what study their cells make. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from btp.results.shipped import PROGRAM
from btp.runner.pruner_lists import name_lists

GROUP = "experiment"


@dataclass(frozen=True)
class Experiment:
    """What a command line's experiments ask for beside their settings.

    Attributes:
        name: Name of the experiment, "" where there is none.
        sweeps: values by key, as `hydra.sweeper.params` has them; a word of the command line takes a key's place.
        study: how its cells are summed up; None where it makes no study.
    """

    name: str = ""
    sweeps: Mapping[str, str] = field(default_factory=dict)
    study: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, composed: DictConfig) -> Experiment:
        """Read a config that was composed with `return_hydra_config`."""
        params = composed.hydra.sweeper.get("params") or {}
        study: Any = OmegaConf.to_container(composed.study, resolve=True) if composed.study else None
        name = str(composed.hydra.runtime.choices.get(GROUP) or "")
        return cls(name, {str(key): str(value) for key, value in params.items()}, study)

    def words(self) -> list[str]:
        """Its sweep as a command line would write it."""
        return name_lists(f"{key}={values}" for key, values in self.sweeps.items())

    def before(self, words: Sequence[str]) -> list[str]:
        """These words, and in front of them those of its sweep whose keys they do not name."""
        given = {word.split("=", 1)[0] for word in words}
        return [*(word for word in self.words() if word.split("=", 1)[0] not in given), *words]

    def fault(self, words: Sequence[str]) -> str | None:
        """Why these words are no single run of it: a sweep without -m would run one cell, and not say which."""
        left = [key for key in self.sweeps if not any(word.split("=", 1)[0] == key for word in words)]
        if not left:
            return None
        return (
            f"{GROUP}={self.name} is a sweep over {', '.join(left)}, but -m is missing. Write "
            f"`{PROGRAM} -m {GROUP}={self.name}`, or say {' and '.join(f'{key}=...' for key in left)} for one run."
        )


def study_of(conf: Path, name: str) -> Mapping[str, Any]:
    """The study of an experiment, read from its yaml.

    Raises:
        ValueError: there is no such experiment, or it makes no study.
    """
    file = conf / GROUP / f"{name}.yaml"
    found = _study(file) if file.is_file() else None
    if not found:
        studies = [f.stem for f in sorted((conf / GROUP).glob("*.yaml")) if _study(f)]
        raise ValueError(f"{name!r} is no study. Studies are: {', '.join(studies)}.")
    return {"name": name, **found}


def _study(file: Path) -> Mapping[str, Any] | None:
    return (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("study")
