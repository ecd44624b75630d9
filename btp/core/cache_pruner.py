"""The contract of methods that evict from the K/V cache: they see slots and declared signals, and say what stays."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from btp.core.check_settings import check_one_of, check_whole
from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signals
from btp.core.slots import SCOPES, Slots, SlotSelection
from btp.core.topk import keep_best

SCORE = "score"  # under which ScoreSlots carries a running score


def scope_of(stage: Stage) -> str:
    """Which slots a cache stage may evict: all | visual | text (what a picture does not bring, answers included)."""
    return stage.settings.get("scope", "all")


def every_of(stage: Stage) -> int:
    """Decode steps from one eviction to the next."""
    return stage.settings.get("every", 1)


def evicts_nothing(stage: Stage) -> bool:
    """Whether a cache stage leaves everything where it is: keep 1.0, in decode too."""
    return isinstance(stage.keep, float) and stage.keep == 1.0


class CachePruner(Pruner):
    """A method at `llm.cache.*`. It keeps no state: numbers that it needs again travel with the slots (`carried`).

    A stage's `keep` counts slots per key head, of its scope; a share is one of the prompt's tokens in that scope, and
    1.0 keeps all that ever comes. Settings of a stage: `scope` (all | visual | text: which slots may leave) and, in a
    phase with decode, `every` (decode steps from one eviction to the next).

    Attributes:
        accumulates: it is asked in every forward of its phases, the prompt's too, for the numbers that it carries;
            otherwise only where slots have to leave.
        in_order: slots are shown in the order of their positions; otherwise in decode in any order, which saves moving
            them.
    """

    stage_settings: ClassVar[frozenset[str]] = frozenset({"scope", "every"})
    accumulates: bool = False
    in_order: bool = True

    @abstractmethod
    def evict(self, slots: Slots, signals: Signals, stage: Stage) -> SlotSelection:
        """Choose the slots that stay; `slots.keep_counts(stage)` says how many each row and head keeps."""

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Nothing: it does not choose between layers.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"pruner {self.name!r} evicts from the K/V cache and cannot work at {stage.site}. Set the site to "
            "llm.cache.* or llm.cache.N."
        )

    def check(self, schedule: Schedule) -> None:
        """Sites, and the settings that every cache method has."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if stage.site.kind != "cache":
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner {self.name!r} evicts from the K/V cache. Set it to "
                    "llm.cache.* or llm.cache.N."
                )
            check_cache_settings(i, stage)


def check_cache_settings(i: int, stage: Stage) -> None:
    """Refuse a scope or rhythm that cannot be, or has no effect, at stage `i`.

    Raises:
        ValueError: names the config key.
    """
    scope, every = scope_of(stage), every_of(stage)
    check_one_of(f"schedule.{i}.scope", scope, SCOPES)
    check_whole(f"schedule.{i}.every", every, "a number of decode steps, 1 or more")
    if stage.phase == "prefill" and every != 1:
        raise ValueError(
            f"schedule.{i}.every is {every}, but the stage evicts behind the prompt alone (phase: prefill), so it has "
            "no effect. Remove it, or set phase to decode or both."
        )


class ScoreSlots(CachePruner):
    """A method that scores slots and keeps the highest; ties go to the first slot.

    Further settings of a stage, both counted within `keep`: `first` slots of the sequence and `recent` ones at its end
    never leave. An int counts slots, a float in [0, 1] is a share of what the stage keeps, rounded down.
    """

    stage_settings: ClassVar[frozenset[str]] = CachePruner.stage_settings | {"first", "recent"}
    in_order: bool = False

    @abstractmethod
    def score(self, slots: Slots, signals: Signals, stage: Stage) -> Tensor:
        """[B, Hkv or 1, n] scores, finite, higher = keep; what holds no token may have anything. One head's scores
        hold for all. Where the method `accumulates`, they come back as `slots.carried[SCORE]`.
        """

    def evict(self, slots: Slots, signals: Signals, stage: Stage) -> SlotSelection:
        """Keep the highest scores of each head, the protected slots before all others.

        Raises:
            ValueError: what the stage protects is more than it keeps.
        """
        score = self.score(slots, signals, stage)
        counts = slots.keep_counts(stage)
        carried = {SCORE: score} if self.accumulates else {}
        if counts == slots.host_alive:
            return SlotSelection(None, carried=carried, scores=score)
        ranked = protect(score, slots, *protected(stage, counts, self.name, slots.host_alive))
        return SlotSelection(keep_best(ranked, counts, slots.valid, slots.host_alive), carried=carried, scores=score)

    def check(self, schedule: Schedule) -> None:
        """What is protected must fit into what is kept."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            for key in ("first", "recent"):
                check_protected(i, key, stage.settings.get(key, 0))
            if isinstance(stage.keep, int) and not stage.withdraws_all:
                protected(stage, (stage.keep,), self.name)


def check_protected(i: int, key: str, given: object) -> None:
    """Refuse what is neither a count nor a share, at stage `i`.

    Raises:
        ValueError: names the config key.
    """
    whole = isinstance(given, int) and not isinstance(given, bool) and given >= 0
    if not whole and not (isinstance(given, float) and 0.0 <= given <= 1.0):
        raise ValueError(
            f"schedule.{i}.{key} is {given!r}. Write an int >= 0 (slots), or a float in [0, 1] (share of what the "
            "stage keeps)."
        )


def protected(
    stage: Stage, counts: tuple[int, ...], method: str, alive: tuple[int, ...] = ()
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Slots that never leave, per row: at the beginning of the sequence, and at its end.

    Args:
        counts: slots that each row keeps.
        alive: slots that each row has; a row that keeps them all needs no protection.

    Raises:
        ValueError: they are more than a row keeps.
    """
    first, recent = (
        tuple(int(given * count + 1e-6) if isinstance(given, float) else given for count in counts)
        for given in (stage.settings.get("first", 0), stage.settings.get("recent", 0))
    )
    for i, (a, b, count) in enumerate(zip(first, recent, counts, strict=True)):
        if a + b > count and alive[i : i + 1] != (count,):
            raise ValueError(
                f"pruner {method!r} keeps {count} slots at {stage.site}, of which the first {a} and the {b} most "
                f"recent ones are {a + b}: nothing is left to choose. Raise the stage's keep (or the budget) to "
                f"{a + b} slots or more, or lower its first or recent."
            )
    return first, recent


def protect(score: Tensor, slots: Slots, first: tuple[int, ...], recent: tuple[int, ...]) -> Tensor:
    """Scores in which the first and the most recent slots of each row stand above all others, of as many heads."""
    if not any(first) and not any(recent):
        return score
    position, length = slots.position[:, : score.shape[1]], slots.length[:, None, None]
    safe = (position < _column(first, position)) | (position >= length - _column(recent, position))
    return score.masked_fill(safe, torch.inf)


def _column(counts: tuple[int, ...], like: Tensor) -> Tensor | int:
    """Counts per row that go with [B, H, n]; a plain number where all rows have one."""
    if len(set(counts)) == 1:
        return counts[0]
    return on_device(counts, like.device)[:, None, None]
