"""ATP without training: a token stays whose redundancy score is well above the mean, or is the best of its cell."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.check_settings import check_one_of, check_whole
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.pruners.redundancy import COUNTS, Redundancy, at_least_one, choose, rules


class ATPFree(Pruner):
    """ATP-LLaVA's score with a threshold that nobody learned.

    Args:
        inside: As in ATP-LLaVA.
        norm: As in ATP-LLaVA.
        deviations: standard deviations above the mean from which a token stays.
        cell: rows and columns of a cell, of which the best token stays; 0 has none.
        count: stage (exactly its keep: the best of each cell, then by redundancy) | own (what the rule says).

    Source: derived from Ye et al. 2024, arXiv:2412.00447, by others, who ran it on a frozen model.
    """

    def __init__(self, *, inside: str, norm: str, deviations: float, cell: int, count: str) -> None:
        check_one_of("pruner.method.count", count, COUNTS)
        check_whole("pruner.method.cell", cell, "an int of 0 or more", least=0)
        self.scored = Redundancy(inside, norm, (1,), 1.0)
        self.deviations, self.cell, self.own = float(deviations), cell, count == "own"
        self.adaptive = self.own

    def check(self, schedule: Schedule) -> None:
        """Refuse a stage without a layer before it."""
        super().check(schedule)
        for stage in schedule:
            self.needs(stage)

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Queries and keys of the visual tokens, and the text's attention to them, in the layer before the stage."""
        return self.scored.needs(stage)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """What the rule lets stay, or the stage's number of tokens."""
        return self._select(tokens, signals, stage)[0]

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """The score, and by which rule each token stayed."""
        selection, score, passed, best = self._select(tokens, signals, stage)
        return {"score": score, **rules(tokens, stage, selection, {"cell": best, "redundancy": passed})}

    def _select(self, tokens: Tokens, signals: Signals, stage: Stage) -> tuple[Selection, Tensor, Tensor, Tensor]:
        score, valid = self.scored(tokens, signals, stage).redundancy, tokens.valid
        count = valid.sum(1, keepdim=True).clamp(min=1)
        mean = (score * valid).sum(1, keepdim=True) / count
        spread = (((score - mean) * valid).square().sum(1, keepdim=True) / count).sqrt()
        passed = score > mean + self.deviations * spread
        best = self._best(score, tokens)
        stays = at_least_one(passed | best, score, valid)
        return choose(tokens, stage, stays, best, score, self.own), score, passed, best

    def _best(self, score: Tensor, tokens: Tokens) -> Tensor:
        """[B, N] bool: the highest score of each cell of each picture; ties go to the lowest index."""
        frame, row, column = tokens.coord.unbind(-1)
        if not self.cell or not tokens.valid.shape[1]:
            return torch.zeros_like(tokens.valid)
        there = tokens.valid & (row >= 0)
        place = torch.stack([tokens.image, frame, row // self.cell, column // self.cell], dim=-1)  # [B, N, 4]
        same = (place[:, :, None] == place[:, None]).all(-1) & there[:, None]
        index = torch.arange(score.shape[1], device=score.device)
        better = (score[:, None] > score[:, :, None]) | (
            (score[:, None] == score[:, :, None]) & (index < index[:, None])
        )
        return there & ~(same & better).any(-1)
