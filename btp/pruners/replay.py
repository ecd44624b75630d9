"""Keeps what an earlier prompt with the same pictures kept, whatever the new one asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals


class Replay(Pruner):
    """A late question: the picture was pruned for another one, and what left is gone.

    Args:
        kept: Kept by site, per row the original visual indices that stayed there, as `StageRecord.kept` has them.
    """

    def __init__(self, kept: Mapping[str, Sequence[Sequence[int]]]) -> None:
        self.kept = {site: [frozenset(row) for row in rows] for site, rows in kept.items()}

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Nothing: all is decided."""
        return ()

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """The places of the recorded tokens among those alive.

        Raises:
            ValueError: there is no record of this stage, of other rows, or of tokens that are not there.
        """
        rows, alive = self.kept.get(str(stage.site)), tokens.host_alive or tuple(tokens.valid.sum(1).tolist())
        if rows is None or len(rows) != len(alive):
            raise ValueError(
                f"replay has no record of {len(alive)} rows at {stage.site}. Record a prompt with the same pictures, "
                "in the same order, under the same schedule."
            )
        index = tokens.index.tolist()
        found = [[j for j in range(n) if index[b][j] in rows[b]] for b, n in enumerate(alive)]
        if [len(mine) for mine in found] != [len(row) for row in rows]:
            raise ValueError(f"replay was recorded on other pictures: tokens kept at {stage.site} are not there.")
        widest = max(map(len, found), default=0)
        padded = [mine + [-1] * (widest - len(mine)) for mine in found]
        return Selection(on_device(padded, tokens.index.device).view(len(found), widest))
