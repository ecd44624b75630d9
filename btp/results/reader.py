"""Reader of run folders, the only way in which results reach the report.

The files of a run folder: the first three are required, and the report leaves out what a missing other one would show.

- `config.yaml`: the resolved config. Read here: model.name, pruner.name, pruner.schedule, task.name,
  task.reading (abilities that read text in the picture), budget, seed, limit.
- `run.json`: {state: finished | running | failed, identity, name, command, versions: {library: version},
  hardware, started: ISO time, seconds, phases: {name: seconds},
  arms: [{arm, title, role: baseline | method | control, pruner, picture?: full | shrunk | none, note,
  schedule?: [{site, keep}, ...], solver?: what solves them for each sample's own total, keeps being means then,
  budget?: {asked, reached: layer-averaged visual tokens, missed?: they differ by more than 2%},
  moved?: layers by which the budget moved its stages towards the input}],
  inert: {checked, identical, max_logit_difference}, chance?: {ability: score of the best answer that ignores
  the picture}, calibration?: {name, samples, own: the set is the task's own, said: in a sentence},
  unit?: what its tokens are called, where they are not visual tokens, prompt?: {sample, text},
  metrics?: {arm: {all: {metric: value}, by_ability: {ability: {metric: value}}}} on the
  task's own scales, error?: why it failed}. Arms are shown in this order; `schedule` is what was planned for the
  arm, so that a stage that never ran is seen.
- `samples.parquet`: one row per arm and sample: arm, sample, ability, question, reference, prediction,
  score in [0, 1], unpruned (the unpruned model's prediction), agreement (both say the same, or how far: a share),
  kl (nats, the distribution that answers are compared by from the unpruned one), tokens_avg, total (visual tokens
  before any pruning); kl_steps where texts were generated (nats per token, as long as both say the same).
- `trace.parquet`: one row per arm, sample and stage: arm, sample, site, order, before, after, kept (original
  visual indices), and merged where it is known (those of the kept ones that others flowed into).
- `words.json`, of text models: for some samples the pieces of the prompt, and per arm and layer the share of key heads
  that hold each behind it, in percent.
- `steps.parquet`, where a stage acts in decode: one row per arm, sample, step (0 is the prefill) and stage: arm,
  sample, step, site, entered (rows computed in front of it), computed (behind it), revived (of these, tokens that had
  stayed behind), parked (rows that stay behind here), waiting (states held).
- `regions.parquet`: labelled regions of the samples' first pictures, where the task knows any: sample, label,
  target (the answer needs it), x0, y0, x1, y1 in shares of the sides.
- `marks.parquet`: boxes in an arm's answers, where answers are boxes: arm, sample, label, kind (matched with a labelled
  one | wrong: matched with none | missed: a labelled one that none matches), x0, y0, x1, y1 in shares of the sides.
- `events.parquet`, of methods that find events in videos: arm, sample, event, video, first and end (rows of tokens in
  time, end exclusive), key, match (with the question), key_frames, tokens (how many it has behind each stage).
- `layers.json`: {arm: {visual: [mean visual tokens per decoder layer], tokens: [...]}}.
- `cost.json`: {arm: {quantity: number, or {median, p10, p90}, or for a *_ratio {median, low, high}},
  hardware: text}. Quantities are named in btp/report/tables/columns.py; any may be missing or null.
- `calibration.yaml`: {stages: [{layer, site, keep, balance}], curves: {changed: [mean visual tokens that each
  layer changed], attention: [mass on the picture in each layer], tau, samples}, ...}.
- `pictures/<sample>.png`, called as `file_name` makes of its id, and `pictures/index.json`: {sample: {grid: [H, W],
  labels: [...], boxes: [[x0, y0, x1, y1] in shares of the sides], total?, views?}}. Without views, visual token i is
  patch i of the grid, row by row. Otherwise `total` is how many visual tokens the sample has, and views: [{name,
  grid: [H, W], tokens: [visual token of each patch, row by row, -1 where there is none]}] are grids that each cover
  all of the picture: the whole, and the mosaic of its tiles; tokens of none of them (newlines, other pictures) are
  not drawn.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from btp.results import run_folder_schema as shapes
from btp.results.natural_order import natural_order
from btp.results.shapes import read_json, read_yaml
from btp.tasks.files.local import file_name
from btp.tasks.shown import short

UNIT = "visual tokens"  # what a run counts, unless it says otherwise
AGAIN = "Run its command again (finished samples are not computed twice)"
ANEW = f"Delete it. {AGAIN}."


@dataclass(frozen=True)
class Arm:
    """One way in which the samples were answered.

    Attributes:
        arm: key in every file.
        title: name to show.
        role: "baseline" (the unpruned model), "method" or "control".
        pruner: name of the pruner, "none" without one.
        note: what a reader should know about it.
        schedule: planned stages, each with site and keep; None where the run does not say.
        budget: asked and reached layer-averaged visual tokens, and what it took; empty where the run does not say.
        picture: "full", "shrunk" to as many pixels as its visual tokens cover, or "none": the context was left out.
        slots: of the K/V cache per key head, averaged over layers and, where it evicts in decode steps, over these;
            None where the run does not say.
    """

    arm: str
    title: str
    role: str
    pruner: str
    note: str = ""
    schedule: tuple[Mapping[str, Any], ...] | None = None
    budget: Mapping[str, Any] = field(default_factory=dict)
    picture: str = "full"
    slots: float | None = None

    @property
    def evicts(self) -> bool:
        """True where slots of the K/V cache are chosen, alone or behind cuts between layers: its budget counts slots.
        A cut that takes what it withdraws out of the cache as well (keep 0) chooses none.
        """
        return any(s.get("keep") != 0 for s in self._cached) or (bool(self._cached) and not self.cuts)

    @property
    def cuts(self) -> bool:
        """True where a stage takes tokens out between layers, or in front of them."""
        return len(self._cached) < len(self.schedule or ())

    @property
    def _cached(self) -> list[Mapping[str, Any]]:
        """Stages in the K/V cache."""
        return [stage for stage in self.schedule or () if str(stage["site"]).startswith("llm.cache")]

    @property
    def is_downsampled(self) -> bool:
        """True where it sees a shrunk picture."""
        return self.role != "baseline" and (self.picture == "shrunk" or "downsampled" in (self.arm, self.pruner))


@dataclass(frozen=True)
class View:
    """A grid [rows, columns] of patches over all of a picture, with the visual token of each, -1 where there is none;
    tokens is None where they are in order.
    """

    grid: tuple[int, int]
    tokens: tuple[int, ...] | None = None
    name: str = ""

    def token(self, patch: int) -> int:
        """The visual token of a patch, counted row by row; -1 where there is none."""
        return patch if self.tokens is None else self.tokens[patch]

    @property
    def drawn(self) -> frozenset[int]:
        """Visual tokens that have a patch here."""
        rows, columns = self.grid
        return frozenset(range(rows * columns) if self.tokens is None else self.tokens) - {-1}


@dataclass(frozen=True)
class Picture:
    """A sample's picture, the views on which its visual tokens lie, how many tokens there are, and labelled boxes."""

    path: Path
    views: tuple[View, ...]
    total: int
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunFolder:
    """What a run folder holds; the module's docstring says what is in each part."""

    path: Path
    config: Mapping[str, Any]
    run: Mapping[str, Any]
    arms: tuple[Arm, ...]
    samples: pd.DataFrame
    trace: pd.DataFrame
    layers: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    regions: pd.DataFrame = field(default_factory=lambda: _empty(shapes.REGIONS))
    marks: pd.DataFrame = field(default_factory=lambda: _empty(shapes.MARKS))
    words: Mapping[str, Any] = field(default_factory=dict)

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of the config by its dotted key; a number in it counts the entries of a list."""
        value: Any = self.config
        for part in key.split("."):
            if isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            elif isinstance(value, Mapping) and part in value:
                value = value[part]
            else:
                return default
        return value

    @property
    def abilities(self) -> list[str]:
        """Abilities in the order in which the samples show them; lengths and depths by their numbers."""
        return natural_order(self.samples["ability"])

    @property
    def reading(self) -> list[str]:
        """Abilities of this run that read text in the picture, as task.reading says."""
        return [a for a in self.abilities if a in (self.setting("task.reading") or ())]

    def metrics(self, arm: str) -> Mapping[str, float]:
        """What the task itself makes of all of an arm's answers, by metric; empty where it only scores samples."""
        return ((self.run.get("metrics") or {}).get(arm) or {}).get("all") or {}

    @property
    def unit(self) -> str:
        """What this run's model has as tokens that may leave: visual tokens, patches, tubes."""
        return self.run.get("unit") or UNIT

    @property
    def baseline(self) -> Arm | None:
        """The unpruned model."""
        return next((a for a in self.arms if a.role == "baseline"), None)

    @property
    def random(self) -> Arm | None:
        """The control that keeps random visual tokens."""
        return next((a for a in self.arms if a.role == "control" and "random" in (a.arm, a.pruner)), None)

    @property
    def downsampled(self) -> Arm | None:
        """The control that sees a picture of as many pixels as the method's visual tokens cover."""
        return next((a for a in self.arms if a.role == "control" and a.is_downsampled), None)

    @property
    def controls(self) -> list[Arm]:
        """The arms that the methods are held against."""
        return [a for a in self.arms if a.role == "control"]

    @property
    def methods(self) -> list[Arm]:
        """The arms that the run is about."""
        return [a for a in self.arms if a.role == "method"]

    def rows(self, arm: str) -> pd.DataFrame:
        """An arm's samples, indexed by sample."""
        return self.samples[self.samples["arm"] == arm].set_index("sample")


