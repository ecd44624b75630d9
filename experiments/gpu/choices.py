"""Every method on the embedded model: what it keeps on the device beside the CPU, and how often the host waits."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from btp.engine.attach import attach
from btp.models.loading.load import Loaded, find_checkpoint, load
from btp.runner.arms import Arm
from btp.runner.evaluation.cost import synthetic_inputs
from experiments.cost.arms import all_pruners, composed, make_arm
from experiments.gpu.setting import Cell, LeftOut, Setting

MODEL, WORDS, ROWS, SHARE = "pocket_mini", 16, 2, 0.22
SMALL = ("btp", "divprune", "random")
ALIKE = 0.95  # of the kept tokens; rounding may turn a tie


def cells(setting: Setting) -> Iterator[Cell]:
    """A method."""
    for pruner in SMALL if setting.tiny else all_pruners():
        yield pruner, functools.partial(choice, setting, pruner)


def choice(setting: Setting, pruner: str) -> dict[str, Any]:
    """The share of tokens kept on both, and the host's waits in a prefill beyond those of the unpruned model.

    Raises:
        LeftOut: the method does not apply to this model.
    """
    here, cpu = loaded(setting.device), loaded(torch.device("cpu"))
    inputs = inputs_on(here)
    total = int(here.host.visual_mask(inputs)[0].sum())
    try:
        arm = make_arm(composed(f"model={MODEL}", f"pruner={pruner}", f"budget.share={SHARE}"), here.host, total)
    except ValueError as error:
        raise LeftOut(str(error).splitlines()[0]) from error
    mine, its = kept(here, arm, inputs), kept(cpu, arm, inputs_on(cpu))
    both, either = len(mine & its), len(mine | its)
    waits = host_waits(here, arm, inputs)
    share = both / max(either, 1)
    return {"holds": share >= ALIKE, "kept": len(mine), "same": share, "host_waits": waits}


def kept(model: Loaded, arm: Arm, inputs: Mapping[str, Tensor]) -> set[tuple[str, int, int]]:
    """(site, row, token) of all that stayed at any stage of a prefill."""
    with torch.inference_mode(), attach(model.host, arm.build(), arm.schedule) as trace:
        model.host(**inputs)
    stages = [(str(stage.site), stage.kept) for stage in trace.last.stages]
    return {(site, row, token) for site, rows in stages for row, tokens in enumerate(rows) for token in tokens}


def host_waits(model: Loaded, arm: Arm, inputs: Mapping[str, Tensor]) -> int | None:
    """How often a pruned prefill reads from the device, less those of the unpruned one; None on a CPU."""
    if model.host.device.type != "cuda":
        return None
    with torch.inference_mode():
        plain = _waits(model, inputs)
        with attach(model.host, arm.build(), arm.schedule):
            return _waits(model, inputs) - plain


def _waits(model: Loaded, inputs: Mapping[str, Tensor]) -> int:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            model.host(**inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in seen)


@functools.cache
def loaded(device: torch.device) -> Loaded:
    """The embedded model, once for each device."""
    return loaded_with(device)


def loaded_with(device: torch.device, **changes: Any) -> Loaded:
    """The embedded model.

    Args:
        changes: Keys of the model group that replace its own.
    """
    settings = model_settings() | changes
    return load(settings, find_checkpoint(settings), device)


@functools.cache
def model_settings() -> dict[str, Any]:
    """The model group of the embedded model."""
    return composed(f"model={MODEL}", "pruner=random")["model"]


def inputs_on(model: Loaded) -> dict[str, Tensor]:
    """A batch of noise, the same on every device."""
    return synthetic_inputs(model, ROWS, model_settings()["example"], WORDS)
