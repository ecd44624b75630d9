"""A method followed through a prefill and a decode step on the device that is not there, operator by operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from btp.core.pruner import Pruner
from btp.core.schedule import Schedule
from btp.core.trained import Trained
from btp.engine.attach import attach
from btp.models.lvlm import LVLM
from btp.results.shipped import CONF
from btp.runner.arms import build_method
from btp.runner.evaluation.oracle_targets import aim_nowhere
from experiments.cost.arms import all_pruners, composed, make_arm
from experiments.launches.claimed import Device, Event, Frame, back, claim, move
from experiments.launches.small import SIDE, prompts, small

BTP = str(Path(__file__).resolve().parents[2] / "btp") + "/"
SHARE = 0.3  # budget of every method, of the visual tokens
SLOTS = 40  # of every cache: less than the prompt, and enough for each method's window or pages
GIVEN = {"vflowopt": ("pruner.strategy=given",)}  # a search needs answers, which random weights do not give
UNTRAINED = ("lvpruning", "atp_llava")
# through which the host's own work passes, function by function: what it asks for is no doing of the engine
_PASSED = {
    ("engine/hooks/root_forward.py", "forward"),
    ("engine/hooks/attention_registry.py", "attend"),
    ("engine/hooks/attention_registry.py", "attention"),
    ("engine/hooks/attention_registry.py", "stand"),
    ("engine/hooks/encoder_calls.py", "encode"),
    ("engine/decoder/kv_cache.py", "update"),
    ("engine/decoder/stream.py", "_follow"),
    ("engine/cache/stages.py", "_stand"),
    ("engine/decoder/lazy/stages.py", "_stand"),
}


@dataclass(frozen=True)
class Followed:
    """What a run asked of the device.

    Attributes:
        prefill, step: events of the prefill, and of one decode step behind it.
        kept: original indices that stayed, per stage and row.
        logits: of prefill's last row and of the step.
        stages: of the schedule.
    """

    prefill: Sequence[Event]
    step: Sequence[Event]
    kept: list[list[list[int]]]
    logits: Tensor
    stages: int


@cache
def hosts() -> tuple[LVLM, LVLM]:
    """The small model on the CPU, and its twin on the device."""
    twin = small()
    move(twin.model)
    return small(), twin


def planned(name: str) -> tuple[Pruner | None, Schedule]:
    """A method with the stages that a run gives it at SHARE of the visual tokens."""
    if name in cache_methods():
        given = composed(f"pruner={name}")["pruner"]
        schedule = Schedule.from_config([stage | {"keep": SLOTS} for stage in given["schedule"]])
        return build_method(name, given["method"]), schedule
    untrained = ("pruner.weights=none",) if name in UNTRAINED else ()
    words = (f"pruner={name}", f"budget.share={SHARE}", *untrained, *GIVEN.get(name, ()))
    arm = make_arm(composed(*words), hosts()[0], SIDE * SIDE)
    return arm.build(), arm.schedule


def follow(name: str | None, rows: int = 1, claimed: bool = True) -> Followed:
    """Run a method on the small model; None runs nothing but the model.

    Args:
        rows: of the batch; more than one are of unequal lengths.
        claimed: on the device that is not there; otherwise on the CPU, without events.
    """
    pruner, schedule = planned(name) if name is not None else (None, Schedule())
    return follow_through(pruner, schedule, rows, claimed)


def follow_through(pruner: Pruner | None, schedule: Schedule, rows: int = 1, claimed: bool = True) -> Followed:
    """The same for a pruner and its stages."""
    host, inputs, device = hosts()[claimed], prompts(rows, uneven=rows > 1), Device()
    if pruner is not None:
        aim_nowhere(pruner, rows)
    if isinstance(pruner, Trained):
        pruner.begin((stage.site for stage in schedule), host.hidden_size)
    if not claimed:
        with torch.no_grad():
            return _run(host, pruner, schedule, inputs, device)
    if isinstance(pruner, Trained):
        move(pruner.modules)
    with device.open():
        return _run(host, pruner, schedule, claim(inputs), device)


def _run(host: LVLM, pruner: Pruner | None, schedule: Schedule, inputs: dict[str, Any], device: Device) -> Followed:
    with attach(host, pruner, schedule) as trace:
        begun = len(device.events)
        first = host.model(**inputs, use_cache=True)
        filled = len(device.events)
        mask = inputs["attention_mask"]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        token = first.logits[:, -1:].argmax(-1)  # as generate() has it by then
        place = mask.sum(1, keepdim=True) - 1
        more = {"attention_mask": mask, "position_ids": place, "past_key_values": first.past_key_values}
        stepping = len(device.events)
        second = host.model(input_ids=token, **more)
        done = len(device.events)
    kept = [stage.kept for stage in trace.last.stages]
    logits = torch.stack([back(first.logits)[:, -1], back(second.logits)[:, -1]])
    return Followed(device.events[begun:filled], device.events[stepping:done], kept, logits, len(schedule))


def ours(event: Event) -> Frame | None:
    """The line of btp that asked for an operator; None where the host did, in its own work."""
    for frame in event.stack:
        if frame.file.startswith(BTP):
            file = frame.file.removeprefix(BTP)
            return None if (file, frame.name) in _PASSED else Frame(file, frame.line, frame.name)
    return None


def waits(events: Sequence[Event]) -> Counter[str]:
    """How often the host waits for the device by btp's doing: by kind, file and function."""
    found: Counter[str] = Counter()
    for event in events:
        if event.wait and (line := ours(event)) is not None:
            found[f"{event.wait} at {line.file} ({line.name})"] += 1
    return found


@cache
def cache_methods() -> tuple[str, ...]:
    """Every method that evicts from the K/V cache."""
    files = sorted((CONF / "pruner").glob("*.yaml"))
    return tuple(file.stem for file in files if "site: llm.cache" in file.read_text(encoding="utf-8"))


def names() -> list[str]:
    """Every method that prunes the tokens of pictures or their slots."""
    return [*all_pruners(), *cache_methods()]
