"""Sources of stages that no yaml holds: a calibration, the result of a search; looked up or made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from btp.models.loading.load import Loaded
from btp.runner.calibration.artifact import write_artifact
from btp.runner.calibration.calibrate import calibrate
from btp.runner.calibration.vflowopt import search_vflowopt, with_strategy
from btp.runner.calibration.vtw import layer_found, search_vtw
from btp.runner.devices import Machine
from btp.runner.training.find_modules import with_modules
from btp.schedules.budget import Budget
from btp.schedules.fit import OutOfReach
from btp.schedules.meet import Facts, budget_of

SEARCH = "search"


@dataclass(frozen=True)
class Finder:
    """Finds calibrations, searches and modules for one run.

    Attributes:
        config: Config of the run, resolved.
        loaded: the model.
        checkpoint: its identity.
        store: Folder of the artifacts that runs share.
        run: the run folder, which gets a copy.
        machine: what it runs on.
        facts: Facts of model and task.
    """

    config: Mapping[str, Any]
    loaded: Loaded
    checkpoint: str
    store: Path
    run: Path
    machine: Machine
    facts: Facts

    def calibrated(self) -> list[dict[str, Any]]:
        """The stages of a calibration.

        Raises:
            ValueError: there is no model to calibrate, or the stages cannot meet the budget.
        """
        self._expect_weights("A calibrated schedule", "Choose schedule=uniform or schedule=paper.")
        where = (self.loaded, self.checkpoint, self.store, self.run, self.machine, self.facts.total)
        budget = budget_of(self.config, self.facts)
        tokens = self.facts.total if budget is None else self._tokens(budget)
        try:
            return calibrate(self.config, *where, tokens)
        except OutOfReach as error:
            if not (self.config["budget"]["nearest"] or self.config["pruner"].get("parts")):
                raise  # the other parts of a composition may reach what these stages cannot alone
            return calibrate(self.config, *where, error.nearest)

    def searched(self, pruner: Mapping[str, Any]) -> Mapping[str, Any]:
        """A pruner's config with what a search found, where it asks for one, and its modules, where it has some.

        Raises:
            ValueError: there is no model or no budget to search with, or no search for this pruner.
        """
        if pruner.get("parts"):
            parts = {name: self._part(name, part) for name, part in pruner["parts"].items()}
            return {**pruner, "parts": parts}
        if pruner.get("layer") == SEARCH:
            self._expect_weights("pruner.layer=search", "Set pruner.layer to a layer.")
            if "search" not in pruner:
                raise ValueError(
                    f"pruner.layer is search, but pruner {pruner['name']!r} has no search. Set pruner.layer to a layer."
                )
            artifact = search_vtw(self.config, self.loaded, self.checkpoint, self.store, self.machine, pruner)
            self._keep(artifact)
            return {**pruner, "layer": layer_found(artifact)}
        if pruner.get("strategy") == SEARCH:
            self._expect_weights("pruner.strategy=search", "Set pruner.strategy=given.")
            artifact = search_vflowopt(
                self.config, self.loaded, self.checkpoint, self.store, self.machine, self.facts, self._budget(), pruner
            )
            self._keep(artifact)
            return with_strategy(pruner, artifact)
        if "weights" in pruner:
            return with_modules(self.config, self.loaded, self.checkpoint, self.store, self.machine, pruner)
        return pruner

    def _part(self, name: str, part: Mapping[str, Any]) -> Mapping[str, Any]:
        if part.get("strategy") == SEARCH:
            raise ValueError(
                f"pruner.parts.{name}.strategy is search, but a search is for a budget that this part has alone. Set "
                f"pruner.parts.{name}.strategy=given."
            )
        return self.searched(part)

    def _budget(self) -> float:
        budget = budget_of(self.config, self.facts)
        if budget is None:
            raise ValueError("pruner.strategy is search, but no budget is set. Set budget.share or budget.tokens.")
        return self._tokens(budget)

    def _tokens(self, budget: Budget) -> float:
        """The budget of a sample with `facts.total` visual tokens; of samples that differ, what they can be asked."""
        if not self.facts.unequal:
            return budget.asked(self.facts.total)
        return self.facts.mean(budget.wanted) / self.facts.mean() * self.facts.total

    def _keep(self, artifact: Mapping[str, Any]) -> None:
        if self.machine.leads:
            write_artifact(self.run / "search.yaml", artifact)

    def _expect_weights(self, what: str, advice: str) -> None:
        if self.config["model"]["weights"] == "random":
            raise ValueError(f"{what} needs a model with weights, but model.weights is random. {advice}")
