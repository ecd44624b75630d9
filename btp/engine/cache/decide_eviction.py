"""Calls a cache method's `evict`, and checks its answer against the contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from btp.core.keep import on_device
from btp.core.pruner import Pruner
from btp.core.schedule import Stage
from btp.core.signals import Signals
from btp.core.slots import Slots, SlotSelection, check_slots, is_sound, unsound_message
from btp.engine.checks.finite import Finite
from btp.engine.decide import own_counts
from btp.engine.hooks.deferred_checks import Doubts


@dataclass(frozen=True)
class Answer:
    """Checked decision of a cache method: slots that stay.

    Attributes:
        stay: [B, H, n] bool, H 1 where all heads keep the same.
        counts: per row and head.
        carried: numbers of all slots that were shown.
        running: numbers of the heads.
    """

    stay: Tensor
    counts: tuple[int, ...]
    carried: Mapping[str, Tensor]
    running: Mapping[str, Tensor]


def ask(pruner: Pruner, stage: Stage, slots: Slots, signals: Signals, doubts: Doubts) -> Answer:
    """Call the method's `evict`, and check its answer.

    Raises:
        TypeError, ValueError: its answer breaks the contract, or what it ranks by is not finite; on a device, what only
            its content tells is said when doubts are settled.
    """
    finite = Finite(doubts)
    if slots.prefill:  # in a step the scores tell
        finite.slots(pruner.name, stage.site, slots.valid, signals)
    selection = pruner.evict(slots, signals, stage)  # type: ignore[attr-defined]
    counts = slots.keep_counts(stage)
    if isinstance(selection, SlotSelection) and selection.counts is not None:
        counts = own_counts(pruner, selection.counts, slots.host_alive, stage, "slots", "there")
    check_slots(selection, slots, counts, pruner.name, stage.site)
    for numbers in (selection.scores, *selection.carried.values()):
        if numbers is not None:
            heads = numbers.shape[1]
            finite.scores(pruner.name, stage.site, numbers, slots.valid[:, :heads])
    if selection.keep is None:
        return Answer(slots.valid[:, :1], counts, selection.carried, selection.running)
    keep, device = selection.keep.to(slots.position.device, torch.int64), slots.position.device
    doubts.expect(is_sound(keep, on_device(counts, device), slots), unsound_message(pruner.name, stage.site))
    n = slots.position.shape[2]
    stay = torch.zeros(*keep.shape[:2], n + 1, dtype=torch.bool, device=device)
    stay = stay.scatter(2, keep.masked_fill(keep < 0, n).clamp(max=n), True)[..., :n]
    return Answer(stay, counts, selection.carried, selection.running)
