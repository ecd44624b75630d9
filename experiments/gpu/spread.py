"""Two devices: one model whose layers lie on both, and a run with a process on each."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from btp.engine.attach import attach
from btp.models.loading.load import Loaded
from btp.runner.arms import Arm
from experiments.cost.arms import composed, make_arm
from experiments.gpu.choices import MODEL, SHARE, inputs_on, loaded, loaded_with
from experiments.gpu.setting import Cell, LeftOut, Setting
from experiments.gpu.smoke import run

NEAR = 1e-4  # of the largest logit
STEPS = 4


def cells(setting: Setting) -> Iterator[Cell]:
    """The two ways to use two devices."""
    for pruner in ("btp",) if setting.tiny else ("btp", "fastervlm", "pdrop", "divprune"):
        yield f"layers on both, {pruner}", functools.partial(layers_on_both, setting, pruner)
    yield "a process on each", functools.partial(process_on_each, setting)


def layers_on_both(setting: Setting, pruner: str) -> dict[str, Any]:
    """The embedded model cut in the middle, pruned, beside itself on one device.

    Raises:
        LeftOut: there is one GPU alone.
    """
    first, second = _two(setting)
    one = loaded(setting.device)
    layers = one.host.num_layers
    where = {"model.vision_tower": first, "model.multi_modal_projector": first, "lm_head": second}
    inside = "model.language_model"
    where |= {f"{inside}.embed_tokens": first, f"{inside}.rotary_emb": first, f"{inside}.norm": second}
    where |= {f"{inside}.layers.{i}": first if i < layers // 2 else second for i in range(layers)}
    both = loaded_with(setting.device, device_map=where)
    inputs = inputs_on(one)
    total = int(one.host.visual_mask(inputs)[0].sum())
    arm = make_arm(composed(f"model={MODEL}", f"pruner={pruner}", f"budget.share={SHARE}"), one.host, total)
    alone, shared = answer(one, arm), answer(both, arm)
    error = float((alone - shared).abs().max() / alone.abs().max())
    return {"holds": error < NEAR, "error": error, "devices": f"{first}, {second}"}


def process_on_each(setting: Setting) -> dict[str, Any]:
    """The smoke run with two processes.

    Raises:
        LeftOut: there is one GPU alone.
    """
    _two(setting)
    return run(setting, "two", "trainer.devices=2")


def _two(setting: Setting) -> tuple[Any, Any]:
    """What a device map calls the two; on a CPU it is the host and its disk."""
    if setting.device.type == "cpu":
        return "cpu", "disk"
    if torch.cuda.device_count() < 2:
        raise LeftOut(f"needs two GPUs, and there is {torch.cuda.device_count()}")
    return 0, 1


def answer(model: Loaded, arm: Arm) -> Tensor:
    """[steps, B, vocabulary] logits of an answer, on the CPU."""
    with torch.inference_mode(), attach(model.host, arm.build(), arm.schedule):
        out = model.host.generate(
            **inputs_on(model),
            max_new_tokens=STEPS,
            min_new_tokens=STEPS,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return torch.stack([step.float().cpu() for step in out.logits])
