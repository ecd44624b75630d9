"""Turns Hydra's complaints about the command line into ours, with the nearest known key or option."""

import difflib
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from btp.runner.compositions import GROUP, JOIN
from btp.runner.experiments import Experiment

MANY = ("-m", "--multirun")


def check_overrides(conf: Path, argv: list[str]) -> None:
    """Compose once with the command line's overrides and leave with exit code 1 where that fails.

    A sweep is tried with the first value of each choice, and every chosen group option must exist.
    """
    words = _overrides(argv)
    try:
        experiment = experiment_of(conf, argv)
    except HydraException:
        experiment = Experiment()  # find_fault says what is wrong with it
    many = any(flag in argv for flag in MANY)
    message = find_fault(conf, experiment.before(words) if many else words)
    if message is None and not many and "--cfg" not in argv and "-c" not in argv:
        message = experiment.fault(words)
    if message:
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)


def with_sweep(conf: Path, argv: list[str]) -> list[str]:
    """The words of a command line, and in front of those that name keys what its experiment sweeps over beside them."""
    at = next((i for i, word in enumerate(argv) if "=" in word), len(argv))
    return [*argv[:at], *experiment_of(conf, argv).before(argv[at:])]


def sweep_folder(conf: Path, argv: list[str]) -> Path:
    """Where a sweep with these words goes: settled once, before any launcher asks.

    Args:
        argv: words that `check_overrides` found nothing wrong with.
    """
    return Path(_composed(conf, _overrides(with_sweep(conf, argv))).hydra.sweep.dir)


def experiment_of(conf: Path, argv: list[str]) -> Experiment:
    """What the experiment that these words name sweeps over, and the study that it makes."""
    return Experiment.of(_composed(conf, [word for word in argv if word.startswith("experiment=")]))


def _composed(conf: Path, words: list[str]) -> DictConfig:
    """The config of words, each with its first value, Hydra's own part with it."""
    parsed = OverridesParser.create().parse_overrides(words)
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose("config", overrides=[_first(override) for override in parsed], return_hydra_config=True)


def _first(override: Override) -> str:
    values = _values(override)
    return f"{override.input_line.split('=', 1)[0]}={values[0]}" if values else override.input_line


def _overrides(argv: list[str]) -> list[str]:
    return [a for a in argv if (not a.startswith("-") and "=" in a) or a.startswith(("~", "+"))]


def find_fault(conf: Path, words: list[str]) -> str | None:
    """What is wrong with the overrides `words`, in one message; None where nothing is."""
    try:
        parsed = OverridesParser.create().parse_overrides(words)
    except HydraException as error:
        return f"cannot read the command line: {str(error).splitlines()[0]}"
    first = []
    groups = {p.relative_to(conf).as_posix() for p in conf.rglob("*") if p.is_dir()}
    for override in parsed:
        group = override.key_or_group.removeprefix("hydra.")
        values = _values(override)
        if group in groups and not override.is_delete():
            for choice in values or [override.value()]:
                fault = _missing_option(conf, group, choice)
                if fault:
                    return fault
        first.append(_first(override))
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            compose("config", overrides=first)
    except Exception as error:
        return _explain(conf, first, error)
    return None


def _values(override: Override) -> list[str] | None:
    """What a sweep tries for a key; of an interval its lower end, None for a single value."""
    if override.is_interval_sweep():
        return [str(override.value().start)]  # type: ignore[union-attr]
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else None


def _missing_option(conf: Path, group: str, choice: object) -> str | None:
    options = sorted(p.stem for p in (conf / group).glob("*.yaml"))
    if group.startswith("hydra/"):
        options = sorted({*options, *_of_plugins(conf, group)})
    if not isinstance(choice, str) or choice in options or choice == "null":
        return None
    if group == GROUP and JOIN in choice:
        faults = [fault for part in choice.split(JOIN) if (fault := _missing_option(conf, group, part))]
        return faults[0] if faults else None
    near = difflib.get_close_matches(choice, options, 1)
    hint = f" Did you mean {group}={near[0]}?" if near else ""
    return f"{group}={choice} is not there.{hint} Options: {', '.join(options)}."


def _of_plugins(conf: Path, group: str) -> list[str]:
    """Options that Hydra and its plug-ins bring, such as hydra/launcher=joblib."""
    with initialize_config_dir(str(conf), version_base="1.3"):
        return GlobalHydra.instance().config_loader().get_group_options(group)


def _explain(conf: Path, words: list[str], error: Exception) -> str:
    """Name the nearest known key where a word of the command line names an unknown one."""
    with initialize_config_dir(str(conf), version_base="1.3"):
        groups = [w for w in words if (conf / w.split("=", 1)[0].split("@")[0]).is_dir()]
        try:
            known = _keys(compose("config", overrides=groups))
        except Exception:
            return str(error).splitlines()[0]
    known |= {p.relative_to(conf).as_posix() for p in conf.rglob("*") if p.is_dir()}
    for word in words:
        key = word.split("=", 1)[0]
        if key.startswith(("+", "~", "hydra")) or key.split("@")[0] in known:
            continue
        near = difflib.get_close_matches(key, sorted(known), 1, cutoff=0.5)
        leaf = [k for k in sorted(known) if k.split(".")[-1] == key.split(".")[-1]]
        hint = f" Did you mean {(leaf or near)[0]}?" if leaf or near else ""
        return f"unknown key {key}.{hint} `python run.py --cfg job` lists all keys; +{key}=... adds a new one."
    return str(error).splitlines()[0]


def _keys(config: DictConfig) -> set[str]:
    """All dotted paths of a config, inner nodes included."""
    found: set[str] = set()

    def walk(node: object, path: str) -> None:
        if path:
            found.add(path)
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f"{path}.{key}" if path else str(key))

    walk(OmegaConf.to_container(config, resolve=False), "")
    return {key for key in found if not key.startswith("study.")}  # which no command line sets
