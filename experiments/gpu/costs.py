"""The cost table: methods beside the unpruned model on real 7B shapes, as experiments.cost measures it."""

from __future__ import annotations

import functools
import gc
from argparse import Namespace
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch

from experiments.cost import measure
from experiments.gpu.setting import Cell, Setting

MODELS = {
    "llava15": ("btp", "fastv", "divprune", "dart", "fastervlm", "visionzip", "pdrop", "vtw", "random"),
    "llava_next": ("btp", "fastv", "divprune", "random"),
    "qwen25vl": ("btp", "fastv", "divprune", "random"),
}
ROUNDS = "--batch 1 --repeats 6 --warmup 2 --output 10"
SMALL = {"pocket_mini": ("btp", "random")}
FEW = "--batch 1 --repeats 1 --warmup 0 --output 2 --words 8"


def cells(setting: Setting, known: Collection[str]) -> Iterator[Cell]:
    """A method on a model, which is built once for all of them.

    Args:
        known: Names of cells that an earlier start measured.
    """
    for model, pruners in (SMALL if setting.tiny else MODELS).items():
        missing = [pruner for pruner in pruners if f"{model}, {pruner}" not in known]
        runs = _Runs(setting, model, missing)
        for pruner in missing:
            yield f"{model}, {pruner}", functools.partial(runs.measured, pruner)


class _Runs:
    """The cells of one model, one after the other; behind one that failed the model is built anew."""

    def __init__(self, setting: Setting, model: str, pruners: Sequence[str]) -> None:
        self.setting, self.model, self.pruners = setting, model, list(pruners)
        self.run: Iterator[dict[str, Any]] | None = None
        self.found: dict[str, dict[str, Any]] = {}

    def measured(self, pruner: str) -> dict[str, Any]:
        """As a cell of experiments.cost.measure."""
        if self.run is None:
            gc.collect()  # the model before this one, which lies in circles
            torch.cuda.empty_cache()
            rest = self.pruners[self.pruners.index(pruner) :]
            self.run = measure.cells(self._arguments(rest), self.model, self.setting.device, {})
        try:
            while pruner not in self.found:  # one that is refused may come before its turn
                cell = next(self.run)
                self.found[cell["pruner"]] = cell
            return self.found.pop(pruner)
        except BaseException:
            self.run = None
            raise

    def _arguments(self, pruners: Sequence[str]) -> Namespace:
        words = FEW if self.setting.tiny else ROUNDS
        return measure.arguments().parse_args([*words.split(), "--model", self.model, "--pruner", *pruners])
