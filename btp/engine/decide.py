"""Calls a pruner's `select`, and checks its answer against the contract, for prompts and for pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Stage
from btp.core.selection import MergePlan, Selection, check_shape, is_sound, unsound_message
from btp.core.signals import Signal, Signals
from btp.engine.checks.finite import Finite
from btp.engine.hooks.deferred_checks import Doubts
from btp.ops.merge import merge_sizes, merge_states

COMBINES = ("mean", "sum")


@dataclass(frozen=True)
class Decision:
    """What a stage does with its tokens.

    Attributes:
        keep: [B, K] indices into the tokens alive, -1 padded at the end.
        counts: kept per row.
        states: [B, K, D] new states of the kept tokens; None leaves them as they are.
        sizes: [B, K] original tokens each stands for; None leaves them as they were.
        ordered: the kept tokens change places.
        merge: what flowed into what, with targets in range; None where nothing did.
        carried: [B, N] numbers by name that the tokens take along.
    """

    keep: Tensor
    counts: tuple[int, ...]
    states: Tensor | None = None
    sizes: Tensor | None = None
    ordered: bool = False
    merge: MergePlan | None = None
    carried: Mapping[str, Tensor] = field(default_factory=dict)

    def changes(self, before: tuple[int, ...]) -> bool:
        """Whether anything is other than before."""
        return self.counts != before or self.states is not None or self.ordered or bool(self.carried)


class Decider:
    """Calls one pruner and checks its selections.

    Args:
        pruner: the method; None where every stage keeps all or nothing.
        doubts: collects checks on tensor content.
    """

    def __init__(self, pruner: Pruner | None, doubts: Doubts) -> None:
        self.pruner, self._doubts, self._finite = pruner, doubts, Finite(doubts)

    @property
    def proportional_attention(self) -> bool:
        """Whether merged tokens of the vision tower weigh in attention by their size."""
        return bool(getattr(self.pruner, "proportional_attention", False))

    @property
    def adaptive(self) -> bool:
        """Whether the pruner decides itself how many stay, so that rows may keep unequal numbers."""
        return self.pruner is not None and self.pruner.adaptive

    @property
    def alignment(self) -> Mapping[str, str]:
        """`gap` and `conv` of scans whose rows are missing, where the pruner says them."""
        return getattr(self.pruner, "alignment", None) or {}

    def plain(self, row: Tensor, before: tuple[int, ...], counts: tuple[int, ...]) -> Decision | None:
        """The decision where there is nothing to ask; None where the pruner must be asked.

        Args:
            row: [B, N], -1 where padded.
            before: tokens alive per row.
            counts: tokens the schedule keeps.
        """
        if max(counts) == 0:
            return Decision(row[:, :0], counts)
        if self.pruner is None:
            every = torch.arange(row.shape[1], device=row.device).expand_as(row)
            return Decision(every.masked_fill(row < 0, -1), before)
        return None

    def ask(
        self,
        stage: Stage,
        tokens: Tokens,
        seen: Mapping[Signal, Tensor],
        rows_valid: Mapping[Signal, Tensor],
        counts: tuple[int, ...],
    ) -> Decision:
        """Call the pruner's `select`, and check its answer.

        Args:
            counts: tokens the schedule keeps per row.

        Raises:
            TypeError, ValueError: the answer breaks the contract, or something it was shown or made of it is not
                finite; on a device, what only its content tells is said when doubts are settled.
        """
        pruner = self.pruner
        assert pruner is not None  # held by make_plan
        self._finite.shown(pruner.name, stage.site, tokens, seen, rows_valid)
        selection = pruner.select(tokens, Signals(seen, rows_valid), stage)
        if isinstance(selection, Selection) and selection.counts is not None:
            there = tokens.host_alive or tuple(tokens.valid.sum(1).tolist())
            own = own_counts(pruner, selection.counts, there, stage)
            selection, counts = _withdrawn(selection, own, counts)
        check_shape(selection, counts, pruner.name, stage.site)
        _check_rest(selection, tokens, stage, pruner.name)
        if selection.scores is not None:
            self._finite.scores(pruner.name, stage.site, selection.scores, tokens.valid)
        alive = tokens.valid.sum(1)
        keep = selection.keep.to(alive.device, torch.int64)
        sound = is_sound(keep, on_device(counts, alive.device), alive, selection.ordered)
        self._doubts.expect(sound, unsound_message(pruner.name, stage.site))
        keep = keep.clamp(max=tokens.hidden.shape[1] - 1)
        states, sizes, merge = selection.states, None, None
        if selection.merge is not None:
            target = selection.merge.target.to(alive.device, torch.int64)
            self._doubts.expect(_flows_into(target, keep, tokens.valid), _lost_message(pruner.name, stage))
            merge = replace(selection.merge, target=target.clamp(max=tokens.hidden.shape[1] - 1))
            sizes = merge_sizes(tokens.size, keep, merge)
            states = merge_states(tokens.hidden, keep, merge) if states is None else states
        if states is not None:
            self._finite.states(pruner.name, stage.site, states, keep)
        return Decision(keep, counts, states, sizes, selection.ordered, merge, selection.carried)


def own_counts(
    pruner: Pruner,
    counts: tuple[int, ...],
    alive: tuple[int, ...],
    stage: Stage,
    what: str = "tokens",
    are: str = "alive",
) -> tuple[int, ...]:
    """The counts that a method decided itself, as plain numbers.

    Args:
        alive: what each row could keep.
        what, are: how a message calls that.

    Raises:
        ValueError: the method may not, or a row has no count, or more than there is.
    """
    if not pruner.adaptive:
        raise ValueError(
            f"pruner {pruner.name!r} returned counts at {stage.site}, but it is not adaptive. "
            "Set adaptive = True on the class, or leave counts to the schedule."
        )
    if len(counts) != len(alive) or any(not 0 <= k <= n for k, n in zip(counts, alive, strict=False)):
        raise ValueError(
            f"pruner {pruner.name!r} decided to keep {counts} {what} at {stage.site}, of which {alive} are {are}. "
            f"Return one count per row, at most what is {are}."
        )
    return tuple(counts)


def _flows_into(target: Tensor, keep: Tensor, valid: Tensor) -> Tensor:
    """Whether every token that goes somewhere goes to one that stays: a bool scalar. No host sync."""
    B, N = valid.shape
    stays = valid.new_zeros(B, N + 2).scatter(1, keep.masked_fill(keep < 0, N), True)
    stays[:, N:] = False
    return (stays.gather(1, target.clamp(min=0, max=N)) | (target < 0) | ~valid).all()


def _lost_message(method: str, stage: Stage) -> str:
    return (
        f"pruner {method!r} lets tokens flow into ones that do not stay at {stage.site}, where they would be lost. "
        "A target in its MergePlan is a kept token, or -1."
    )


def _withdrawn(
    selection: Selection, own: tuple[int, ...], counts: tuple[int, ...]
) -> tuple[Selection, tuple[int, ...]]:
    """Rows of which the schedule keeps nothing keep nothing, whatever an adaptive method says of them."""
    if 0 not in counts:
        return selection, own
    own = tuple(0 if wanted == 0 else k for wanted, k in zip(counts, own, strict=True))
    gone = on_device(counts, selection.keep.device)[:, None] == 0
    keep = selection.keep.masked_fill(gone, -1)[:, : max(own)]
    merge, states = selection.merge, selection.states
    if merge is not None:
        merge = replace(merge, target=merge.target.masked_fill(gone.to(merge.target.device), -1))
    states = None if states is None else states[:, : max(own)]
    return replace(selection, keep=keep, merge=merge, states=states, counts=own), own


def _check_rest(selection: Selection, tokens: Tokens, stage: Stage, method: str) -> None:
    if selection.ordered and stage.positions != "renumber":
        raise ValueError(
            f"pruner {method!r} gives its tokens a new order at {stage.site}, where positions are "
            f"{stage.positions}: each would stand at another one's position. Set positions: renumber on that stage."
        )
    if selection.merge is not None and selection.merge.combine not in COMBINES:
        raise ValueError(
            f"pruner {method!r} returned a MergePlan that combines by {selection.merge.combine!r} at {stage.site}. "
            f"Choose from: {', '.join(COMBINES)}."
        )
    if selection.merge is not None and selection.merge.target.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"pruner {method!r} returned merge.target of {selection.merge.target.dtype}. Return int64.")
    B, N, D = tokens.hidden.shape
    shapes = {"states": (selection.states, (*selection.keep.shape, D)), "scores": (selection.scores, (B, N))}
    if selection.merge is not None:
        shapes |= {f"merge.{k}": (getattr(selection.merge, k), (B, N)) for k in ("target", "weight")}
    shapes |= {f"carried.{k}": (given, (B, N)) for k, given in selection.carried.items()}
    if selection.carried and stage.site.tower == "vision":
        raise ValueError(
            f"pruner {method!r} gives its tokens numbers to carry at {stage.site}, in the vision tower, where none "
            "travel. Leave carried away, or decide at llm.input."
        )
    for name, (given, wanted) in shapes.items():
        if given is not None and tuple(given.shape) != wanted:
            raise ValueError(
                f"pruner {method!r} returned {name} of shape {tuple(given.shape)} at {stage.site}. Return {wanted}."
            )
