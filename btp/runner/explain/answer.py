"""Explains one sample of a finished run: answers it again, with the pruner's reasons, and unpruned."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from btp.core.host import PROMPT_TOKENS
from btp.core.pruner import Pruner
from btp.core.schedule import Schedule
from btp.core.trace import Call
from btp.engine.attach import attach
from btp.models.loading.checkpoint import find_checkpoint
from btp.models.loading.load import Loaded, load
from btp.models.video.clip_features import clip_layout
from btp.report.figures.token_overlays import stage_views
from btp.report.pages.explain_data import Life, Said, numbered
from btp.report.pages.explain_held import HeldLayer
from btp.results.reader import ANEW, UNIT, RunFolder, View, read_run
from btp.results.shapes import ANYTHING, NAMED, keys, mapped, number, optional, read_yaml, whole
from btp.results.status import UNPRUNED
from btp.runner.arms import Arm
from btp.runner.calibration.search_artifact import found_settings
from btp.runner.calibration.sources import SEARCH
from btp.runner.datasets import make_dataset, with_contents
from btp.runner.devices import Machine
from btp.runner.evaluation.data import shrink
from btp.runner.evaluation.model_inputs import model_inputs
from btp.runner.evaluation.oracle_targets import aim
from btp.runner.evaluation.prompts.shorten import shortened
from btp.runner.evaluation.task_protocol import OwnWay, draw
from btp.runner.evaluation.ways.evaluation_loop import happened
from btp.runner.evaluation.ways.way import Row, Way
from btp.runner.evaluation.ways.way_of_task import way_of
from btp.runner.explain.kept_words import pieces
from btp.runner.explain.layers import against_run, held_layers, step_lives
from btp.runner.explain.recording_pruner import Witness
from btp.runner.explain.stages import stage_lives
from btp.runner.identity import model_checkpoint
from btp.runner.pruner_lists import method_of
from btp.runner.run_identity import run_identity
from btp.runner.targets import TARGET, foreign
from btp.runner.training.find_modules import with_modules
from btp.schedules.published import with_published
from btp.schedules.serialize import restored
from btp.tasks.files.local import file_name, id_hash
from btp.tasks.sample import Sample, Task

HARNESSES = ("btp.runner.lmms_eval.task.LMMSEvalTask", "btp.runner.lm_eval.task.LMEvalTask")
LIKELY = 3  # first answer tokens shown
CONFIG = keys(  # what is read of a config here; what lies deeper is for the part that it is of
    model=keys(name=ANYTHING),
    task=keys(name=ANYTHING, dataset=NAMED),
    trainer=keys(accelerator=ANYTHING),
    pruner=keys(name=ANYTHING),
    controls=optional(mapped(keys(method=ANYTHING))),
    limit=optional(whole(1)),
)


@dataclass(frozen=True)
class Answer:
    """One answer to the sample.

    Attributes:
        row: what the run's row would hold of it.
        first: [V], or [..., V] log-probabilities that answers are compared by, such as those of the first token.
        call: what the engine did.
        inputs: Inputs of the model; of videos also how they were packed.
    """

    row: Row
    first: Tensor
    call: Call
    inputs: Mapping[str, Tensor]


def explain(folder: Path, sample: str, arm: str | None = None, trust: bool = False) -> Life:
    """Explanation of one sample under one arm of a run, stage by stage.

    Args:
        folder: Folder of the run.
        sample: its id, or the number that it ends in.
        arm: name of the arm; None takes the run's method.
        trust: run code that the run's config.yaml names outside of this project.

    Raises:
        ValueError: no such run, sample or arm, nothing to explain, a checkpoint or files that are gone, or a config
            that names code of others without `trust`.
    """
    run = read_run(folder)
    read_yaml(run.path / "config.yaml", CONFIG, ANEW)
    _refuse_harness(run.config["task"]["dataset"].get(TARGET) in HARNESSES, folder)
    if not trust:
        _refuse_foreign(run.config, folder)
    chosen, sample = _chosen(run, arm), _sample_of(run, sample)
    config = run.config
    task: Task = make_dataset(config["task"]["dataset"])
    asked = find_sample(task, config["limit"], sample, folder, run.unit)
    where = find_checkpoint(config["model"])
    accelerator = "cpu" if config["trainer"]["accelerator"] == "cpu" else "auto"
    machine = Machine({**config["trainer"], "devices": 1, "workers": 0, "accelerator": accelerator}, run.path)
    loaded = load(config["model"], where, machine.device)
    way = way_of(task)
    (asked,) = shortened(task, [asked], loaded)
    chosen = _with_modules(run, chosen, loaded, where, machine)
    plain = _answer(way, loaded, None, Schedule(), asked)
    total = plain.call.total[0]
    share = chosen.schedule[0].count(total) / total if chosen.picture == "shrunk" else 1.0
    pruner = chosen.build()
    witness = None if pruner is None else Witness(pruner)
    pruned = _answer(way, loaded, witness, chosen.schedule, asked, share)
    recorded = {stage.site: stage.kept for stage in stage_views(run, chosen.name, sample)}
    stages = stage_lives(loaded.host, pruned.inputs, pruned.call, chosen.schedule, witness, recorded)
    rows = run.samples[run.samples["sample"] == sample].set_index("arm")
    row = rows.loc[chosen.name]
    both = ((plain, UNPRUNED), (pruned, chosen.name))
    unpruned, with_stages = (_said(way, loaded, answer, rows, name) for answer, name in both)
    events = getattr(pruner, "events", None)
    text = run.unit == PROMPT_TOKENS
    picture, places = (None, {}) if text else _picture(way, loaded, asked, events[0] if events else None, share)
    words = pieces(loaded.processor.tokenizer, pruned.inputs["input_ids"][0].tolist()) if text else []
    life = Life(
        run=run.path.name,
        command=str(run.run.get("command", "")),
        model=config["model"]["name"],
        task=config["task"]["name"],
        arm=chosen.name.replace("_", " "),
        pruner=pruner.name if pruner is not None else "none",
        sample=sample,
        ability=str(row["ability"]),
        question=asked.bare_question.strip() or asked.question or way.asks,
        reference=asked.reference,
        picture=picture,
        pictures=len(asked.images) + len(asked.clips) if loaded.host.decoder is not None else 1,
        boxes=tuple(map(tuple, places.get("boxes", asked.boxes))),  # type: ignore[arg-type]
        labels=asked.labels,
        targets=asked.targets,
        views=_views(places),
        total=total,
        unpruned=unpruned,
        pruned=with_stages,
        others=_others(run, rows, (UNPRUNED, chosen.name)),
        stages=stages,
        layers=tuple(layer[0] for layer in pruned.call.visual),
        kl=float((plain.first.exp() * (plain.first - pruned.first)).nansum(-1).mean()),
        unit=loaded.host.unit,
        words=tuple(words),
        held=_held(loaded, pruned, witness, text),
        steps=step_lives(pruned.call),
        checks=against_run(run, chosen.name, sample, happened(pruned.call, 0)),
        weighs=way.weighs,
        marks=(tuple(way.marks([asked], {sample: plain.row})), tuple(way.marks([asked], {sample: pruned.row}))),
    )
    said = _notes(run, where, asked, row, (unpruned, with_stages), life.same)
    return replace(life, notes=(*_of_views(getattr(task, "views", 1)), *said))


def _held(loaded: Loaded, answer: Answer, witness: Witness | None, text: bool) -> tuple[HeldLayer, ...]:
    """Of a text all layers that lack some of it, of pictures those whose caches lost slots."""
    if not text and not answer.call.evicted:
        return ()
    visual = loaded.host.layout(answer.inputs).visual[0]
    return held_layers(answer.call, visual, {} if witness is None else witness.ranked, text)


def _picture(
    way: Way, loaded: Loaded, sample: Sample, events: Any, share: float
) -> tuple[Image.Image, Mapping[str, Any]]:
    """The first picture as the model saw it, and where its tokens lie."""
    found, places = way.picture(loaded, sample, {"events": events} if events else None) or (sample.images[0], {})
    picture = found.convert("RGB")
    return (picture if share == 1 else shrink(picture, share)), places


def find_sample(task: Task, limit: int | None, sample: str, folder: Path, unit: str = UNIT) -> Sample:
    """The task's sample of this id.

    Args:
        unit: what the run's model has as tokens that may leave; of prompt tokens it has without a picture.

    Raises:
        ValueError: another harness owns it, the task does not have it any more, or it shows no picture.
    """
    _refuse_harness(isinstance(task, OwnWay), folder)
    found = next((s for s in draw(task, limit) if s.id == sample), None)
    if found is None:
        raise ValueError(
            f"sample {sample!r} is in {folder}, but its task does not have it any more: the files it was read from "
            "were changed. Restore them, or run the command of the run again."
        )
    if unit != PROMPT_TOKENS and not len(found.images) and not found.clips:
        raise ValueError(
            f"sample {sample!r} shows no picture, so that no stage has a visual token to decide about. Choose another."
        )
    return found


def _refuse_harness(other: bool, folder: Path) -> None:
    if other:
        raise ValueError(
            f"{folder} was answered through lmms-eval or lm-eval, whose prompts are their own. Explain a sample "
            "of a run with one of btp's own tasks, such as task=vqa_folder."
        )


def _refuse_foreign(config: Mapping[str, Any], folder: Path) -> None:
    """Run no code that a run folder chooses: it may be somebody else's."""
    named = foreign(config)
    if named is not None:
        raise ValueError(
            f"in {folder / 'config.yaml'} {named}, which is code from outside btp, and explaining the run would "
            "execute it. If the run is yours, or you trust who made it, add --trust."
        )


