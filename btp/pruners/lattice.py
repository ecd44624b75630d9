"""Control: keeps an even lattice of the grid, as a picture with fewer patches would have."""

from __future__ import annotations

import torch

from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Stage
from btp.core.selection import Selection
from btp.core.signals import Signals
from btp.ops.grid_spread import spatial_seeds


class Lattice(Pruner):
    """Keeps tokens as far apart on the grid as can be, whatever they show.

    Together with a picture shrunk to as many pixels (`picture: shrunk` in the yaml) it stands for down-sampling
    the image to the same number of visual tokens. Tokens off the grid (newlines) go first.
    """

    def needs_grid(self, stage: Stage) -> bool:
        """Always: the grid is all that it goes by."""
        return True

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Greedy max-min over the grid, Manhattan distance, from the first token on."""
        counts = tokens.keep_counts(stage)
        picks = spatial_seeds(*(tokens.host_grid or (tokens.coord, tokens.image)), counts, "manhattan")
        rows = []
        for b, (taken, count) in enumerate(zip(picks, counts, strict=True)):
            alive = int(tokens.valid[b].sum()) if len(taken) < count else 0
            chosen = set(taken)
            rest = [i for i in range(alive) if i not in chosen][: count - len(taken)]
            row = sorted([*taken, *rest])
            rows.append(row + [-1] * (max(counts) - len(row)))
        return Selection(on_device(rows, tokens.hidden.device, torch.long).view(len(counts), -1))
