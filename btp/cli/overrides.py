"""Checks of Hydra overrides, with the nearest known key or option in messages."""

import difflib
import shlex
import sys
from collections.abc import Set
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from btp.cli.check_config import settled
from btp.cli.command_words import SEARCHPATH, folders_of, overrides_of, stray_word
from btp.cli.experiments import Experiment
from btp.cli.schema import CHOSEN, NEEDED
from btp.cli.unused_overrides import fault_of_effects
from btp.cli.values import fault_of_shapes, fault_of_size, fault_of_values, fault_of_words, resolved
from btp.results.command_line import as_line
from btp.results.disk import make_folder, writing
from btp.results.shipped import PROGRAM, lacking
from btp.runner.messages import say
from btp.runner.pruner_lists import GROUP, JOIN, as_typed
from btp.runner.yaml_keys import fault_of_keys, fault_of_option
from btp.tasks.shown import short

MANY = ("-m", "--multirun")
MOST_NAMED = 6  # options that a message lists as examples
OF_HYDRA = ("hydra/sweeper", "hydra/launcher")  # groups that Hydra cannot do without
EXTRAS = {  # what an option of Hydra's runs on, and the extra of the distribution that installs it
    "hydra/launcher=slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "hydra/launcher=joblib": ("hydra_plugins.hydra_joblib_launcher", "parallel"),
    "hydra/sweeper=optuna": ("optuna", "optuna"),
}
SWEEPS = ("experiment=", "hydra.sweeper.params.", SEARCHPATH)  # words that say what an experiment sweeps over


def check_overrides(conf: Path, argv: list[str]) -> None:
    """Compose once with the command line's overrides and leave with exit code 1 where that fails.

    A sweep is tried with the first value of each choice, and every chosen group option must exist.
    """
    words = overrides_of(argv)
    if stray := stray_word(argv):
        say(f"{short(stray)} is neither a flag nor key=value, which a run takes. `{PROGRAM} --help` lists the keys.")
        sys.exit(1)
    try:
        experiment = experiment_of(conf, argv)
    except (HydraException, ValueError):
        experiment = Experiment()  # find_fault says what is wrong with it
    many = any(flag in argv for flag in MANY)
    message = find_fault(conf, experiment.before(words) if many else words)
    if message is None and not many and "--cfg" not in argv and "-c" not in argv:
        message = experiment.fault(words) or _several(conf, words)
    if message:
        say(message)
        sys.exit(1)


def _several(conf: Path, words: list[str]) -> str | None:
    """Why these words are no single run: one of them has several values."""
    found = swept(conf, words)
    if found is None:
        return None
    word, values = found
    return (
        f"{short(word)} is a sweep over {len(values)} values, but -m is missing. Write `{PROGRAM} -m ...`; one value "
        f"that is a list is written [a,b]{_or_quoted(conf, word)}."
    )


def swept(conf: Path, words: list[str]) -> tuple[str, list[str]] | None:
    """The first word that has several values, and these; None where all have one."""
    for override in _parsed(conf, words):
        if values := _values(override):
            return str(override.input_line), values
    return None


def _or_quoted(conf: Path, word: str) -> str:
    quoted = _quoted(conf, word)
    return f", and one with a comma in it is quoted: {shlex.quote(quoted)}" if quoted else ""


def with_sweep(conf: Path, argv: list[str]) -> list[str]:
    """The words of a command line, and in front of those that name keys what its experiment sweeps over beside them."""
    at = next((i for i, word in enumerate(argv) if "=" in word), len(argv))
    return [*argv[:at], *_beside_swept(conf, experiment_of(conf, argv).before(argv[at:]))]


def _beside_swept(conf: Path, words: list[str]) -> list[str]:
    """The same, with settings of a group that is swept written as sweeps of one value.

    Hydra composes once without what is swept, where such a setting would meet the group's default.
    """
    parsed = {str(override.input_line): override for override in _parsed(conf, overrides_of(words))}
    groups = [str(o.key_or_group) for o in parsed.values() if o.is_sweep_override()]
    inside = tuple(f"{group}." for group in groups if not group.startswith("hydra"))

    def one(word: str) -> str:
        override = parsed.get(word)
        if override is None or override.is_delete() or override.is_sweep_override():
            return word
        key, _, value = word.partition("=")
        return f"{key}=choice({value})" if value and str(override.key_or_group).startswith(inside) else word

    return [one(word) for word in words]


def sweep_folder(conf: Path, argv: list[str]) -> Path:
    """Where a sweep with these words goes: settled once, before any launcher asks.

    A folder that is named by the time is made here and is nobody else's, also of sweeps that begin in one second.

    Args:
        argv: words that `check_overrides` found nothing wrong with.

    Raises:
        CannotWrite: it may not be made.
    """
    words = overrides_of(with_sweep(conf, argv))
    config = _composed(conf, words)
    folder = Path(config.hydra.sweep.dir)
    if any(word.startswith("hydra.sweep.dir=") for word in words):
        return folder
    Path(config.output).mkdir(parents=True, exist_ok=True)
    make_folder(folder.parent)
    for number in count(1):
        mine = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        with writing(mine), suppress(FileExistsError):
            mine.mkdir()
            return mine
    raise AssertionError("count has no end")