def method_config(run: RunFolder, arm: str, role: str) -> Mapping[str, Any] | None:
    """The `method` node that an arm ran with: the yaml's, with published settings or what a search found.

    Raises:
        ValueError: a search's artifact is gone from the run folder.
    """
    if role == "baseline":
        return None
    if role == "control":
        return run.config["controls"][arm]["method"]
    pruner = with_published(run.config)["pruner"]
    if pruner.get("strategy") == SEARCH:
        artifact = run.path / "search.yaml"
        if not artifact.is_file():
            raise ValueError(f"{artifact} is missing, with what the search of this run found. Run its command again.")
        settings = {name: optional(number()) for name in pruner["method"] if not name.startswith("_")}
        found = read_yaml(artifact, keys(method=keys(True, **settings)), "Run the command of the run again.")
        pruner = {**pruner, "method": {**pruner["method"], **found_settings(found, pruner["method"], str(artifact))}}
    return method_of(pruner)


def _chosen(run: RunFolder, arm: str | None) -> Arm:
    """The arm to explain, as it ran."""
    listed = {entry["arm"]: entry for entry in run.run["arms"]}
    staged = [name for name, entry in listed.items() if entry.get("schedule")]
    methods = [name for name in staged if listed[name].get("role") == "method"]
    if not staged:
        raise ValueError(f"No arm of {run.path} has a stage, so there is nothing to explain. Run a pruner: pruner=btp.")
    name = arm if arm is not None else (methods or staged)[0]
    if name not in staged:
        what = "has no stage, so there is nothing to explain" if name in listed else f"is no arm of {run.path}"
        raise ValueError(f"--arm is {name!r}, which {what}. Choose from: {', '.join(staged)}.")
    entry = listed[name]
    node, schedule = method_config(run, name, entry["role"]), restored(entry)
    return Arm(name, entry["role"], node, schedule, entry.get("picture", "full"))


