"""Calibrates a stage schedule on a small set of pictures, and keeps it as an artifact with its origin.

Source: Li et al. 2025, arXiv:2505.22038, section 4.3 and appendix 7.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from btp.core.keep import FIT
from btp.core.schedule import Schedule
from btp.core.signals import Signal
from btp.core.site import Site
from btp.engine.observe import Look, observe
from btp.models.loading.load import Loaded
from btp.results.shapes import TEXT, Shape, either, keys, listed, number, optional, whole
from btp.runner.calibration import artifact as artifacts
from btp.runner.datasets import make_dataset
from btp.runner.devices import Machine
from btp.runner.evaluation.batch_size import BatchSize, Pass
from btp.runner.evaluation.data import Batch, Batches, by_length
from btp.runner.evaluation.model_inputs import model_inputs
from btp.runner.identity import code, digest, model_identity
from btp.runner.sources import modules_of
from btp.schedules.calibrated import calibrated_stages, deepest_first
from btp.schedules.solve import solve_fit

WHAT, ADVICE = (
    "calibration",
    "Set calibration.artifact=null to calibrate anew, or name the calibration.yaml of another run.",
)
_KEEP = either("tokens, a share or fit", number(0), TEXT)
_STAGE = keys(site=TEXT, keep=_KEEP, layer=optional(whole(-1)), balance=optional(number(0, 1)), over=optional(number()))
SHAPE = keys(
    curves=keys(changed=listed(number(0)), attention=listed(number(0)), tau=number(), samples=whole(1)),
    stages=either("a list of stages, or null", Shape("null", lambda value: value is None), listed(_STAGE, 1)),
)


class Calibrate(Pass):
    """Adds up, over samples and layer by layer, how many visual tokens change and how much attention they get.

    Args:
        loaded: model and processor.
        tau: a token has changed where the cosine of a layer's input and output is below it.
        batches: Batches of the calibration set.
        size: Size of the batches.
    """

    def __init__(self, loaded: Loaded, tau: float, batches: Batches, size: BatchSize):
        super().__init__(batches, size)
        self.loaded, self.host, self.tau = loaded, loaded.host, tau
        layers = range(self.host.num_layers)
        self.signals = [Signal("update", Site.parse(f"llm.layer.{i}")) for i in layers]
        self.signals += [Signal("attention", Site.parse(f"llm.layer.{i}"), "last", "probs") for i in layers]
        self.changed = torch.zeros(len(layers), dtype=torch.float64)
        self.attention = torch.zeros(len(layers), dtype=torch.float64)
        self.total, self.samples = 0, 0

    def step(self, batch: Batch) -> None:
        """One prefill; signals are reduced as they come."""
        before = self.changed.clone(), self.attention.clone(), self.total
        try:
            with observe(self.host, self.signals, self._take):
                self.host(**model_inputs(self.loaded, batch))
        except BaseException:
            self.changed, self.attention, self.total = before
            raise
        self.samples += len(batch.samples)

    def _take(self, signal: Signal, value: Tensor, look: Look) -> None:
        layer = signal.site.layer
        if signal.kind == "update":
            before, after = value
            moved = cosine_similarity(before.float(), after.float(), dim=-1) < self.tau
            self.changed[layer] += float((moved & look.valid).sum())
            self.total += sum(look.total) if layer == 0 else 0
        else:
            mass = value.float().masked_fill(~look.valid[:, None, None], 0).sum(-1).mean((1, 2))  # [B]
            self.attention[layer] += float(mass.sum())

    def curves(self) -> dict[str, Any]:
        """Means per sample: tokens changed and attention mass of the last prompt token on the image, per layer."""
        return {
            "changed": [round(v / self.samples, 4) for v in self.changed.tolist()],
            "attention": [round(v / self.samples, 6) for v in self.attention.tolist()],
            "tau": self.tau,
            "samples": self.samples,
            "tokens": round(self.total / self.samples, 3),
        }


def curves_identity(config: Mapping[str, Any], checkpoint: str) -> str:
    """Names the curves: whatever changes them, and nothing that only changes the choice made from them."""
    calibration = {k: v for k, v in config["calibration"].items() if k not in ("artifact", "batch")}
    model = model_identity(config["model"])
    sources = code(__name__, *modules_of(calibration, {"_target_": config["model"]["adapter"]}))
    return digest(model, checkpoint, calibration, config["schedule"]["tau"], sources)


def calibrate(
    config: Mapping[str, Any],
    loaded: Loaded,
    checkpoint: str,
    store: Path,
    run: Path,
    machine: Machine,
    total: int,
    tokens: float,
) -> list[dict[str, Any]]:
    """Find or make the curves, choose the stages, and leave the artifact in the run folder.

    Args:
        checkpoint: identity of the model.
        store: Folder of the curves that runs share.
        run: the run folder; `calibration.yaml` is written there.
        total: visual tokens per sample.
        tokens: the budget: as many of them, averaged over the decoder layers.

    Returns:
        Stages as a schedule's config, every keep still `fit`.

    Raises:
        ValueError: the named artifact is corrupt or was made for another model; no stages meet the budget.
    """
    asked, schedule = config["calibration"]["artifact"], config["schedule"]
    if asked is not None:
        artifact = read_artifact(Path(asked), checkpoint, loaded.host.num_layers)
        stages = named_stages(Path(asked), artifact, loaded.host.num_layers)
    else:
        identity = curves_identity(config, checkpoint)
        path = store / "calibration" / f"{identity}.yaml"

        def make() -> dict[str, Any]:
            return _measure(config, loaded, checkpoint, identity, machine)

        artifacts.find_or_make(path, make, SHAPE, "the calibration", machine, config["resume"])
        artifact = read_artifact(path, checkpoint, loaded.host.num_layers)
        stages = calibrated_stages(
            artifact["curves"]["changed"],
            artifact["curves"]["attention"],
            stages=config["stages"],
            min_gap=schedule["min_gap"],
            balance=schedule["balance"],
            withdraw_last=schedule["withdraw_last"],
            deepest_first=deepest_first(tokens / total, loaded.host.num_layers),
        )
    solved = solve_fit(Schedule.from_config(stages), total, loaded.host.num_layers, tokens)
    listed = [{"layer": stage.site.layer, **stage.to_config()} for stage in solved]
    if machine.leads:
        found = artifact | {"stages": listed, "budget_tokens": tokens, "total": total}
        artifacts.write_artifact(run / "calibration.yaml", found)
    return stages


def _measure(
    config: Mapping[str, Any], loaded: Loaded, checkpoint: str, identity: str, machine: Machine
) -> dict[str, Any]:
    """Run the calibration set once through the unpruned model."""
    task = make_dataset(config["calibration"]["dataset"], "calibration.dataset")
    count = min(len(task), config["calibration"]["samples"])
    samples = [task[i] for i in range(count)]
    size = BatchSize(config["calibration"]["batch"], "calibration.batch")
    with machine.feed(samples, loaded.processor) as feed:
        batches = feed.batches(by_length(samples, loaded.processor), size.asked)
        module = Calibrate(loaded, config["schedule"]["tau"], batches, size)
        machine.trainer("calibrate", batches.total).predict(module, batches, return_predictions=False)
    return {
        **artifacts.origin(config, loaded, checkpoint, identity),
        "curves": module.curves(),
        "stages": None,
        **artifacts.made(),
    }


def read_artifact(path: Path, checkpoint: str, layers: int) -> dict[str, Any]:
    """Read an artifact, and refuse one that is broken or of another model.

    Raises:
        ValueError: says which file, what is wrong and what to do.
    """
    artifact = artifacts.read_artifact(path, WHAT, "calibration.artifact", SHAPE, checkpoint, ADVICE)
    with artifacts.artifact_named(path, WHAT, ADVICE):
        for name in ("changed", "attention"):
            if len(artifact["curves"][name]) != layers:
                raise ValueError(f"curves.{name} has {len(artifact['curves'][name])} layers, the model {layers}")
    return artifact


def named_stages(path: Path, artifact: Mapping[str, Any], layers: int) -> list[dict[str, Any]]:
    """The stages that a named artifact holds, to be solved for the run's own budget.

    Raises:
        ValueError: it holds none, or such as this model has no layers for; says which file.
    """
    with artifacts.artifact_named(path, WHAT, ADVICE):
        if artifact["stages"] is None:
            raise ValueError("stages is null, as in the store: the calibration.yaml of a run has them")
        stages = [{k: v for k, v in stage.items() if k != "layer"} for stage in artifact["stages"]]
        Schedule.from_config(stages).check_sites(layers)
        return [stage | {"keep": stage["keep"] if stage["keep"] == 0 else FIT} for stage in stages]
