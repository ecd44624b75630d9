"""SCOPE: salient tokens that cover what the chosen ones do not stand for yet."""

from __future__ import annotations

from torch import Tensor

from btp.core.check_settings import check_number, check_one_of
from btp.core.pruner import Tokens
from btp.core.schedule import Stage
from btp.core.selection import Selection
from btp.core.signals import Signals
from btp.ops.conditional_diversity import ascending
from btp.ops.coverage import COMBINES, coverage_set
from btp.pruners.patch_attention import PatchAttention, PatchAttentionPruner


class Scope(PatchAttentionPruner):
    """Saliency-coverage oriented token pruning.

    Tokens are picked one by one, each the one whose coverage gain, times a power of its attention, is highest: the
    gain is how much the highest cosines of all tokens to the chosen ones rise by it.

    Args:
        alpha: power of the attention, 0 or more; 0 leaves coverage alone.
        combine: multiply (the paper) | add, gain plus attention (its ablation).
        score: cls | received, a stand-in for towers without class token.

    Source: Deng et al. 2025, arXiv:2510.24214, and its released code. Likeness is between what the vision tower hands
    to the projector; at `llm.input` between what the projector made of it.
    """

    def __init__(self, *, alpha: float, combine: str, score: str) -> None:
        check_number("pruner.method.alpha", alpha, "a number, 0 or more; the paper has 1", 0)
        check_one_of("pruner.method.combine", combine, COMBINES)
        self.alpha, self.combine = float(alpha), combine
        self.attention = PatchAttention(score)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Pick greedily."""
        saliency = self._saliency(tokens, signals, stage)
        picks = coverage_set(tokens.hidden, saliency, tokens.keep_counts(stage), self.combine, tokens.valid)
        return Selection(ascending(picks, tokens.valid.shape[1]), scores=saliency)

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """Saliency; the rest of the choice is no number of a token alone."""
        return {"saliency": self._saliency(tokens, signals, stage)}

    def _saliency(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] attention to the power of alpha; 0 off the grid and where padded."""
        attention = self.attention.of(tokens, signals, stage)
        return attention.clamp(min=0).pow(self.alpha).masked_fill(~tokens.valid | (attention < 0), 0)