def _with_modules(run: RunFolder, arm: Arm, loaded: Loaded, where: Path | None, machine: Machine) -> Arm:
    """The arm with the trained modules that it ran with, where its pruner has some."""
    pruner = run.config["pruner"] if arm.role == "method" else (run.config.get("controls") or {}).get(arm.name, {})
    if "weights" not in pruner:
        return arm
    checkpoint = model_checkpoint(run.config["model"], where)
    found = with_modules(run.config, loaded, checkpoint, run.path.parent / ".store", machine, pruner, train=False)
    return replace(arm, method=found["method"])


def _sample_of(run: RunFolder, sample: str) -> str:
    """Its id, from the id as the run or the table has it, or the number that the id ends in."""
    known = list(dict.fromkeys(run.samples["sample"]))
    names = (sample, file_name(sample), f"{file_name(sample)}-{id_hash(sample)}")
    found = next((name for name in names if name in known), numbered(known).get(sample.lstrip("0") or "0"))
    if found is None:
        near = difflib.get_close_matches(sample, known, 3, 0.3) or known[:3]
        raise ValueError(f"{run.path} holds no sample {sample!r}. The nearest of its {len(known)}: {', '.join(near)}.")
    return found


def _answer(
    way: Way, loaded: Loaded, pruner: Pruner | None, schedule: Schedule, sample: Sample, share: float = 1.0
) -> Answer:
    """Answer the sample alone, as a run does in a batch."""
    host = loaded.host
    batch = way.collate_once(loaded.processor)([sample], shares=() if share == 1 else [share])
    aim(pruner, [sample], batch.clips)
    with torch.inference_mode(), attach(host, pruner, schedule) as trace:
        inputs = model_inputs(loaded, batch)
        row, first = way.once(loaded, inputs, sample)
    shown = clip_layout(host, loaded.processor, sample.clips) if sample.clips else {}
    return Answer(row, first.cpu(), trace[0], inputs | shown)


