"""Control: keeps tokens that differ most from each other, and looks at nothing else."""

from __future__ import annotations

from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Stage
from btp.core.selection import Selection
from btp.core.signals import Signals
from btp.ops.farthest_point import farthest_points


class Diversity(Pruner):
    """Farthest-point sampling of the hidden states at the stage, from the most isolated token on.

    Source: Alvar et al. 2025, arXiv:2503.02175, whose rule this is at `llm.input`.
    """

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Max-min distance, from scratch at every stage."""
        nothing = tokens.index[:, :0]
        return Selection(farthest_points(tokens.hidden, nothing, tokens.keep_counts(stage), tokens.valid))
