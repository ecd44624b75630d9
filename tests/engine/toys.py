"""Small pruners for tests."""

from __future__ import annotations

import torch

from btp.core.pruner import ScorePruner
from btp.core.schedule import Schedule, Stage
from btp.core.selection import MergePlan, Selection
from btp.core.topk import top_k


class Scatter(ScorePruner):
    """Keeps tokens spread at random, another set in each row and stage, the same in every run."""

    def score(self, tokens, signals, stage):
        row = torch.arange(len(tokens.index))[:, None]
        return torch.sin(tokens.index * 12.9 + tokens.total[:, None] * 7.7 + row * 0.0 + stage.site.layer * 3.1)


class Content(ScorePruner):
    """Keeps what a fixed direction of the states prefers: another set in each picture, the same in any batch."""

    def score(self, tokens, signals, stage):
        return tokens.hidden @ torch.sin(torch.arange(tokens.hidden.shape[-1]) * 2.3 + 1).to(tokens.hidden)


class Watch(Scatter):
    """Asks for signals and remembers what it was given."""

    def __init__(self, *signals):
        self._signals, self.seen = signals, []

    def needs(self, stage):
        return self._signals

    def score(self, tokens, signals, stage):
        self.seen.append((stage, tokens, signals))
        return super().score(tokens, signals, stage)


class Fold(Content):
    """Merges: a dropped token flows into one that stays, every third is dropped without trace; remembers its plans.

    Args:
        combine: as MergePlan.
        ordered: hand the tokens back in falling order.
        states: replace what the tokens hold by something else.
        proportional: as the engine's proportional attention.
    """

    def __init__(self, combine="mean", ordered=False, states=False, proportional=False):
        self.combine, self.ordered, self.replace = combine, ordered, states
        self.proportional_attention = proportional
        self.made, self.seen = [], []

    def select(self, tokens, signals, stage):
        keep = super().select(tokens, signals, stage).keep
        index = torch.arange(tokens.valid.shape[1]).expand_as(tokens.valid)
        stays = torch.zeros(len(keep), keep.shape[1] + index.shape[1] + 1, dtype=torch.bool)
        stays = stays.scatter(1, keep.masked_fill(keep < 0, index.shape[1]), True)[:, : index.shape[1]]
        counts = (keep >= 0).sum(1, keepdim=True).clamp(min=1)
        target = torch.where(stays, index, keep.gather(1, index % counts))
        target = target.masked_fill(~tokens.valid | (~stays & (index % 3 == 1)), -1)
        weight = 1.5 + torch.sin(index * 1.7)
        if self.ordered:
            keep = keep.gather(1, (-keep).masked_fill(keep < 0, 1).argsort(dim=1))
        states = None
        if self.replace:
            states = torch.sin(torch.arange(tokens.hidden.shape[-1]) + keep[..., None]).to(tokens.hidden)
        self.made.append((stage, keep, target, weight, states))
        self.seen.append((stage, tokens, signals))
        return Selection(keep, MergePlan(target, weight, self.combine), states, ordered=self.ordered)


class Count(Content):
    """Decides itself how many tokens each row keeps: as many as lie above the mean."""

    adaptive = True

    def select(self, tokens, signals, stage):
        score = self.score(tokens, signals, stage)
        mean = score.masked_fill(~tokens.valid, 0).sum(1, keepdim=True) / tokens.valid.sum(1, keepdim=True).clamp(min=1)
        counts = tuple(((score > mean) & tokens.valid).sum(1).tolist())
        return Selection(top_k(score, counts, tokens.valid), counts=counts)


def plan(*pairs, **more):
    """A schedule from (site, keep) pairs."""
    return Schedule(tuple(Stage(site, keep, **more) for site, keep in pairs))
