"""Small pruners for tests."""

from __future__ import annotations

import torch

from btp.core.pruner import ScorePruner
from btp.core.schedule import Schedule, Stage


class Scatter(ScorePruner):
    """Keeps tokens spread at random, another set in each row and stage, the same in every run."""

    def score(self, tokens, signals, stage):
        row = torch.arange(len(tokens.index))[:, None]
        return torch.sin(tokens.index * 12.9 + tokens.total[:, None] * 7.7 + row * 0.0 + stage.site.layer * 3.1)


class Watch(Scatter):
    """Asks for signals and remembers what it was given."""

    def __init__(self, *signals):
        self._signals, self.seen = signals, []

    def needs(self, stage):
        return self._signals

    def score(self, tokens, signals, stage):
        self.seen.append((stage, tokens, signals))
        return super().score(tokens, signals, stage)


def plan(*pairs, **more):
    """A schedule from (site, keep) pairs."""
    return Schedule(tuple(Stage(site, keep, **more) for site, keep in pairs))
