"""Stages of phase both, and pruners that say what they want at each of them."""

import torch

from btp.core.pruner import Pruner, ScorePruner
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection


def both(*pairs, of="alive", **settings):
    """A schedule of phase both from (site, keep) pairs."""
    return Schedule(tuple(Stage(site, keep, phase="both", of=of, settings=settings) for site, keep in pairs))


def rows_per_step(call, b):
    """Row b: for each forward, the rows in front of the first stage and behind each."""
    return [[step[0].entered[b], *(record.computed[b] for record in step)] for step in call.steps]


class Told(ScorePruner):
    """Scores by a table: step -> stage -> score of each position. Steps are told apart by the newest candidate."""

    def __init__(self, table):
        self.table = table

    def reads_states(self, stage):
        return False

    def score(self, tokens, signals, stage):
        step = self.steps[stage.site] = self.steps.get(stage.site, -1) + 1
        told = torch.tensor(self.table[step][stage.site.layer - 1])
        return told[tokens.position]

    def check(self, schedule):
        super().check(schedule)
        self.steps = {}


class Everything(Pruner):
    """Keeps the highest places as its stage says, and everything from a step on.

    Args:
        after: how many times each stage is asked before.
    """

    adaptive = True

    def __init__(self, after):
        self.after, self.asked = after, {}

    def reads_states(self, stage):
        return False

    def select(self, tokens, signals, stage):
        self.asked[stage.site] = self.asked.get(stage.site, 0) + 1
        counts = tokens.host_alive if self.asked[stage.site] > self.after else tokens.keep_counts(stage)
        N, most = tokens.valid.shape[1], max(counts)
        start = torch.tensor([n - k for n, k in zip(tokens.host_alive, counts, strict=True)])[:, None]
        keep = torch.arange(most)[None] + start
        keep = keep.masked_fill(torch.arange(most)[None] >= torch.tensor(counts)[:, None], -1)
        assert keep.max() < N
        return Selection(keep, counts=tuple(counts))