def planned_cells(conf: Path, argv: list[str]) -> list[str]:
    """The words of every cell that a sweep comes to, "" for one that is yet to be proposed; none where nobody knows.

    Args:
        argv: words that `check_overrides` found nothing wrong with.
    """
    words = overrides_of(with_sweep(conf, argv))
    sweeper = _composed(conf, words).hydra.sweeper
    if "n_trials" in sweeper:
        return [""] * sweeper.n_trials
    if not str(sweeper["_target_"]).endswith(BasicSweeper.__name__):
        return []
    (cells,) = BasicSweeper.split_arguments(_parsed(conf, words), None)
    return [as_line(as_typed(word) for word in cell if not word.startswith("hydra")) for cell in cells]


def experiment_of(conf: Path, argv: list[str]) -> Experiment:
    """What the experiment that these words name sweeps over, and the study that it makes."""
    return Experiment.of(_composed(conf, [word for word in argv if word.lstrip("+").startswith(SWEEPS)]))


def _composed(conf: Path, words: list[str]) -> DictConfig:
    """The config of words, each with its first value, Hydra's own part with it."""
    first = [_first(override) for override in _parsed(conf, words)]
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose("config", overrides=first, return_hydra_config=True)


def _parsed(conf: Path, words: list[str]) -> list[Override]:
    """Words as Hydra reads them; a glob stands for the options there are."""
    with initialize_config_dir(str(conf), version_base="1.3"):
        return OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(words)


def _first(override: Override) -> str:
    values, line = _values(override), str(override.input_line)
    return f"{line.split('=', 1)[0]}={values[0]}" if values else line


def find_fault(conf: Path, words: list[str]) -> str | None:
    """What is wrong with the overrides `words`, in one message; None where nothing is."""
    try:
        parsed = _parsed(conf, words)
    except HydraException as error:
        return _unread(conf, words) or f"cannot read the command line: {str(error).splitlines()[0]}"
    first = []
    confs = [conf, *folders_of(parsed)]
    groups = {p.relative_to(one).as_posix() for one in confs for p in one.rglob("*") if p.is_dir()}
    for override in parsed:
        group = override.key_or_group.removeprefix("hydra.")
        if override.is_sweep_override() and (fault := fault_of_size(override)):
            return fault
        values = _values(override)
        if group in groups and not override.is_delete():
            for choice in values or [override.value()]:
                needed = group in (*CHOSEN, *OF_HYDRA) and override.package is None
                fault = _missing_option(confs, group, choice, needed) or fault_of_option(conf, group, str(choice))
                if fault:
                    return fault
        first.append(_first(override))
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            composed = compose("config", overrides=first, return_hydra_config=True)
    except Exception as error:
        return _unknown(conf, first, error) or fault_of_shapes(parsed) or _reasons(error)
    for part in OF_HYDRA:
        if not isinstance(OmegaConf.select(composed, part.replace("/", "."), throw_on_missing=False), DictConfig):
            return f"{part} is not there, and Hydra needs one. Choose it: {part}=basic."
    return fault_of_words(parsed, composed) or fault_of_keys(conf, composed) or _fault_of_values(parsed, composed)


def _fault_of_values(parsed: list[Override], composed: DictConfig) -> str | None:
    """A value that its key does not take, or one that is not read."""
    job = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    try:
        config = settled(resolved(job), [str(override.input_line) for override in parsed])
        folder = str(composed.hydra.sweep.dir)
    except OmegaConfBaseException as error:
        return f"hydra.sweep.dir cannot be resolved: {str(error).splitlines()[0]}. Set it to a folder."
    except ValueError as error:
        return str(error)
    hydra = {part: _written(composed.hydra[part]) for part in ("sweeper", "launcher")} | {"sweep": {"dir": folder}}
    return fault_of_values({**config, "hydra": hydra}, NEEDED) or fault_of_effects(parsed, config)


def _written(node: DictConfig) -> dict[str, object]:
    """What a part of Hydra's own config was given, without what only Hydra resolves."""
    given: Any = OmegaConf.to_container(node, resolve=False)
    return {key: value for key, value in given.items() if not (isinstance(value, str) and "${" in value)}


def _unread(conf: Path, words: list[str]) -> str | None:
    """Which word Hydra cannot read, and how its value is quoted; None where it is not one word alone."""
    for word in words:
        try:
            _parsed(conf, [word])
        except HydraException as error:
            reason = str(error).splitlines()[0].strip()
            if quoted := _quoted(conf, word):
                return (
                    f"cannot read {short(word)}: a value with =, commas, quotes or brackets in it is quoted, for Hydra "
                    f"and for the shell: {shlex.quote(quoted)}"
                )
            return f"cannot read the command line: {short(word)}: {short(reason)}"
    return None


def _quoted(conf: Path, word: str) -> str:
    """A word with its value in Hydra's quotes; "" where it is no path or text that these would help."""
    key, _, value = word.partition("=")
    quote = "'" if '"' in value else '"'
    quoted = f"{key}={quote}{value}{quote}"
    if not set("/=") & set(value):
        return ""
    try:
        _parsed(conf, [quoted])
    except HydraException:
        return ""
    return quoted


