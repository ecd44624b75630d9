"""A pruner around another one: decides as it does, and lets a subclass watch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals


class Around(Pruner):
    """Pruner that delegates to the pruner inside it whatever a subclass does not override.

    Attributes:
        pruner: the method.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner

    @property
    def name(self) -> str:
        """The method's own."""
        return self.pruner.name

    @property
    def adaptive(self) -> bool:  # type: ignore[override]
        """The method's own."""
        return self.pruner.adaptive

    @property
    def stage_settings(self) -> frozenset[str]:  # type: ignore[override]
        """The method's own."""
        return self.pruner.stage_settings

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """The method's own."""
        return self.pruner.needs(stage)

    def reads_states(self, stage: Stage) -> bool:
        """The method's own."""
        return self.pruner.reads_states(stage)

    def needs_grid(self, stage: Stage) -> bool:
        """The method's own."""
        return self.pruner.needs_grid(stage)

    def check(self, schedule: Schedule) -> None:
        """The method's own."""
        self.pruner.check(schedule)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """The method's own."""
        return self.pruner.select(tokens, signals, stage)

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """The method's own."""
        return self.pruner.explain(tokens, signals, stage)

    def __getattr__(self, key: str) -> Any:
        if key == "pruner":
            raise AttributeError(key)
        return getattr(self.pruner, key)
