"""The training of a vision model with a pruner on: sparse fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from btp.runner.arms import placeless
from btp.runner.evaluation.visual_totals import visual_count
from btp.runner.evaluation.ways.way import GENERATE, Way
from btp.runner.identity import checkpoint as checkpoint_identity
from btp.runner.identity import digest, model_identity
from btp.runner.plan_arms import plan_arms
from btp.runner.training.find_modules import with_modules
from btp.runner.training.labelled_pictures import HostCourse, Shown, host_loss, targets_of
from btp.runner.training.modules import ANSWER, trainable
from btp.runner.training.train import HOST
from btp.runner.training.vision import LookingTraining


class HostTraining(LookingTraining):
    """Trains the model itself with the run's pruner on, which stays as it is (sparse fine-tuning).

    The pruner decides as at inference and tokens do leave; gradients reach the model through those that stay.
    """

    def _with_what_it_has(self) -> Mapping[str, Any]:
        where = (self.loaded, self.checkpoint, self.store, self.machine)
        return with_modules(self.config, *where, self.pruner) if "weights" in self.pruner else self.pruner

    def _identity(self) -> str:
        method = placeless(self.pruner["method"])
        model = [model_identity(self.config["model"]), self.checkpoint]
        return digest("host", model, method, self.stages, self.config["budget"], *self._learned_from())

    def _refuse(self) -> None:
        if getattr(self.loaded.host, "read", GENERATE) == GENERATE:
            raise ValueError(
                f"training.train is host, but the model {self.config['model']['name']} answers in words. Set "
                "training.train to modules or both; host is for vision models without a language model."
            )

    def _train(self) -> None:
        host, settings = self.loaded.host, self.settings
        way = self._way(host.read)
        shown = self._shown(way)
        total = visual_count(host, shown.draw(0).inputs)
        config = {**self.config, "pruner": self.pruner, "controls": None}
        arms = plan_arms(config, self.loaded, self.checkpoint, self.store, self.work, self.machine, [total])
        arm = next(arm for arm in arms if arm.role == "method")
        if self.machine.leads:
            print(
                f"training {trainable(host.model):,} parameters of {self.config['model']['name']} with "
                f"{self.pruner['name']} on; killed, the same command goes on",
                flush=True,
            )
        pace = self._pace({ANSWER: 1.0}, (ANSWER,))
        before = {name: value.detach().cpu().clone() for name, value in host.model.state_dict().items()}
        common = (self.pruner["name"], self.loaded, host.model, pace, shown, settings["weight_decay"], self._workers)
        try:
            self._fit(HostCourse(arm, way, settings["dense"], *common))
            host.model.requires_grad_(False).eval()
            if self.machine.leads:
                self._save(arm.schedule.to_config(), self._behind(way, shown))
        finally:
            host.model.load_state_dict(before)
            host.model.zero_grad(set_to_none=True)
            host.model.requires_grad_(False).eval()

    def _save(self, stages: list[dict[str, Any]], gap: Mapping[str, float]) -> None:
        host, folder = self.loaded.host, self.folder / HOST
        host.model.save_pretrained(folder)
        self.loaded.processor.save_pretrained(folder)
        identity = checkpoint_identity(folder, [self.config["model"]["config"]])
        about = {"pruner": self.pruner["name"], "digest": identity}
        self._finish(about | self._origin({"checkpoint": identity}, stages, trainable(host.model), gap))

    @torch.no_grad()
    def _behind(self, way: Way, shown: Shown) -> dict[str, float]:
        """Loss of the whole model on samples behind the last step's."""
        host, labels = self.loaded.host, targets_of(way, self.loaded.host.labels)
        found = []
        for i in range(self.settings["gap"]):
            batch = shown.draw(self.settings["steps"] + i).to(host.device, host.dtype)
            found.append(float(host_loss(host, host(**batch.inputs), labels(batch.samples))))
        return {"answer, unpruned": round(sum(found) / len(found), 4)} if found else {}
