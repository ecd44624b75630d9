"""Trains the modules of a pruner for a model, and leaves them in a folder that says where they come from."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from btp.core.schedule import Schedule
from btp.core.trained import Trained
from btp.engine.attach import attach
from btp.engine.training.masking import AIM, SOFT, masking
from btp.models.loading.load import Loaded
from btp.pruners.trained_folder import CARD, read_card, write_weights
from btp.results.atomic import write_text
from btp.results.disk import make_folder
from btp.results.shipped import versions
from btp.runner.arms import build_method
from btp.runner.datasets import make_dataset
from btp.runner.devices import Machine
from btp.runner.evaluation.answer_store import held
from btp.runner.evaluation.task_protocol import draw
from btp.runner.identity import checkpoint as checkpoint_identity
from btp.runner.identity import code, code_of, digest, model_identity
from btp.runner.sources import modules_of
from btp.runner.training.answers import Teach, key_of
from btp.runner.training.course import Course, Pace
from btp.runner.training.distil import LOSS, AttentionTeacher, Distillation, teaching_layers
from btp.runner.training.fit import LOG, fit
from btp.runner.training.modules import ANSWER, ModuleCourse, masked_losses, trainable
from btp.schedules.place import place_stages
from btp.tasks.sample import Local

PACKAGES = ("torch", "transformers", "lightning")
AFTERWARDS = ("noise", "count", "select", "threshold", "background", "floor")  # what a method does with its modules
ASIDE = ("name", "workers", "save", "log")  # settings that change nothing of what is learned
CURVE = "curve.jsonl"
BOTH, HOST = "both", "model"  # a setting, and the folder of the trained model
SAMPLE = (
    "size",
    "samples",
    "abilities",
    "seed",
    "name",
    "threshold",
    "shuffle_seed",
    "earlier",
)  # may differ in one split


class Training:
    """One training, by all that makes it.

    Args:
        config: Config of the run, resolved.
        loaded: the model.
        checkpoint: identity of the model.
        store: Folder of the artifacts that runs share.
        machine: what it runs on.
        pruner: config of the pruner.

    Raises:
        ValueError: the pruner has nothing to train, or settings that do not go together.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        loaded: Loaded,
        checkpoint: str,
        store: Path,
        machine: Machine,
        pruner: Mapping[str, Any],
    ) -> None:
        self.config, self.loaded, self.checkpoint, self.machine = config, loaded, checkpoint, machine
        self.settings, self.pruner, self.store = config["training"], pruner, store
        self._refuse()
        self.pruner = self._with_what_it_has()
        self.stages = self._placed()
        self.data: Any = make_dataset(self.settings["dataset"], "training.dataset")
        if self.settings["batch"] % machine.world:
            raise ValueError(
                f"training.batch is {self.settings['batch']}, which {machine.world} processes cannot share equally. "
                f"Set training.batch to a multiple of trainer.devices."
            )
        self.identity = self._identity()
        self.folder = store / "trained" / self.identity
        self.work = store / "trained" / f"{self.identity}.work"

    def _refuse(self) -> None:
        """Refuse a pruner or samples of which nothing can be learnt."""
        pruner = self.pruner
        if "weights" not in pruner or pruner["schedule"] is None:
            raise ValueError(
                f"pruner {pruner['name']!r} has nothing to train. action=train is for pruners with modules of their "
                "own, whose yaml has `weights`, as lvpruning and atp_llava."
            )

    def _with_what_it_has(self) -> Mapping[str, Any]:
        """The pruner's config, with modules that are there before the training."""
        return self.pruner

    def _placed(self) -> list[dict[str, Any]]:
        """The stages of the pruner on this model's layers."""
        return place_stages(self.pruner["schedule"], self.loaded.host.num_layers)

    def _identity(self) -> str:
        model = [model_identity(self.config["model"]), self.checkpoint]
        method = {k: v for k, v in self.pruner["method"].items() if k not in AFTERWARDS}
        return digest("trained", model, method, self.stages, *self._learned_from())

    def _learned_from(self) -> list[Any]:
        """Settings, samples, losses and sources that make a training what it is."""
        asked = {k: v for k, v in self.settings.items() if k not in ASIDE}
        content = None
        data = self.data
        if isinstance(data, Local):  # names and texts: reading every picture would take hours
            content = _texts(data)
        named = modules_of(self.settings, {"_target_": self.config["model"]["adapter"]})
        sources = code(__name__, "btp.engine.training.masking", *named)
        return [asked, content, self.pruner.get("losses"), code_of(self.pruner["method"]), sources]

    @property
    def finished(self) -> bool:
        """Whether the modules are there."""
        return (self.folder / CARD).is_file()

    def go(self) -> Path:
        """Train, or go on, or find what is finished.

        Returns:
            The folder of the modules.

        Raises:
            ValueError: a loss that is not finite or only grows, data that overlaps with the test; nothing half-written
                stays.
        """
        with self._alone():
            if not self.machine.agree(self.finished and self.config["resume"]):
                if self.machine.leads and not self.config["resume"]:
                    shutil.rmtree(self.work, ignore_errors=True)
                    shutil.rmtree(self.folder, ignore_errors=True)
                self.machine.sync()
                self._train()
            self.machine.sync()
        return self.folder

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self.machine.leads:
            yield
            return
        with held(self.folder.with_suffix(".lock"), f"the modules of {self.pruner['name']}"):
            yield

    def _train(self) -> None:
        decoder = self.loaded.host.decoder
        if self.settings["train"] != BOTH:
            self._train_modules()
            return
        if self.config.get("action") != "train":
            raise ValueError(
                "training.train is both, which makes another model. Train it with action=train, then run with the "
                "model.path and pruner.weights that it names."
            )
        before = {name: value.detach().cpu().clone() for name, value in decoder.state_dict().items()}
        try:
            self._train_modules()
        finally:
            decoder.load_state_dict(before)  # this process may answer with the model that it loaded
            decoder.zero_grad(set_to_none=True)

    def _train_modules(self) -> None:
        settings, loaded = self.settings, self.loaded
        tested = self._tested()
        pruner = build_method(self.pruner["name"], self.pruner["method"])
        if not isinstance(pruner, Trained):
            raise ValueError(f"pruner {self.pruner['name']!r} has `weights` in its yaml, but no modules of its own.")
        schedule = Schedule.from_config(self.stages)
        pruner.check(schedule)
        taught = teaching_layers(settings.get("distil"), self.pruner["name"], pruner, loaded.host.num_layers)
        pruner.begin((stage.site for stage in schedule), loaded.host.hidden_size)
        pace = self._pace(dict(self.pruner["losses"]), (ANSWER, *pruner.loss_names))
        workers = self._workers
        share = (self.machine.rank, self.machine.world)
        order = (settings["batch"], settings["seed"], settings["answer_tokens"])
        teach = Teach(loaded.processor, self.data, *order, *share, tested)
        make_folder(self.work)
        if self.machine.leads:
            size = trainable(pruner.modules)
            print(
                f"training {size:,} parameters of {self.pruner['name']} at "
                f"{', '.join(str(stage.site) for stage in schedule)}; killed, the same command goes on",
                flush=True,
            )
        both = settings["train"] == BOTH
        if taught is not None:
            self._distil(pruner, schedule, teach, taught)
        try:
            with frozen(loaded.host.model), masking(loaded.host, pruner, schedule, SOFT) as masked:
                course = ModuleCourse(
                    self.pruner["name"],
                    loaded.host,
                    pruner,
                    pace,
                    teach,
                    masked,
                    settings["weight_decay"],
                    workers,
                    settings["host_rate"] if both else None,
                )
                self._fit(course)
        finally:
            loaded.host.model.eval()
        pruner.modules.to(self.machine.device).requires_grad_(False).eval()
        if self.machine.leads:
            gap = self._gap(pruner, schedule, teach)
            self._write(pruner, schedule, gap)

    def _distil(self, pruner: Trained, schedule: Schedule, teach: Teach, layers: tuple[int, int]) -> None:
        """Let the modules learn from the model's attention, once it is known that the training behind it can begin."""
        settings, host = self.settings["distil"], self.loaded.host
        with masking(host, pruner, schedule, SOFT) as masked, torch.no_grad():
            masked_losses(host, pruner, masked, teach.draw(0))
        teacher = AttentionTeacher(pruner, schedule, layers)
        warmup = round(self.settings["warmup"] * settings["steps"])
        own = {"steps": settings["steps"], "rate": settings["rate"], "warmup": warmup, "average": None}
        pace = replace(self._pace({LOSS: 1.0}, (LOSS,)), **own)
        host.model.eval()
        with frozen(host.model), attach(host, teacher, teacher.schedule) as trace:

            def forward(inputs: Mapping[str, Any]) -> Tensor:
                trace.calls.clear()
                with torch.no_grad():
                    host(**inputs, use_cache=False)
                return teacher.loss()

            where = (host, pruner, pace, teach, forward, self.settings["weight_decay"], self._workers)
            self._fit(Distillation(f"{self.pruner['name']}, {LOSS}", *where), self.work / LOSS)

    @property
    def _workers(self) -> int:
        asked = self.settings["workers"]
        return self.machine.workers if asked is None else asked

    def _fit(self, course: Course, out: Path | None = None) -> None:
        """Train a course in the work folder or a folder of it; all of that goes where the training cannot go on."""
        machine, settings = self.machine, self.settings
        make_folder(out or self.work)
        device = machine.device
        where: dict[str, Any] = {"device": device.type, "index": device.index if device.type == "cuda" else None}
        try:
            fit(course, out or self.work, **where, keep=settings["save"], every=settings["log"], leads=machine.leads)
        except ValueError:
            if machine.leads:
                shutil.rmtree(self.work, ignore_errors=True)
            raise

    def _pace(self, losses: dict[str, float], known: Sequence[str]) -> Pace:
        settings = self.settings
        for name in losses:
            if name not in known:
                raise ValueError(
                    f"pruner.losses has {name!r}, but {self.pruner['name']} has the losses {', '.join(known)}. Correct "
                    "pruner.losses."
                )
        return Pace(
            steps=settings["steps"],
            batch=settings["batch"],
            rate=settings["rate"],
            losses={name: weight for name, weight in losses.items() if weight},
            warmup=round(settings["warmup"] * settings["steps"]),
            decay=1.0 if settings["curve"] == "cosine" else 0.35,
            curve=settings["curve"],
            average=settings["average"],
            clip=settings["clip"],
        )

    def _tested(self) -> set[str]:
        """Keys of the run's test samples.

        Raises:
            ValueError: training and test are draws of one split.
        """
        ours, tests = self.settings["dataset"], self.config["task"]["dataset"]
        node, other = ({k: v for k, v in d.items() if k not in SAMPLE} for d in (ours, tests))
        same = node == other and ours.get("seed") == tests.get("seed")
        if same or (isinstance(self.data, Local) and node == other):
            raise ValueError(
                f"training.dataset is the test set: both are {ours['_target_']} with the same split. Set "
                "training.dataset.split or training.path to samples that the task does not have."
            )
        return {key_of(sample) for sample in draw(make_dataset(tests), self.config["limit"])}

    def _gap(self, pruner: Trained, schedule: Schedule, teach: Teach) -> dict[str, float]:
        """Loss of the answers where decisions are soft, hard, and where nothing is masked, on samples behind the last
        step's."""
        seen = max(self.settings["steps"], (self.settings.get("distil") or {"steps": 0})["steps"])
        batches = [teach.draw(seen + i) for i in range(self.settings["gap"])]
        pruner.progress, found = 1.0, {}
        torch.manual_seed(pruner.seed)
        with torch.no_grad():
            for how in (SOFT, AIM):
                with masking(self.loaded.host, pruner, schedule, how) as masked:
                    each = [masked_losses(self.loaded.host, pruner, masked, batch) for batch in batches]
                for name in (ANSWER, *(key for key in each[0] if key.startswith("kept"))) if each else ():
                    found[f"{name}, {how}"] = round(float(sum(e[name] for e in each)) / len(each), 4)
            plain = [masked_losses(self.loaded.host, pruner, self._unmasked, batch)[ANSWER] for batch in batches]
        return found | ({"answer, unmasked": round(float(sum(plain)) / len(plain), 4)} if plain else {})

    def _save_host(self) -> str:
        """Identity of the model that the modules go with: the one that was loaded, or what became of it, which is
        saved beside them."""
        if self.settings["train"] != BOTH:
            return self.checkpoint
        folder = self.folder / HOST
        self.loaded.host.model.save_pretrained(folder)
        self.loaded.processor.save_pretrained(folder)
        return checkpoint_identity(folder, [self.config["model"]["config"]])

    def _unmasked(self, inputs: Mapping[str, Any], prompt: Any = None, **more: Any) -> tuple[Any, list]:
        return self.loaded.host.model(**inputs, use_cache=False, **more), []

    def _write(self, pruner: Trained, schedule: Schedule, gap: Mapping[str, float]) -> None:
        self._keep_curve()
        size = trainable(pruner.modules)
        goes_with = {"checkpoint": self._save_host()}
        write_weights(pruner, self.folder, self._origin(goes_with, schedule.to_config(), size, gap))
        shutil.rmtree(self.work, ignore_errors=True)

    def _keep_curve(self) -> None:
        make_folder(self.folder)
        logs = [log for log in (self.work / LOSS / LOG, self.work / LOG) if log.exists()]
        write_text(self.folder / CURVE, "".join(log.read_text(encoding="utf-8") for log in logs))

    def _origin(
        self, goes_with: Mapping[str, Any], stages: list[dict[str, Any]], parameters: int, gap: Mapping[str, float]
    ) -> dict[str, Any]:
        """What the card says of where the weights come from, and what of a model they go with."""
        return {
            "identity": self.identity,
            "host": {"name": self.config["model"]["name"], **goes_with},
            "method": dict(self.pruner["method"] or {}),
            "stages": stages,
            "losses": dict(self.pruner.get("losses") or {}),
            "training": json.loads(json.dumps(dict(self.settings))),
            "parameters": parameters,
            "gap": dict(gap),
            "versions": versions(PACKAGES),
            "made": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        }


def _texts(data: Any) -> str:
    return digest([(s.id, s.question, s.reference) for s in (data[i] for i in range(len(data)))])


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no weight of a model have a gradient, and leave them as they were."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, had in before:
            parameter.requires_grad_(had)


def describe_card(folder: Path) -> str:
    """What a training came to, for the screen."""
    card = read_card(folder)
    modules = [f"modules: {folder} (pruner.weights={folder} names them)"]
    said = modules if any(folder.glob("*.safetensors")) else []
    if (folder / HOST).is_dir():
        goes = ", which they go with" if said else ""
        said.append(f"model: {folder / HOST} (model.path={folder / HOST}){goes}")
    if card.get("gap"):
        said.append("on samples behind the last step: " + ", ".join(f"{k} {v:g}" for k, v in card["gap"].items()))
    return "\n".join(said)