def _said(way: Way, loaded: Loaded, answer: Answer, rows: Any, arm: str) -> Said:
    first = tuple(way.likely(loaded, answer.first, LIKELY))
    recorded = str(rows.loc[arm, "prediction"])
    return Said(str(answer.row["prediction"]), first, recorded, float(rows.loc[arm, "score"]))


def _others(run: RunFolder, rows: Any, shown: Sequence[str]) -> tuple[tuple[str, str, float], ...]:
    rest = [arm for arm in run.arms if arm.arm not in shown and arm.arm in rows.index]
    return tuple((a.title, str(rows.loc[a.arm, "prediction"]), float(rows.loc[a.arm, "score"])) for a in rest)


def _views(found: Mapping[str, Any]) -> tuple[View, ...]:
    """Where the first picture's visual tokens lie on it, from what `describe_views` says."""
    if not found:
        return ()
    listed = found.get("views") or [found]
    return tuple(
        View(tuple(v["grid"]), tuple(v["tokens"]) if "tokens" in v else None, v.get("name", "")) for v in listed
    )


def _of_views(views: int) -> tuple[str, ...]:
    said = f"The run's answer is of {views} views of the clip, the one here of the middle view alone."
    return (said,) if views > 1 else ()


def _notes(
    run: RunFolder, where: Path | None, sample: Sample, row: Mapping[str, Any], said: Sequence[Said], same: bool
) -> tuple[str, ...]:
    notes = []
    if sample.question != row["question"]:
        notes.append("The task asks another question under this id than in the run: its files were changed.")
    if not same:
        notes.append("Not all stages kept the tokens that they kept in the run; each says how.")
    if not all(one.same for one in said):
        notes.append("An answer is not the run's; what the run says stands beside it.")
    if notes:
        changed = _changed(run, where)
        notes.append(
            "Code, checkpoint or files are not those of the run any more (run.json: identity)."
            if changed
            else "Code and checkpoint are the run's. It answered in batches, on its own device, whose rounding may "
            "decide between tokens of nearly the same score."
        )
    return tuple(notes)


def _changed(run: RunFolder, where: Path | None) -> bool:
    """Whether the run would get another identity today."""
    try:
        config = with_contents(run.config)
        return run_identity(config, model_checkpoint(config["model"], where)) != run.run.get("identity")
    except KeyError:  # a config of an older release
        return True
