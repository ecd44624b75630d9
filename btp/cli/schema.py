"""Schema of the config: the values that every key takes. No torch here.

`btp.cli.values` holds configs and command lines against it. A `*` stands for any key of a mapping or any place of a
list. Keys that only some options of a group have are checked where they are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from btp.cli.value_kinds import (
    CELLS_AT_ONCE,
    CLASSES,
    CONTROL,
    COUNT,
    DEVICES,
    GROUP,
    KEYED,
    LARGEST_SAMPLER_SEED,
    LAYER,
    SEED,
    STAGES,
    SWITCH,
    TEXT,
    TEXTS,
    Kind,
    choice,
    is_counts,
    is_text,
    is_whole,
    maybe,
    number,
    whole,
)

CHOSEN = ("model", "pruner", "calibration", "schedule", "task", "trainer", "logger")  # groups that every run has

_SHARE = number(0, 1)

_RUN = {
    **dict.fromkeys(CHOSEN, GROUP),
    "budget": GROUP,
    "cost": GROUP,
    "controls": maybe(KEYED),
    "stages": whole(1, why="A calibrated or uniform schedule needs 1 stage or more."),
    "limit": maybe(whole(1, why="No samples are left to run.")),
    "tasks": Kind(
        "names of lmms-eval's tasks, as [gqa,mme], or to null",
        lambda value: value is None or is_text(value) or (isinstance(value, list | tuple) and all(map(is_text, value))),
    ),
    "seed": SEED,
    "overlays": whole(0),
    "output": Kind("a folder", is_text),
    "resume": SWITCH,
    "cache": SWITCH,
    "cache_gib": number(0, above=True, unit="of GiB ", why="cache=off keeps none."),
    "debug": SWITCH,
    "study": maybe(KEYED),
    "budget.tokens": maybe(number(0, above=True)),
    "budget.share": maybe(
        number(0, 1, above=True, why="It is the share of visual tokens that stays on average over the layers.")
    ),
    "budget.slots": maybe(number(1, why="It is a number of slots of the K/V cache.")),
    "budget.move": SWITCH,
    "budget.nearest": SWITCH,
    "cost.enabled": SWITCH,
    "cost.measure": choice("auto", True, False),
    "cost.repeats": whole(2),
    "cost.warmup": whole(0),
    "cost.batch": COUNT,
    "cost.output_tokens": whole(2),
    "trainer.accelerator": choice("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.devices": DEVICES,
    "trainer.batch": COUNT,
    "trainer.threads": maybe(whole(1, 1024)),
    "trainer.workers": maybe(whole(0, 256)),
}

_GROUPS = {
    "model.name": TEXT,
    "model.path": maybe(TEXT),
    "model.hub": maybe(TEXT),
    "model.revision": maybe(TEXT),
    "model.weights": choice("pretrained", "random"),
    "model.adapter": TEXT,
    "model.config": maybe(KEYED),
    "model.chat": SWITCH,
    "model.processor": KEYED,
    "model.example": KEYED,
    "model.example.*": COUNT,
    "model.dtype": choice("float32", "bfloat16", "float16", "float64"),
    "model.attention": choice("sdpa", "eager", "flash_attention_2"),
    "model.device_map": Kind(
        "auto, to {module: device}, or to null", lambda value: value is None or is_text(value) or KEYED.holds(value)
    ),
    "model.quantize": choice(None, "8bit", "4bit", "torchao_int8"),
    "model.trust_remote_code": SWITCH,
    "model.download": SWITCH,
    "schedule.kind": choice("auto", "calibrated", "uniform", "paper"),
    "schedule.tau": number(-1, 1, why="It is a cosine."),
    "schedule.min_gap": COUNT,
    "schedule.balance": maybe(KEYED),
    "schedule.balance.*": number(0, 1),
    "schedule.withdraw_last": SWITCH,
    "schedule.model": TEXT,
    "schedule.setting": Kind(
        "the name of a published setting, or to null",
        lambda value: value is None or is_text(value) or is_whole(value),
    ),
    "schedule.tokens": KEYED,
    "schedule.tokens.*": COUNT,
    "calibration.name": TEXT,
    "calibration.artifact": maybe(TEXT),
    "calibration.path": TEXT,
    "calibration.samples": whole(1, why="There is nothing to calibrate on."),
    "calibration.batch": COUNT,
    "action": choice("run", "train"),
    "training": GROUP,
    "training.name": TEXT,
    "training.path": TEXT,
    "training.steps": COUNT,
    "training.batch": COUNT,
    "training.rate": number(0, above=True),
    "training.host_rate": number(0, above=True),
    "training.train": choice("modules", "both", "host"),
    "training.dense": number(0, 1),
    "training.warmup": number(0, 1, why="It is a share of the steps."),
    "training.curve": choice("cosine", "linear"),
    "training.weight_decay": number(0),
    "training.clip": number(0, above=True),
    "training.average": maybe(number(0, 1)),
    "training.seed": SEED,
    "training.samples": maybe(COUNT),
    "training.answer_tokens": whole(2),
    "training.distil": GROUP,
    "training.distil.steps": whole(0),
    "training.distil.rate": number(0, above=True),
    "training.distil.layers": Kind(
        "two numbers between 0 and 1",
        lambda value: isinstance(value, list | tuple) and list(map(_SHARE.holds, value)) == [True] * 2,
    ),
    "training.gap": whole(0),
    "training.save": COUNT,
    "training.log": COUNT,
    "training.workers": maybe(whole(0, 256)),
    "task.name": TEXT,
    "task.path": TEXT,
    "task.reading": TEXTS,
    "logger.name": TEXT,
    "logger.tracker": TEXT,
    "logger.file": TEXT,
    "logger.mode": choice("offline", "online"),
    "logger.project": TEXT,
    "logger.entity": maybe(TEXT),
    "logger.group": maybe(TEXT),
    "logger.tags": TEXTS,
    "logger.wait_s": number(0, above=True, unit="of seconds "),
    "logger.upload_s": number(0, above=True, unit="of seconds "),
}

_DATASET = {
    "_target_": TEXT,
    "name": TEXT,
    "metric": TEXT,
    "max_new_tokens": COUNT,
    "suffix": maybe(Kind("a text", lambda value: isinstance(value, str))),
    "shuffle_seed": maybe(SEED),
    "split": TEXT,
    "seed": SEED,
    "size": whole(1, 2**31 - 1),
    "samples": COUNT,
    "abilities": maybe(TEXTS),
    "datasets": maybe(TEXTS),
    "tasks": maybe(TEXTS),
    "longest": maybe(whole(2)),
    "chat": SWITCH,
    "depths": Kind(
        "a list of percents from 0 to 100, as [0,50,100]",
        lambda value: isinstance(value, list | tuple) and all(number(0, 100).holds(n) for n in value),
    ),
    "repeats": COUNT,
    "needle": TEXT,
    "question": TEXT,
    "answer": TEXT,
    "examples": maybe(TEXT),
    "shots": whole(0),
    "lengths": Kind("a list of whole numbers from 1 on, as [256,512]", is_counts),
    "include_path": maybe(TEXT),
    "num_fewshot": maybe(whole(0)),
    "prompts": maybe(TEXT),
    "generation": maybe(KEYED),
    "reader": KEYED,
    "reader._target_": TEXT,
    "reader.path": TEXT,
    "reader.split": TEXT,
    "reader.questions": TEXT,
    "reader.images": maybe(TEXT),
    "reader.parts": TEXTS,
    "reader.subsets": TEXTS,
    "reader.categories": maybe(TEXTS),
    "reader.table": TEXT,
    "reader.ability": TEXT,
    "reader.only_pictures": SWITCH,
    "reader.columns": KEYED,
    "reader.question": TEXT,
    "reader.conversations": TEXT,
    "reader.annotations": maybe(TEXT),
    "reader.listed": TEXT,
    "reader.videos": maybe(TEXT),
    "reader.frames": COUNT,
    "reader.stride": maybe(COUNT),
    "reader.clips": COUNT,
    "reader.crops": COUNT,
    "threshold": number(0, 1, above=True, why="A box counts as found from this score on."),
    "classes": CLASSES,
    "reader.key": TEXT,
    "key": TEXT,
}

_PRUNER = {
    "name": TEXT,
    "tower": choice("vision"),
    "picture": choice("full", "shrunk", "none"),
    "layer": LAYER,
    "strategy": choice("search", "given"),
    "weights": Kind("auto, to none, or to a folder of trained modules", is_text),
    "losses": KEYED,
    "losses.*": number(0),
    "method": maybe(KEYED),
    "slots": maybe(KEYED),
    "schedule": STAGES,
    "published": maybe(KEYED),
    "parts": maybe(KEYED),
    "search": KEYED,
    "search.kind": TEXT,
    "search.artifact": maybe(TEXT),
    "search.samples": COUNT,
    "search.eta": number(0, above=True),
    "search.first": whole(0),
    "search.direction": choice("withdrawn", "full"),
    "search.startup": COUNT,
    "search.evaluations": whole(0),
    "search.seed": whole(0, LARGEST_SAMPLER_SEED),
    "search.optimiser": choice("gp", "tpe"),
    "search.space": KEYED,
    "search.space.*": Kind(
        "two numbers, the lower first, as [0.5,1]",
        lambda value: (
            isinstance(value, list | tuple)
            and len(value) == 2
            and all(number(-math.inf).holds(n) for n in value)
            and value[0] <= value[1]
        ),
    ),
}

_HYDRA = {
    "hydra.sweep.dir": Kind("a folder", is_text),
    "hydra.sweeper.n_trials": COUNT,
    "hydra.sweeper.n_jobs": COUNT,
    "hydra.sweeper.maximize": TEXTS,
    "hydra.sweeper.minimize": TEXTS,
    "hydra.sweeper.sampler": TEXT,
    "hydra.sweeper.seed": whole(0, LARGEST_SAMPLER_SEED),
    "hydra.sweeper.storage": maybe(TEXT),
    "hydra.sweeper.study_name": maybe(TEXT),
    "hydra.sweeper.max_batch_size": maybe(COUNT),
    "hydra.launcher.n_jobs": CELLS_AT_ONCE,
    "hydra.launcher.timeout_min": COUNT,
    "hydra.launcher.max_num_timeout": whole(0),
    "hydra.launcher.nodes": COUNT,
    "hydra.launcher.tasks_per_node": COUNT,
    "hydra.launcher.cpus_per_task": maybe(COUNT),
    "hydra.launcher.mem_gb": maybe(number(0, above=True, unit="of GB ")),
    "hydra.launcher.array_parallelism": COUNT,
}

_NODES = {f"{group}.dataset": KEYED for group in ("task", "calibration", "training")}
_NODES |= {"pruner.parts.*": KEYED, "controls.*": CONTROL}


def _below(place: str, kinds: Mapping[str, Kind]) -> dict[str, Kind]:
    return {f"{place}.{key}": kind for key, kind in kinds.items()}


KEYS: Mapping[str, Kind] = {
    **_RUN,
    **_GROUPS,
    **_NODES,
    **_below("task.dataset", _DATASET),
    **_below("calibration.dataset", _DATASET),
    **_below("training.dataset", _DATASET),
    **_below("pruner", _PRUNER),
    **_below("pruner.parts.*", _PRUNER),
    **_below("controls.*", _PRUNER),
    **_HYDRA,
}
NEEDED = tuple(key for key in _RUN if key != "controls")  # keys that every run has, whatever its groups


def kind_of(key: str) -> Kind | None:
    """What a key takes; None where nothing is declared for it."""
    return next((kind for pattern, kind in KEYS.items() if fits(pattern, key)), None)


def fits(pattern: str, key: str) -> bool:
    """Whether a dotted key is one of those that a key of the table stands for."""
    asked, given = pattern.split("."), key.split(".")
    return len(asked) == len(given) and all(a in ("*", g) for a, g in zip(asked, given, strict=True))
