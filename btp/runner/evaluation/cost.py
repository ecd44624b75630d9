"""Measures what each arm costs beside the unpruned model, on the run's own inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import torch
from rich.table import Column, Table
from torch import Tensor
from tqdm import tqdm

from btp.core.trace import Trace
from btp.engine.attach import attach
from btp.measure.architecture import Architecture, architecture
from btp.measure.clock import Clock
from btp.measure.cost import Subject, measure
from btp.measure.hardware import hardware
from btp.measure.segments import Segments, packed, square
from btp.measure.timed_pruner import TimedPruner
from btp.measure.vision.forward import Forward, measure_forward
from btp.measure.vision.tower import tower_cost
from btp.models.loading.load import Loaded
from btp.models.video.clip_features import clip_pixels
from btp.report.terminal import literal
from btp.results.atomic import write_json
from btp.results.disk import make_folder
from btp.results.reader import ANEW
from btp.results.run_folder_schema import COST
from btp.results.shapes import NAMED, keys, read_json
from btp.results.status import UNPRUNED
from btp.runner.arms import Arm
from btp.runner.evaluation.data import Collate
from btp.runner.evaluation.oracle_targets import aim_nowhere
from btp.runner.identity import code, digest
from btp.schedules.meet import passing
from btp.tasks.sample import Sample

Inputs = Mapping[str, Tensor]
BAR = "{desc} {percentage:3.0f}%|{bar:28}| {n_fmt}/{total_fmt} arms, {elapsed}"


KNOWN = keys(control=NAMED, **{UNPRUNED: NAMED})  # what the store holds of a control


class Costs:
    """Costs of controls that runs share. A method's are measured in every run anew.

    Args:
        folder: Folder in the store.
        shared: identity of model and task.
        reuse: take what earlier runs measured.
    """

    def __init__(self, folder: Path, shared: str, reuse: bool) -> None:
        self.folder, self.shared, self.reuse = folder, shared, reuse

    def path(self, arm: Arm, *what: Any) -> Path:
        """Where the costs of an arm lie, by whatever else changes them: machine, inputs, settings, code."""
        return self.folder / f"{digest(arm.identity(self.shared), code(__name__), *what)}.json"

    def find(self, path: Path) -> dict[str, Any] | None:
        """What was measured before."""
        with suppress(ValueError):  # broken, so that it is measured again
            return read_json(path, KNOWN, "") if self.reuse else None
        return None


def profile(
    loaded: Loaded,
    arms: Sequence[Arm],
    inputs: Inputs,
    costs: Costs,
    *,
    repeats: int,
    warmup: int,
    output_tokens: int,
    now: Clock = time.perf_counter,
    samples: Sequence[Sample] = (),
) -> dict[str, Any]:
    """Measure every arm that prunes inside the model; a control only where no run did so on this machine.

    Args:
        inputs: one batch on the model's device.
        costs: Costs of controls, shared.
        now: reads the clock, in seconds.
        samples: Samples that the inputs are made of; () for noise.

    Returns:
        cost.json's content: arm -> costs per sample, and the hardware.
    """
    host = loaded.host
    meter = _generating(loaded, inputs, output_tokens) if "llm" in host.towers else _looking(loaded, inputs)
    rows = len(next(iter(inputs.values())))
    where = hardware_line(host.device, str(host.dtype).removeprefix("torch."))
    shapes = {key: list(value.shape) for key, value in inputs.items()}
    pruned = [arm for arm in arms if arm.schedule]
    out: dict[str, Any] = {"hardware": where} if pruned else {}
    for arm in tqdm(pruned, desc=f"{'measure cost':24}", bar_format=BAR):
        path = costs.path(arm, where, shapes, repeats, warmup, output_tokens)
        known = costs.find(path) if arm.role == "control" else None
        if known is not None:
            out[arm.name] = known[arm.role]
            out.setdefault(UNPRUNED, known[UNPRUNED])
            continue
        method = arm.build()
        aim_nowhere(method, rows, samples)
        timed = TimedPruner(method) if method is not None else None

        def attached(arm: Arm = arm, timed: TimedPruner | None = timed) -> AbstractContextManager[Trace]:
            return attach(host, timed, arm.schedule)

        with torch.inference_mode():
            out[arm.name], baseline = meter(attached, timed, {"repeats": repeats, "warmup": warmup, "now": now})
        out.setdefault(UNPRUNED, baseline)
        if arm.role == "control":
            make_folder(path.parent)
            write_json(path, {arm.role: out[arm.name], UNPRUNED: baseline})
    return out


Both = tuple[dict[str, Any], dict[str, Any]]  # costs of an arm, and of the unpruned model beside it
Meter = Callable[[Callable[[], AbstractContextManager[Trace]], TimedPruner | None, dict[str, Any]], Both]


def _generating(loaded: Loaded, inputs: Inputs, output_tokens: int) -> Meter:
    """Measures a model that generates: prefill, cache, and each token behind it."""
    host, subject = loaded.host, subject_of(loaded, inputs)

    def meter(attached: Any, timed: TimedPruner | None, rounds: dict[str, Any]) -> Both:
        found = measure(subject, attached, pruner=timed, new_tokens=output_tokens, **rounds)
        with attach(host) as plain:
            subject.generate(1)
        found["unpruned"]["kv_bytes_per_layer"]["measured"] = list(plain.last.cache_bytes) or None
        return _flat(found, "candidate"), _flat(found | found["unpruned"], "baseline")

    return meter


def subject_of(loaded: Loaded, inputs: Inputs) -> Subject:
    """A model that generates, with a batch of inputs, ready to be measured."""
    host = loaded.host
    sizes = architecture(host.config, strict=False)
    return Subject(
        generate=_generator(loaded, inputs),
        architecture=sizes,
        segments=segments_of(sizes, inputs),
        vision=host.vision,
        decoder=host.decoder,
        device=host.device,
        dtype=host.dtype,
        feature=_feature(loaded),
    )


def _looking(loaded: Loaded, inputs: Inputs) -> Meter:
    """Measures a model that answers in one forward."""
    host = loaded.host
    tower = host.towers["vision"]
    cost = tower_cost(host.model, tower.layers, tower.fixed_count, tower.attention if tower.attends else None)
    subject = Forward(host.model, lambda: host(**inputs), cost, host.device)

    def meter(attached: Any, timed: TimedPruner | None, rounds: dict[str, Any]) -> Both:
        found = measure_forward(subject, attached, pruner=timed, **rounds)
        return found["candidate"], found["baseline"]

    return meter


def _feature(loaded: Loaded) -> int:
    tower = loaded.host.towers.get("vision")
    return -1 if tower is None or tower.feature is None else tower.feature


def task_inputs(
    loaded: Loaded, samples: Sequence[Sample], collate: Callable[..., Collate] = Collate
) -> dict[str, Tensor]:
    """One batch of the task's samples, on the model's device."""
    batch = collate(loaded.processor)(samples)
    clips = [clip for mine in batch.clips for clip in mine]
    batch.inputs |= clip_pixels(loaded.processor, clips) if clips else {}
    return batch.to(loaded.host.device, loaded.host.dtype).inputs


def synthetic_inputs(loaded: Loaded, batch: int, example: Mapping[str, int], words: int = 64) -> dict[str, Tensor]:
    """A batch of noise, for models without a processor.

    Args:
        example: the model yaml's height, width and, for a video, frames.
        words: text tokens behind the picture.
    """
    host = loaded.host
    return host.example(batch, words, **example) if "llm" in host.towers else host.example(batch, **example)


def _generator(loaded: Loaded, inputs: Inputs) -> Callable[[int], object]:
    def generate(tokens: int) -> object:
        return loaded.host.generate(**inputs, min_new_tokens=tokens, max_new_tokens=tokens)

    return generate


def segments_of(sizes: Architecture, inputs: Inputs) -> Segments:
    """What the vision tower runs over; nothing where its operations are not computed."""
    if sizes.vision is None:
        return ()
    grids = [inputs[name].tolist() for name in ("image_grid_thw", "video_grid_thw") if inputs.get(name) is not None]
    if grids:
        return packed(sizes.vision, [grid for kind in grids for grid in kind])
    pixels, frames = inputs.get("pixel_values"), inputs.get("pixel_values_videos")
    pictures = 0 if pixels is None else passing(pixels)
    return square(sizes.vision, pictures + (0 if frames is None else frames.shape[:-3].numel()))


def _flat(found: Mapping[str, Any], side: str) -> dict[str, Any]:
    """The costs of one side, counts per sample of the batch, as cost.json holds them."""
    latency, rows = found["latency"], found["rows"]
    measured = found["kv_bytes_per_layer"]["measured"]
    memory = found["peak_memory_mib"]
    flat = {
        "tokens_avg": found["tokens_avg"],
        "flops_visual_pdrop": found["flops_visual_pdrop"] / rows,
        "flops_prefill": found["flops_prefill"] / rows,
        "flops_prefill_measured": found["flops_prefill_measured"] / rows,
        "flops_decode": found["flops_decode"] / rows,
        "flops_decode_measured": found["flops_decode_measured"] / rows,
        "kv_mib": sum(found["kv_bytes_per_layer"]["computed"]) / rows / 2**20,
        "kv_mib_measured": sum(measured) / rows / 2**20 if measured else None,
        "peak_memory_mib": memory[side] if memory else None,
        "batch": rows,
    }
    for name in ("vision_ms", "selection_ms", "decoder_ms", "prefill_ms", "per_token_ms"):
        flat[name] = _spread(latency[name][side])
    if side == "candidate":
        for name in ("prefill", "per_token"):
            flat[f"{name}_ratio"] = latency[f"{name}_ms"]["candidate_over_baseline"]
        flat["selection_share"] = (
            flat["selection_ms"]["median"] / flat["prefill_ms"]["median"] if flat["selection_ms"] else 0.0
        )
    return flat


def _spread(spread: Mapping[str, float] | None) -> dict[str, float] | None:
    return {k.removesuffix("_ms"): v for k, v in spread.items()} if spread else None


def hardware_line(device: torch.device, dtype: str) -> str:
    """What a run computes on, in one line."""
    found = hardware(device, getattr(torch, dtype))
    where = found["gpu"] or f"{found['cpu']}, {found['threads']} threads"
    return f"{where}, torch {found['torch']}, {found['dtype']}"


def cost_table(folder: Path) -> Table:
    """Costs of a run that has nothing else to show, for the screen."""
    costs = read_json(folder / "cost.json", COST, ANEW)
    arms = [arm for arm in costs if arm != "hardware"]
    named = [Column(literal(arm.replace("_", " "))) for arm in arms]
    first = Column("per sample", no_wrap=True)
    table = Table(first, *named, title=literal(costs["hardware"]), title_style="")
    for key in costs[arms[-1]]:
        row = [_shown(costs[arm].get(key)) for arm in arms]
        if any(row):
            table.add_row(key, *row)
    return table


def _shown(value: Any) -> str:
    """A number; of a series its median and its ends, without which nobody can tell what it is worth."""
    if isinstance(value, dict):
        low, high = (value.get(key, value.get(other)) for key, other in (("low", "p10"), ("high", "p90")))
        ends = "" if low is None or high is None else f" ({low:.3g}–{high:.3g})"
        return _shown(value["median"]) + ends
    return "" if value is None else f"{value:.4g}"
