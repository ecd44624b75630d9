"""Control: sliding window, keeps the end of the prompt."""

from __future__ import annotations

from torch import Tensor

from btp.core.pruner import ScorePruner, Tokens
from btp.core.schedule import Stage
from btp.core.signals import Signals


class Window(ScorePruner):
    """Keeps the newest tokens, as a model would read that is shown the end of a text alone."""

    def score(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] the place in the prompt."""
        return tokens.position.float()
