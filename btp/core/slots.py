"""What a method of the K/V cache is shown of a layer's slots, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from btp.core.schedule import Stage

SCOPES = ("all", "visual", "text")


def allowed(stage: Stage, totals: tuple[int, ...]) -> tuple[int, ...]:
    """Slots that a stage allows each row: an int as it is, also beyond the prompt, a share of `totals`."""
    if isinstance(stage.keep, int):
        return (stage.keep,) * len(totals)
    return tuple(stage.count(total) for total in totals)


@dataclass(frozen=True)
class Slots:
    """The slots of one layer's K/V cache that a stage may evict, behind the layer's attention of this forward.

    B rows, Hkv key heads, n slots. Heads may hold different tokens, but as many of them. Entries without a token
    (padding of the prompt, filling of shorter rows) are not `valid` and may lie anywhere; the last `new` entries are
    those of this forward. Slots stand in the order of their positions where a method asks for it (`in_order`).
    Every index of a method is an index into n.

    Attributes:
        position: [B, Hkv, n] place of the slot's token in its row's unpruned sequence, padding not counted; -1 where
            there is no token.
        length: [B] tokens of the row so far, evicted ones and padding's absence counted: the newest stands at
            length - 1.
        prompt: [B] tokens of the row's prompt.
        layer, layers: which decoder layer, and of how many.
        groups: query heads that share a key head.
        new: rows of this forward: the prompt's in prefill, 1 in a decode step.
        prefill: whether this is the forward of the prompt.
        due: whether slots may be evicted now; where not, a method that accumulates is asked for its numbers alone.
        carried: numbers that the method gave to the slots when it saw them last, [B, Hkv, n] each; 0 for new slots.
        running: numbers that it gave to the heads, [B, Hkv, ...] each, as a sum over their slots; empty at first.
        host_total: what a share of `keep` is a share of, per row: the prompt's tokens in the stage's scope.
        host_alive: valid slots per row and head.
        host_length: `length`, known to the host.
    """

    position: Tensor
    length: Tensor
    prompt: Tensor
    layer: int
    layers: int
    groups: int
    new: int
    prefill: bool
    due: bool
    carried: Mapping[str, Tensor]
    host_total: tuple[int, ...]
    host_alive: tuple[int, ...]
    host_length: tuple[int, ...]
    running: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def valid(self) -> Tensor:
        """[B, Hkv, n] bool: entries that hold a token."""
        return self.position >= 0

    def budget(self, stage: Stage) -> tuple[int, ...]:
        """Slots that the stage allows each row and head: an int as it is, a share of the prompt."""
        return allowed(stage, self.host_total)

    def keep_counts(self, stage: Stage) -> tuple[int, ...]:
        """Slots that each row keeps per head: its budget, capped by what is there; all where nothing is due."""
        if not self.due:
            return self.host_alive
        return tuple(min(count, alive) for count, alive in zip(self.budget(stage), self.host_alive, strict=True))


@dataclass(frozen=True)
class SlotSelection:
    """What a method of the K/V cache decided.

    Attributes:
        keep: [B, Hkv or 1, K] integer indices into n, ascending and unique, of valid slots; rows that keep fewer than K
            are padded with -1 at the end. One head's answer holds for all. None keeps every slot.
        counts: slots kept per row, where the method is `adaptive` and decides itself; None follows the stage.
        carried: numbers [B, Hkv or 1, n] of all slots that were shown; those of kept ones come back in `Slots.carried`.
        running: numbers [B, Hkv or 1, ...] of the heads, which come back as they are in `Slots.running`.
        scores: [B, Hkv or 1, n] what the slots were ranked by, where they were; the engine refuses NaN and inf.
    """

    keep: Tensor | None
    counts: tuple[int, ...] | None = None
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    scores: Tensor | None = None
    running: Mapping[str, Tensor] = field(default_factory=dict)


def check_slots(selection: object, slots: Slots, counts: tuple[int, ...], method: str, site: object) -> None:
    """Refuse a selection by what is known without reading it: no host sync.

    Args:
        counts: slots that each row must keep.
        method, site: names for the message.

    Raises:
        TypeError: it is no SlotSelection, or its indices are not integers.
        ValueError: something has another shape than asked.
    """
    if not isinstance(selection, SlotSelection):
        raise TypeError(
            f"pruner {method!r} returned {type(selection).__name__} at {site}. Return a btp.core.slots.SlotSelection."
        )
    B, H, n = slots.position.shape
    keep = selection.keep
    if keep is None and counts != slots.host_alive:
        raise ValueError(
            f"pruner {method!r} kept every slot at {site}, but the stage keeps {counts} of {slots.host_alive} slots a "
            "row. Return indices of those that stay."
        )
    if keep is not None:
        if keep.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"pruner {method!r} kept {keep.dtype} indices at {site}. Return int64.")
        if keep.dim() != 3 or keep.shape[:1] != (B,) or keep.shape[1] not in (1, H) or keep.shape[2] != max(counts):
            raise ValueError(
                f"pruner {method!r} kept slots of shape {tuple(keep.shape)} at {site}, but its rows keep {counts}: "
                f"shape {(B, H, max(counts))}, or one head for all. Return exactly slots.keep_counts(stage), shorter "
                "rows padded with -1."
            )
    shapes = {"scores": selection.scores} | {f"carried.{k}": v for k, v in selection.carried.items()}
    for name, given in shapes.items():
        if given is not None and tuple(given.shape) not in ((B, H, n), (B, 1, n)):
            raise ValueError(
                f"pruner {method!r} returned {name} of shape {tuple(given.shape)} at {site}. Return {(B, H, n)}, or "
                "one head for all: a number for every slot that was shown."
            )
    for name, given in selection.running.items():
        if tuple(given.shape[:2]) not in ((B, H), (B, 1)):
            raise ValueError(
                f"pruner {method!r} returned running.{name} of shape {tuple(given.shape)} at {site}. Return numbers of "
                f"{B} rows and {H} key heads, or one head for all."
            )


def is_sound(keep: Tensor, counts: Tensor, slots: Slots) -> Tensor:
    """Whether every head is ascending, unique, in range, on valid slots, and padded only at its end. No host sync.

    Args:
        keep: [B, Hkv or 1, K] indices into n.
        counts: [B] slots that each row must keep.

    Returns:
        A bool scalar on the device of `keep`.
    """
    n = slots.position.shape[2]
    real = torch.arange(keep.shape[2], device=keep.device) < counts[:, None, None]
    inside = torch.where(real, (keep >= 0) & (keep < n), keep == -1)
    held = slots.valid if keep.shape[1] > 1 else slots.valid.all(1, keepdim=True)
    on_tokens = held.gather(2, keep.clamp(0, max(n - 1, 0))) | ~real
    rising = (keep[..., 1:] > keep[..., :-1]) | ~real[..., 1:]
    return inside.all() & rising.all() & on_tokens.all()


def unsound_message(method: str, site: object) -> str:
    """What to tell the author of a method whose selection `is_sound` refused."""
    return (
        f"pruner {method!r} returned slots at {site} that are not ascending, unique and valid, with -1 only behind the "
        "count of a row. btp.ops.slots.keep_best returns them in that form."
    )