def read_run(folder: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        ValueError: the folder is no run folder, or a file in it is missing, broken or disagrees with another.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise ValueError(_no_run(folder))
    run = read_json(folder / "run.json", shapes.RUN, ANEW)
    config = read_yaml(folder / "config.yaml", shapes.CONFIG, ANEW)
    if (folder / "cost.json").exists() and not (folder / "samples.parquet").exists():
        raise ValueError(
            f"{folder} holds costs, but no answers to report on: its model has no weights, or it was stopped. "
            "Read its cost.json, or run its command with weights."
        )
    samples = read_frame(folder / "samples.parquet", shapes.SAMPLES)
    _check_samples(samples, folder / "samples.parquet")
    listed = _arms(run, config)
    unknown = sorted(set(samples["arm"]) - {a.arm for a in listed})
    if unknown:
        raise ValueError(
            f"{folder / 'samples.parquet'} holds arms that run.json does not list: {', '.join(unknown)}. "
            f"{AGAIN}, so that both are written by the same run."
        )
    trace, regions, marks = (folder / f"{name}.parquet" for name in ("trace", "regions", "marks"))
    layers, cost, calibration = (folder / name for name in ("layers.json", "cost.json", "calibration.yaml"))
    words = folder / "words.json"
    return RunFolder(
        path=folder,
        config=config,
        run=run,
        arms=tuple(a for a in listed if a.arm in set(samples["arm"])),
        samples=samples,
        trace=read_frame(trace, shapes.TRACE) if trace.exists() else _empty(shapes.TRACE),
        layers=read_json(layers, shapes.LAYERS, ANEW) if layers.exists() else {},
        cost=read_json(cost, shapes.COST, ANEW) if cost.exists() else {},
        calibration=read_yaml(calibration, shapes.CALIBRATION, ANEW) if calibration.exists() else None,
        pictures=_pictures(folder / "pictures"),
        regions=read_frame(regions, shapes.REGIONS) if regions.exists() else _empty(shapes.REGIONS),
        marks=read_frame(marks, shapes.MARKS) if marks.exists() else _empty(shapes.MARKS),
        words=read_json(words, shapes.WORDS, ANEW) if words.exists() else {},
    )


def read_costs(folder: Path) -> RunFolder:
    """Read a run that measured costs and answered nothing: its samples are empty.

    Raises:
        ValueError: the folder is no run folder, or a file in it is missing or broken.
    """
    folder = Path(folder)
    run = read_json(folder / "run.json", shapes.RUN, ANEW)
    config = read_yaml(folder / "config.yaml", shapes.CONFIG, ANEW)
    return RunFolder(
        path=folder,
        config=config,
        run=run,
        arms=tuple(_arms(run, config)),
        samples=_empty(shapes.SAMPLES),
        trace=_empty(shapes.TRACE),
        cost=read_json(folder / "cost.json", shapes.COST, ANEW),
    )


def _no_run(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is no run folder: there is no such folder. Name a folder that run.py wrote."
    inside = sorted(p.parent for p in folder.glob("*/run.json"))
    if inside:
        return (
            f"{folder} is no run folder: it holds no run.json, but {len(inside)} of its folders do. "
            f"Name those: {folder}/*, or for example {inside[0]}."
        )
    return f"{folder} is no run folder: it holds no run.json. Name a folder that run.py wrote."


def _empty(columns: Iterable[str]) -> pd.DataFrame:
    return pd.DataFrame(columns=pd.Index(list(columns)))


def read_frame(path: Path, columns: Mapping[str, tuple[str, shapes.Fits]]) -> pd.DataFrame:
    """A table of a run folder.

    Args:
        columns: Columns that it has to have, with what they take.

    Raises:
        ValueError: it is missing, broken, or a cell is of another kind; says which.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: no sample has been answered. {AGAIN}.")
    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # of a corrupt page arrow and pandas raise anything
        raise ValueError(f"{path} cannot be read: {short(error, 200).rstrip('.')}. {ANEW}") from error
    if frame.shape == (0, 0):  # what is written where there was no row to take columns from
        return _empty(columns)
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}. {ANEW}")
    odd = shapes.odd_cell(frame, columns)
    if odd:
        raise ValueError(f"{path} is broken: {odd}. {ANEW}")
    return frame.reset_index(drop=True)


def _check_samples(samples: pd.DataFrame, path: Path) -> None:
    if samples.empty:
        raise ValueError(f"{path} holds no sample. {AGAIN}; see that limit is 1 or more.")
    twice = samples[samples.duplicated(["arm", "sample"])]
    if len(twice):
        arm, sample = twice.iloc[0][["arm", "sample"]]
        raise ValueError(f"{path} holds sample {sample} of arm {arm} more than once. Delete it. {AGAIN}.")
    if not samples["score"].between(0, 1).all():
        bad = samples[~samples["score"].between(0, 1)].iloc[0]
        raise ValueError(
            f"{path} holds the score {bad['score']} (sample {bad['sample']}, arm {bad['arm']}), which is not "
            "in [0, 1]. Correct the task's score()."
        )


def _arms(run: Mapping[str, Any], config: Mapping[str, Any]) -> list[Arm]:
    planned = (config.get("pruner") or {}).get("schedule")
    arms = []
    for entry in run["arms"]:
        role = entry.get("role", "method")
        schedule = entry.get("schedule") or (planned if role == "method" else None)
        if not isinstance(schedule, list) or not all(isinstance(s, Mapping) and "site" in s for s in schedule):
            schedule = None
        arms.append(
            Arm(
                arm=entry["arm"],
                title=entry.get("title") or entry["arm"],
                role=role,
                pruner=entry.get("pruner") or "none",
                note=entry.get("note") or "",
                schedule=None if schedule is None else tuple(schedule),
                budget=_budget(entry),
                picture=entry.get("picture") or "full",
                slots=entry.get("slots"),
            )
        )
    return arms


def _budget(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json says of an arm's budget; `moved` stands beside it or in it."""
    said = dict(entry["budget"]) if isinstance(entry.get("budget"), Mapping) else {}
    return said | ({"moved": entry["moved"]} if entry.get("moved") else {})


def _pictures(folder: Path) -> dict[str, Picture]:
    index, found = folder / "index.json", {}
    if not index.exists():
        return {}
    for sample, entry in read_json(index, shapes.PICTURES, ANEW).items():
        path = folder / f"{file_name(sample)}.png"  # whatever the index says, a file of this folder
        if folder.is_symlink() or path.is_symlink() or not path.is_file():
            raise ValueError(f"{path} is missing, but {index} names it. {AGAIN}.")
        boxes = tuple((float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in entry.get("boxes") or ())
        views = tuple(_view(view, sample, index) for view in entry.get("views") or [entry])
        total = int(entry.get("total") or views[0].grid[0] * views[0].grid[1])
        found[sample] = Picture(path, views, total, boxes, tuple(entry.get("labels") or ()))
    return found


def _view(entry: Mapping[str, Any], sample: str, index: Path) -> View:
    rows, columns = entry["grid"]
    if (tokens := entry.get("tokens")) is not None and len(tokens) != rows * columns:
        found = f"{short(sample, 60)} has {len(tokens)} tokens on a grid of {rows} x {columns}"
        raise ValueError(f"{index} is broken: {found}. {ANEW}")
    return View((rows, columns), None if tokens is None else tuple(tokens), entry.get("name") or "")
