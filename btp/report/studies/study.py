"""Definition of a study: a question about the runs of a sweep, and the figure and table that answer it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from btp.report.comparison.groups import Entry, Field
from btp.report.comparison.table import ranking
from btp.report.figures.style import Theme
from btp.report.studies.setting_names import title
from btp.report.tables import columns as c
from btp.results.reader import Arm, RunFolder
from btp.tasks.shown import NO_NAME, is_name, short

METRICS = {x.key: x for x in (c.MACRO, c.READING, c.REST, *c.ANSWERS)}
SHARE = c.Column(
    "tokens_share",
    "visual tokens, %",
    "Method",
    "percent",
    "Visual tokens averaged over the layers, of those of the unpruned model.",
)

SLOTS_SHARE = c.Column(
    "slots_share",
    "KV slots, %",
    "Method",
    "percent",
    "Slots of the K/V cache per key head, averaged over the layers, of those of the unpruned model.",
)


@dataclass(frozen=True)
class Study:
    """A study as its experiment's yaml has it.

    Attributes:
        name: Name of the experiment.
        question: one sentence.
        figure: which of the kinds of btp/report/studies answers it.
        options: Options of that kind.
    """

    name: str
    question: str
    figure: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Study:
        """Read a yaml's `study`, its name among the keys.

        Raises:
            ValueError: a key is missing, or the name is none.
        """
        missing = [key for key in ("name", "question", "figure") if not config.get(key)]
        if missing:
            raise ValueError(f"study.{missing[0]} is missing. Write it into the experiment's yaml.")
        if not is_name(config["name"]):
            raise ValueError(f"study.name is {short(str(config['name']))}, {NO_NAME}, since files are called by it.")
        own = {key: value for key, value in config.items() if key not in ("name", "question", "figure")}
        return cls(config["name"], config["question"], config["figure"], own)

    def check(self, known: Sequence[str]) -> None:
        """Refuse options that the figure does not know.

        Raises:
            ValueError: names them.
        """
        unknown = [key for key in self.options if key not in known]
        if unknown:
            raise ValueError(
                f"study.{unknown[0]} has no effect: figure {self.figure!r} takes {', '.join(known) or 'no options'}. "
                "Remove it from the experiment's yaml."
            )


@dataclass(frozen=True)
class Answer:
    """Result of a study: table, columns, sentences, figure.

    Attributes:
        frame: one row per line of the table, numbers unrounded.
        columns: those that the table shows.
        said: findings in words, computed.
        draw: theme -> figure.
    """

    frame: pd.DataFrame
    columns: Sequence[c.Column]
    said: Sequence[str]
    draw: Callable[[Theme], Figure]


def study_rows(fields: Sequence[Field], keys: Sequence[str], study: Study) -> pd.DataFrame:
    """The rows of a comparison with the settings of their runs.

    Controls are left out unless `study.options["controls"]` names them, and then only those with the stages that they
    had beside the method `controls_of`, where that is given.

    Args:
        keys: dotted keys of the config, each a column; `tokens_share` and `slots_share` are there anyway.

    Returns:
        Those of `ranking`, and: entry, tokens_share, slots_share, pruner.name (of the arm), and the keys.

    Raises:
        ValueError: none of the runs is of a method.
    """
    frame = ranking(fields).frame
    entries = {(str(e.run.path), e.arm.arm): e for one in fields for e in one.entries}
    frame = frame.assign(
        entry=[entries[folder, arm] for folder, arm in zip(frame["folder"], frame["arm"], strict=True)]
    )
    frame["tokens_share"] = frame["tokens_avg"] / frame["visual_tokens"]
    whole = frame[frame["role"].eq("baseline")].groupby("field")["slots"].max()
    frame["slots_share"] = frame["slots"] / frame["field"].map(whole)
    controls, of = study.options.get("controls") or (), study.options.get("controls_of")
    named = frame["arm"].isin(list(controls)) & frame["role"].eq("control")
    if of is not None:
        stages = {_stages(arm) for run in runs_of(fields) if run.setting("pruner.name") == of for arm in run.arms}
        named &= frame["entry"].map(lambda entry: _stages(entry.arm) in stages)  # one that runs share stands in one
    frame = frame[frame["role"].isin(["baseline", "method"]) | named].copy()
    if methods(frame).empty:
        raise ValueError("none of the runs is of a method, so there is nothing to compare. Choose one with pruner=...")
    for key in dict.fromkeys(("pruner.name", *keys)):
        if key not in frame:
            frame[key] = [_setting(entry, key) for entry in frame["entry"]]
    return frame.reset_index(drop=True)


def scored(frame: pd.DataFrame, asked: Sequence[str]) -> list[str]:
    """Those of the scores that the runs have: few samples may hold none of an ability.

    Raises:
        ValueError: they have none of them.
    """
    found = [score for score in asked if score in frame and frame[score].notna().any()]
    if not found:
        raise ValueError(f"the runs have no sample that counts for {', '.join(asked)}. Raise limit.")
    return found


def _stages(arm: Arm) -> tuple[str, ...]:
    """An arm and its stages, as a mark."""
    return (arm.arm, *(f"{stage['site']}:{stage.get('keep')}" for stage in arm.schedule or ()))


def _setting(entry: Entry, key: str) -> Any:
    if key == "pruner.name":
        return entry.run.setting(key) if entry.role == "method" else entry.arm.arm
    if entry.role == "baseline" and not key.startswith(("model.", "task.")):
        return None
    return entry.run.setting(key)


def methods(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of methods, without the unpruned model and controls."""
    return frame[frame["role"].eq("method")]


def baseline(frame: pd.DataFrame) -> pd.Series | None:
    """The row of the unpruned model, None where there is none."""
    found = frame[frame["role"].eq("baseline")]
    return found.iloc[0] if len(found) else None


def written(value: Any) -> str:
    """A setting as a command line would have it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def column_of(key: str) -> c.Column:
    """A setting as a column of text."""
    return c.Column(key, title(key), "Setting", "text", f"The run's {key}.")


def metric(key: str) -> c.Column:
    """A quantity by its key; a metric of the task as `metric_AP`; any other is an ability's, by its name."""
    if key.startswith(c.METRIC):
        return c.metric_column(key.removeprefix(c.METRIC))
    return METRICS.get(key) or c.ability_column(key.removeprefix("accuracy_"), 0)


def runs_of(fields: Sequence[Field]) -> list[RunFolder]:
    """All runs of the fields, in order."""
    return [run for one in fields for run in one.runs]