def _values(override: Override) -> list[str] | None:
    """What a sweep tries for a key; of an interval its lower end, None for a single value."""
    if override.is_interval_sweep():
        return [str(override.value().start)]  # type: ignore[union-attr]
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else None


def _missing_option(confs: list[Path], group: str, choice: object, needed: bool = False) -> str | None:
    options = sorted({p.stem for conf in confs for p in (conf / group).glob("*.yaml")})
    if group.startswith("hydra/"):
        with initialize_config_dir(str(confs[0]), version_base="1.3"):
            options = sorted({*options, *_options(group)})
    if isinstance(choice, list):
        return next((fault for one in choice if (fault := _missing_option(confs, group, one, needed))), None)
    name = "null" if choice is None else str(choice)
    if fault := lacking(f"{group}={name}", *EXTRAS[f"{group}={name}"]) if f"{group}={name}" in EXTRAS else None:
        return fault
    if name in options:
        return None
    if name == "null":
        none = f" {group}=none does without." if "none" in options else ""
        lost = f"{group}=null leaves a run without a {group}, which it needs.{none} Options: {', '.join(options)}."
        return lost if needed else f"{group}=null is no option. Leave the word out. Options: {', '.join(options)}."
    if group == GROUP and JOIN in name:
        faults = [fault for part in name.split(JOIN) if (fault := _missing_option(confs, group, part))]
        return faults[0] if faults else None
    near = difflib.get_close_matches(name, options, 1)
    hint = f" Did you mean {group}={near[0]}?" if near else ""
    return f"{group}={short(name)} is not there.{hint} Options: {', '.join(options)}."


def _options(group: str) -> list[str]:
    """A group's options, with those that Hydra and its plug-ins bring, such as hydra/launcher=joblib."""
    return GlobalHydra.instance().config_loader().get_group_options(group)


def _unknown(conf: Path, words: list[str], error: Exception) -> str | None:
    """Name the nearest known key where a word of the command line names an unknown one; None where none does."""
    groups = [w for w in words if (conf / w.split("=", 1)[0].split("@")[0]).is_dir()]
    with initialize_config_dir(str(conf), version_base="1.3"):
        try:
            composed = compose("config", overrides=groups, return_hydra_config=True)
        except Exception:
            return str(error).splitlines()[0]
        known = _keys(composed) | {p.relative_to(conf).as_posix() for p in conf.rglob("*") if p.is_dir()}
        known |= {f"hydra/{group}" for group in GlobalHydra.instance().config_loader().list_groups("hydra")}
        for word in words:
            key = word.split("=", 1)[0]
            if not key.startswith(("+", "~")) and key.split("@")[0] not in known:
                return f"unknown key {key}.{_owner(conf, key) or _nearest(key, known)} {_where(key)}"
    return None


def _reasons(error: Exception) -> str:
    """What Hydra says, which names the word, and what OmegaConf says behind it, which says why."""
    lines = [str(error).splitlines()[0].strip().rstrip(".")]
    if error.__cause__ is not None and str(error.__cause__):
        lines.append(str(error.__cause__).splitlines()[0].strip().rstrip("."))
    return ": ".join(dict.fromkeys(lines)) + "."


def _where(key: str) -> str:
    """Where a key like this can be looked up."""
    if key.startswith("hydra"):
        return f"`{PROGRAM} --cfg hydra` lists all keys of Hydra."
    return f"`{PROGRAM} --cfg job` lists all keys; +{key}=... adds a new one."


def _owner(conf: Path, key: str) -> str:
    """With which other options of its group this is a key: launchers, sweepers and tasks have their own."""
    if key.startswith("hydra."):
        group = "/".join(key.split(".")[:2])
        found = [f"{group}={option}" for option in _options(group) if key in _with_option(group, option)]
    else:
        group, _, rest = key.partition(".")
        yamls = {path.stem: OmegaConf.load(path) for path in sorted((conf / group).glob("*.yaml")) if rest}
        found = [
            f"{group}={name}" for name, node in yamls.items() if isinstance(node, DictConfig) and rest in _keys(node)
        ]
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return f" It is a key of {', '.join(found[:MOST_NAMED])}{more}." if found else ""


def _with_option(group: str, option: str) -> set[str]:
    return _keys(compose("config", overrides=[f"{group}={option}"], return_hydra_config=True))


def _nearest(key: str, known: Set[str]) -> str:
    """The known key that was meant: of the same last word at another place, else the nearest."""
    ours = key.startswith("hydra")
    others = [k for k in sorted(known) if k.startswith("hydra") == ours and not key.startswith((f"{k}.", f"{k}/"))]
    leaf = [k for k in others if k.split(".")[-1] == key.split(".")[-1]]
    near = difflib.get_close_matches(key, leaf or others, 1, cutoff=0.0 if leaf else 0.5)
    return f" Did you mean {near[0]}?" if near else ""


def _keys(config: DictConfig | ListConfig) -> set[str]:
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
