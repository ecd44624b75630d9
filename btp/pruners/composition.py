"""Several methods in one prefill, each at its own stages: one prunes behind the vision tower, another in the LLM."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import PART, Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.slots import Slots, SlotSelection

_INDEX = re.compile(r"schedule\.(\d+)")


class Chain(Pruner):
    """Hands every stage to the part that its setting `by` names, as if that part were alone.

    Tokens carry on what earlier parts made of them: fewer, merged, with sizes. A stage that keeps 0 asks nobody and
    names nobody.

    Args:
        parts: name -> method.
    """

    def __init__(self, *, parts: Mapping[str, Pruner]) -> None:
        if not isinstance(parts, Mapping) or len(parts) < 2:
            raise ValueError(f"pruner.method.parts is {parts!r}. Give two methods or more, each under a name.")
        for name, part in parts.items():
            if not isinstance(part, Pruner) or isinstance(part, Chain):
                raise ValueError(f"pruner.method.parts.{name} is {part!r}. Give it the _target_ of another pruner.")
        self.parts = dict(parts)

    @property
    def name(self) -> str:
        """Those of the parts."""
        return "+".join(part.name for part in self.parts.values())

    @property
    def stage_settings(self) -> frozenset[str]:  # type: ignore[override]
        """Those of all parts, and `by`."""
        return frozenset({PART}).union(*(part.stage_settings for part in self.parts.values()))

    @property
    def adaptive(self) -> bool:  # type: ignore[override]
        """True where a part is; the others are held to their stages in `select`."""
        return any(part.adaptive for part in self.parts.values())

    @property
    def proportional_attention(self) -> bool:
        """Whether tokens that a part merged in the vision tower weigh in attention by their size."""
        return any(getattr(part, "proportional_attention", False) for part in self.parts.values())

    def set_targets(self, targets: Sequence[Sequence[Any]]) -> None:
        """Pass on what matters in the coming batch to the parts that want to know."""
        for part in self.parts.values():
            if (hand := getattr(part, "set_targets", None)) is not None:
                hand(targets)

    def set_clips(self, rows: Sequence[Any]) -> None:
        """Pass on what the coming batch asks of which videos to the parts that match them."""
        for part in self.parts.values():
            if (hand := getattr(part, "set_clips", None)) is not None:
                hand(rows)

    def check(self, schedule: Schedule) -> None:
        """Refuse stages of nobody; then each part looks at its own stages."""
        mine: dict[str, list[int]] = {name: [] for name in self.parts}
        for i, stage in enumerate(schedule):
            part = stage.settings.get(PART)
            if stage.withdraws_all and part is None:
                continue
            if part not in self.parts:
                raise ValueError(
                    f"schedule.{i}.{PART} is {part!r}. A composition needs to know whose stage it is: choose from "
                    f"{', '.join(self.parts)}."
                )
            mine[part].append(i)
        for name, indices in mine.items():
            self._check_part(name, indices, schedule)

    def _check_part(self, name: str, indices: list[int], schedule: Schedule) -> None:
        own = Schedule(tuple(_bare(schedule[i]) for i in indices))
        try:
            self.parts[name].check(own)
        except ValueError as error:
            message = _INDEX.sub(lambda found: f"schedule.{indices[int(found[1])]}", str(error))
            raise ValueError(message) from None

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """What the stage's part needs."""
        return () if stage.withdraws_all else self._part(stage).needs(_bare(stage))

    def reads_states(self, stage: Stage) -> bool:
        """What the stage's part says."""
        return self._part(stage).reads_states(_bare(stage))

    def needs_grid(self, stage: Stage) -> bool:
        """Whether the stage's part does."""
        return not stage.withdraws_all and self._part(stage).needs_grid(_bare(stage))

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """What the stage's part decides.

        Raises:
            ValueError: a part that is not adaptive decided its own counts.
        """
        part = self._part(stage)
        selection = part.select(tokens, signals, _bare(stage))
        if selection.counts is not None and not part.adaptive:
            raise ValueError(
                f"pruner {part.name!r} returned counts at {stage.site}, but it is not adaptive. "
                "Set adaptive = True on the class, or leave counts to the schedule."
            )
        return selection

    @property
    def accumulates(self) -> bool:
        """True where a part at the cache does."""
        return any(getattr(part, "accumulates", False) for part in self.parts.values())

    @property
    def in_order(self) -> bool:
        """True where a part at the cache wants its slots in order."""
        return any(getattr(part, "in_order", False) for part in self.parts.values())

    def evict(self, slots: Slots, signals: Signals, stage: Stage) -> SlotSelection:
        """What the stage's part keeps of a cache."""
        return self._part(stage).evict(slots, signals, _bare(stage))  # type: ignore[attr-defined]

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """What the stage's part says."""
        return self._part(stage).explain(tokens, signals, _bare(stage))

    def _part(self, stage: Stage) -> Pruner:
        return self.parts[stage.settings[PART]]


def _bare(stage: Stage) -> Stage:
    """The stage as its part knows it."""
    return replace(stage, settings={k: v for k, v in stage.settings.items() if k != PART})
