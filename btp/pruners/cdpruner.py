"""CDPruner: tokens that matter to the question and differ from each other, by a determinantal point process."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.check_settings import check_one_of
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.ops.conditional_diversity import ascending, diverse_set

RELEVANCES = ("text", "inverse", "none")
EDGE = 1e-6  # so that the least relevant token counts for something


class CDPruner(Pruner):
    """Maximises diversity conditioned on the instruction.

    A token's relevance is its mean cosine to the text behind the first picture, brought to [0, 1] over the prompt's
    visual tokens. The kernel is relevance * cosine * relevance, and the tokens are picked one by one, each the one that
    enlarges the determinant of the chosen ones most. One selection over all pictures of a prompt.

    Args:
        relevance: text, the cosine to the embeddings of the text | inverse, its negative, as the released code for
            LLaVA has it, whose similarities come from CLIP's text encoder and are high for the background | none,
            diversity alone (the paper's ablation).

    Source: Zhang et al. 2025, arXiv:2506.10967, equations 5 to 9. LLaVA's language model has no CLIP text encoder, so
    that the text is compared where it meets the picture, at the decoder's input, as the paper does for towers without
    one.
    """

    def __init__(self, *, relevance: str) -> None:
        check_one_of("pruner.method.relevance", relevance, RELEVANCES)
        self.relevance = relevance

    def check(self, schedule: Schedule) -> None:
        """Refuse stages at which text and pictures are not in one space, side by side."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if str(stage.site) != "llm.input" and not stage.withdraws_all:
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner 'cdpruner' compares visual tokens with the text at "
                    f"the input of the language model. Set schedule.{i}.site to llm.input."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Embeddings of the text behind the first picture."""
        return () if self.relevance == "none" or stage.withdraws_all else (Signal("hidden", stage.site, "text"),)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Pick greedily."""
        relevance = self._relevance(tokens, signals, stage)
        picks = diverse_set(tokens.hidden, relevance, tokens.keep_counts(stage), tokens.valid)
        return Selection(ascending(picks, tokens.valid.shape[1]), scores=relevance)

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """Relevance; the rest of the choice is no number of a token alone."""
        return {"relevance": self._relevance(tokens, signals, stage)}

    def _relevance(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] in [0, 1] in float32 or better; 1 throughout where nothing tells the tokens apart."""
        exact = torch.promote_types(tokens.hidden.dtype, torch.float32)
        if self.relevance == "none":
            return torch.ones(tokens.valid.shape, dtype=exact, device=tokens.hidden.device)
        asked = self.needs(stage)[0]
        real = signals.rows_valid(asked)[..., None]
        words = normalize(signals[asked].to(exact), dim=-1).masked_fill(~real, 0).sum(1, keepdim=True)
        words = words / real.sum(1, keepdim=True).clamp(min=1)  # [B, 1, D]: a mean of cosines is one product with it
        alike = (normalize(tokens.hidden.to(exact), dim=-1) * words).sum(-1)
        alike = -alike if self.relevance == "inverse" else alike
        least = alike.masked_fill(~tokens.valid, torch.inf).amin(1, keepdim=True)
        most = alike.masked_fill(~tokens.valid, -torch.inf).amax(1, keepdim=True)
        found = (alike - least + EDGE) / (most - least).clamp(min=EDGE)
        return found.masked_fill(~tokens.valid, 0)
