"""Trainings by labelled pictures or clips, and one of them: BAViT's token classifier."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import torch
import yaml

from btp.pruners.bavit import SHAPE, BAViT
from btp.pruners.trained_folder import CARD, FORMAT
from btp.results.atomic import write_text
from btp.runner.arms import build_method
from btp.runner.evaluation.visual_totals import visual_count
from btp.runner.evaluation.ways.way import DOES, Way
from btp.runner.evaluation.ways.way_of_task import way_of
from btp.runner.identity import code, digest, pictures
from btp.runner.training.labelled_pictures import ForegroundCourse, Shown, foreground_losses
from btp.runner.training.modules import trainable
from btp.runner.training.train import Training
from btp.schedules.place import place_stages

FOREGROUND = "foreground"
DETECT = "detect"


class LookingTraining(Training):
    """What all of them share: samples by their task's own way of answering."""

    def _placed(self) -> list[dict[str, Any]]:
        layers = len(self.loaded.host.layers)
        return place_stages(self.pruner["schedule"] or [], 0, layers, layers)

    def _learned_from(self) -> list[Any]:
        return [*super()._learned_from(), code(__name__, "btp.runner.training.labelled_pictures")]

    def _shown(self, way: Way) -> Shown:
        settings, machine = self.settings, self.machine
        order = (settings["batch"], settings["seed"], machine.rank, machine.world)
        return Shown(self.loaded, way, *order, self._tested())

    def _way(self, needed: str) -> Way:
        way = way_of(self.data)
        if way.name != needed:
            raise ValueError(
                f"training={self.settings['name']} has samples for a model that {DOES[way.name]}, but "
                f"{self.pruner['name']} learns here from those for one that {DOES[needed]}. Set training to one of "
                "these (training=pocketboxes, training=coco), or pruner.weights=none."
            )
        return way

    def _finish(self, card: Mapping[str, Any]) -> None:
        self._keep_curve()
        write_text(self.folder / CARD, yaml.safe_dump({"format": FORMAT, **card}, sort_keys=False, allow_unicode=True))
        shutil.rmtree(self.work, ignore_errors=True)


class ForegroundTraining(LookingTraining):
    """Trains BAViT's token classifier on labelled boxes; the model is not asked, so that the classifier goes with every
    model that is shown the same pictures.
    """

    def _identity(self) -> str:
        shape = {key: self.pruner["method"][key] for key in (*SHAPE, "seed")}
        return digest("foreground", self._goes_with, shape, *self._learned_from())

    @property
    def _goes_with(self) -> dict[str, Any]:
        return {"pictures": pictures(self.loaded.processor, self.loaded.host.model.config)}

    def _train(self) -> None:
        loaded, settings = self.loaded, self.settings
        pruner = build_method(self.pruner["name"], self.pruner["method"])
        assert isinstance(pruner, BAViT)
        way = self._way(DETECT)
        shown = self._shown(way)
        inputs = shown.draw(0).inputs
        high, wide = inputs["pixel_values"].shape[-2:]
        classifier = pruner.begin((high, wide), visual_count(loaded.host, inputs), loaded.host.hidden_size)
        if self.machine.leads:
            print(
                f"training {trainable(classifier):,} parameters of {self.pruner['name']}; killed, the same command "
                "goes on",
                flush=True,
            )
        pace = self._pace(dict(self.pruner["losses"]), (FOREGROUND,))
        common = (self.pruner["name"], loaded, classifier, pace, shown, settings["weight_decay"], self._workers)
        self._fit(ForegroundCourse(*common))
        classifier.requires_grad_(False).eval()
        if not self.machine.leads:
            return
        gap = self._behind(classifier, shown)
        size = trainable(classifier)
        digest_of = pruner.save(self.folder)
        about = {"pruner": self.pruner["name"], "width": self.loaded.host.hidden_size, "digest": digest_of}
        self._finish(about | self._origin(self._goes_with, self.stages, size, gap))

    @torch.no_grad()
    def _behind(self, classifier: Any, shown: Shown) -> dict[str, float]:
        """Shares on samples behind the last step's."""
        steps, each = self.settings["steps"], []
        device = self.loaded.host.device
        for i in range(self.settings["gap"]):
            each.append(foreground_losses(classifier.to(device), shown.draw(steps + i).to(device)))
        return {k: round(float(sum(e[k] for e in each)) / len(each), 4) for k in each[0]} if each else {}
