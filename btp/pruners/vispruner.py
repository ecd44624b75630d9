"""VisPruner: the patches that the class token looks at, and of the others those that no other stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.check_settings import check_number, check_whole
from btp.core.pruner import Tokens
from btp.core.schedule import Stage
from btp.core.selection import Selection
from btp.core.signals import Signals
from btp.core.topk import marked, top_k
from btp.ops.duplicates import without_duplicates
from btp.pruners.patch_attention import PatchAttention, PatchAttentionPruner


class VisPruner(PatchAttentionPruner):
    """Important tokens by visual attention, diverse ones by removing duplicates from the rest.

    Of k tokens, int(k * important) are those with most attention from the class token in the layer whose output the
    projector reads. The others stand in a line by falling attention; round after round every second one is compared
    with those between, and the most alike go, until k are left.

    Args:
        important: share of the kept tokens chosen by attention, in [0, 1].
        step: tokens that go in a round.
        score: cls | received, a stand-in for towers without class token, which the authors name too.

    Source: Zhang et al. 2025, arXiv:2412.01818v2, and its released code. Likeness is between what the vision tower
    hands to the projector; at `llm.input` between what the projector made of it.
    """

    def __init__(self, *, important: float, step: int, score: str) -> None:
        check_number("pruner.method.important", important, "a share of the kept tokens in [0, 1]", 0, 1)
        check_whole("pruner.method.step", step, "how many tokens go in a round, 1 or more")
        self.important, self.step = float(important), step
        self.attention = PatchAttention(score)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Important tokens first, then what is left without duplicates."""
        scores = self.attention.of(tokens, signals, stage)
        counts = tokens.keep_counts(stage)
        alive = tokens.host_alive or tuple(tokens.valid.sum(1).tolist())
        first = self._first(counts)
        chosen = marked(top_k(scores, first, tokens.valid), tokens.valid.shape[1])
        line = scores.masked_fill(chosen | ~tokens.valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
        sizes = [n - k for n, k in zip(alive, first, strict=True)]
        rest = [k - own for k, own in zip(counts, first, strict=True)]
        stays = chosen | without_duplicates(tokens.hidden, line[:, : max(sizes)], sizes, rest, self.step)
        return Selection(top_k(stays.float(), counts, tokens.valid), scores=scores)

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """Which of the two rules kept a token."""
        scores, counts = self.attention.of(tokens, signals, stage), tokens.keep_counts(stage)
        n = tokens.valid.shape[1]
        important = marked(top_k(scores, self._first(counts), tokens.valid), n)
        kept = marked(self.select(tokens, signals, stage).keep, n)
        return {"important": important, "diverse": kept & ~important}

    def _first(self, counts: tuple[int, ...]) -> tuple[int, ...]:
        """How many of each row attention chooses."""
        return tuple(int(k * self.important + 1e-6) for k in counts)
