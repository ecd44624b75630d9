"""Forecast of costs by formula and of the time of measuring, for models without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from btp.core.schedule import Schedule
from btp.measure.architecture import Architecture, architecture
from btp.measure.duration_estimate import seconds_of_rounds, times, try_speed
from btp.measure.planned import planned_costs
from btp.measure.roofline import Times
from btp.models.loading.weight_memory import GIB, free_bytes, model_bytes
from btp.models.lvlm import LVLM
from btp.results.atomic import write_json
from btp.results.status import UNPRUNED
from btp.runner.arms import Arm
from btp.runner.evaluation.cost import cost_table, hardware_line, segments_of

CHEAP_S = 120  # seconds up to which cost.measure=auto measures on a CPU


@dataclass(frozen=True)
class Forecast:
    """Estimated time and memory of a measurement.

    Attributes:
        seconds: Seconds of all arms together, weights not made yet.
        bytes: Bytes of weights, cache and activations.
        free: bytes that the device has; None where it does not say.
    """

    seconds: float
    bytes: int
    free: int | None

    def cheap(self, device: torch.device) -> bool:
        """Whether it may be measured without being asked: a GPU, or a model that is small for this CPU."""
        return device.type == "cuda" or (self.seconds <= CHEAP_S and (self.free is None or self.bytes <= self.free))

    def describe(self) -> dict[str, float]:
        """As run.json has it."""
        return {"seconds": round(self.seconds, 1), "gib": round(self.bytes / GIB, 2)}

    def said(self, arms: int, device: torch.device) -> str:
        """For the screen."""
        free = "" if self.free is None else f" ({self.free / GIB:.1f} GiB are free)"
        return (
            f"measuring {arms} arms on {'the CPU' if device.type == 'cpu' else device} takes about "
            f"{_lasting(self.seconds)} and {self.bytes / GIB:.1f} GiB of memory{free}"
        )


def say_forecast(
    folder: Path,
    sketch: LVLM,
    arms: Sequence[Arm],
    inputs: Mapping[str, Tensor],
    device: torch.device,
    settings: Mapping[str, Any],
) -> tuple[dict[str, Any], bool]:
    """Write and show what follows from sizes alone, and say what measuring would take.

    Args:
        folder: Folder of the run; cost.json is written there.
        sketch, arms, inputs, device: as for `forecast`.
        settings: the config's `cost`.

    Returns:
        What run.json says of it, and whether to measure.
    """
    where = hardware_line(device, str(sketch.dtype).removeprefix("torch."))
    write_json(folder / "cost.json", {"hardware": where, **by_formula(sketch, arms, inputs)})
    console = Console()
    console.print("by formula, without selection:")
    console.print(cost_table(folder))
    rounds = {key: settings[key] for key in ("repeats", "warmup", "output_tokens")}
    found = forecast(sketch, arms, inputs, device, **rounds)
    wanted = found.cheap(device) if settings["measure"] == "auto" else settings["measure"]
    console.print(found.said(sum(bool(arm.schedule) for arm in arms), device), soft_wrap=True, highlight=False)
    if not wanted:
        asked = "cost.measure=true measures all the same, sooner with fewer cost.repeats"
        console.print(f"not measured: {asked}", soft_wrap=True, highlight=False)
    return found.describe() | {"measured": wanted}, wanted


def by_formula(sketch: LVLM, arms: Sequence[Arm], inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """The content of a cost.json without measurements: arm -> counts per sample.

    Args:
        sketch: the model's sizes.
        arms: the unpruned one first.
        inputs: equal rows, as `LVLM.example` makes them.
    """
    sizes, total, text, segments = _facts(sketch, inputs)
    pruned = [arm for arm in arms if arm.schedule]
    schedules = {UNPRUNED: Schedule()} | {arm.name: arm.schedule for arm in pruned}
    return {
        name: planned_costs(sizes, schedule, total, text, sketch.dtype, segments)
        for name, schedule in schedules.items()
    }


def forecast(
    sketch: LVLM,
    arms: Sequence[Arm],
    inputs: Mapping[str, Tensor],
    device: torch.device,
    *,
    repeats: int,
    warmup: int,
    output_tokens: int,
) -> Forecast:
    """Try the device's speed on products of the model's kind, and add up the rounds of all arms.

    Args:
        sketch, arms, inputs: as for `by_formula`.
        device: Device that would measure.
        repeats, warmup, output_tokens: Settings of `cost`.
    """
    sizes, total, text, _ = _facts(sketch, inputs)
    batch, layers = len(inputs["input_ids"]), sizes.decoder.layers
    speed = try_speed(device, sketch.dtype, sizes.decoder)
    tower = _tower_flops(sketch, inputs) / batch

    def of(schedule: Schedule) -> Times:
        visual = schedule.tokens_per_layer(total, layers)
        return times(speed, sizes, visual, text, tower=tower, **shape)

    shape = {"batch": batch, "output": output_tokens, "itemsize": sketch.dtype.itemsize}
    rounds = {"repeats": repeats, "warmup": warmup, "output": output_tokens}
    plain = of(Schedule())
    seconds = sum(seconds_of_rounds(plain, of(arm.schedule), **rounds) for arm in arms if arm.schedule)
    held = batch * (total + text + output_tokens) * _per_token(sizes) * sketch.dtype.itemsize
    return Forecast(seconds, model_bytes(sketch.model) + held, free_bytes(device))


def _facts(sketch: LVLM, inputs: Mapping[str, Tensor]) -> tuple[Architecture, int, int, Any]:
    """Sizes, visual and text tokens of a row, and what the vision tower runs over for it."""
    sizes = architecture(sketch.config, strict=False)
    total = int(sketch.visual_mask(inputs)[0].sum())
    batch = len(inputs["input_ids"])
    segments = [lengths[: len(lengths) // batch] for lengths in segments_of(sizes, inputs)]
    return sizes, total, inputs["input_ids"].shape[1] - total, segments


def _tower_flops(sketch: LVLM, inputs: Mapping[str, Tensor]) -> float:
    """Of vision tower and projector, near enough: each weight once per patch, a multiply-add counted as two."""
    pixels = next((inputs[key] for key in ("pixel_values", "pixel_values_videos") if key in inputs), None)
    if pixels is None or sketch.vision is None:
        return 0.0
    patch = getattr(getattr(sketch.config, "vision_config", None), "patch_size", 14)
    side = patch if isinstance(patch, int) else patch[0]
    weights = sum(p.numel() for p in sketch.vision.parameters())
    return 2.0 * weights * pixels.numel() / (3 * side**2)


def _per_token(sizes: Architecture) -> int:
    """Numbers that a token holds at once: keys and values of all layers, and the widest layer's activations."""
    stack = sizes.decoder
    return 2 * stack.layers * stack.kv_heads * stack.head_dim + 3 * stack.ffn + 8 * stack.hidden


def _lasting(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
