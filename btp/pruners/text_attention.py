"""How much the prompt's text looks at each visual token, in the layer in front of a stage."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.check_settings import check_one_of
from btp.core.pruner import Tokens
from btp.core.schedule import Stage
from btp.core.signals import Signal, Signals
from btp.core.site import Site
from btp.core.topk import lowest

SCORES = ("logits", "probs")
SOURCES = ("last", "mean", "similar")


@dataclass(frozen=True)
class TextAttention:
    """A score for visual tokens: attention from the text to them, averaged over heads.

    Attributes:
        score: logits (scaled, before the softmax) | probs.
        source: who looks: last (the prompt's last token) | mean (over the text behind the first image) |
            similar (the one text token whose hidden state has the highest mean cosine to the visual tokens).

    Raises:
        ValueError: score or source is unknown.
    """

    score: str
    source: str

    def __post_init__(self) -> None:
        for name, value, known in (("score", self.score, SCORES), ("source", self.source, SOURCES)):
            check_one_of(f"pruner.method.{name}", value, known)

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """The attention of the layer before the stage; for `similar` the text at the stage too."""
        signals = (self._attention(stage),)
        return (*signals, self._text(stage)) if self.source == "similar" else signals

    def of(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] scores in float32; the lowest finite number for a token that no row may look at."""
        attention = signals[self._attention(stage)]
        if self.source == "last":
            return lowest(attention.float().mean((1, 2)))
        rows = signals.rows_valid(self._attention(stage))
        if self.source == "similar":
            rows = nearest_text(tokens.hidden, tokens.valid, signals[self._text(stage)], rows)
        return lowest(mean_over(attention, rows))

    def check(self, i: int, stage: Stage, name: str, instead: str = "") -> None:
        """Refuse a stage that has no decoder layer before it.

        Args:
            i: number of the stage, for the message.
            stage: Stage to look at.
            name: Name of the pruner.
            instead: what else the reader may change.

        Raises:
            ValueError: names the config key.
        """
        if stage.site.tower != "llm" or stage.site.kind == "cache" or stage.site.layer < 1:
            raise ValueError(
                f"schedule.{i}.site is {stage.site}, but pruner {name!r} ranks by the text's attention in "
                f"the decoder layer before the stage, and there is none. Set schedule.{i}.site to "
                f"llm.layer.1 or later{instead}."
            )

    def _attention(self, stage: Stage) -> Signal:
        return _attention_before(stage.site, "last" if self.source == "last" else "text", self.score)

    def _text(self, stage: Stage) -> Signal:
        return Signal("hidden", stage.site, "text")


@lru_cache
def _attention_before(site: Site, rows: str, form: str) -> Signal:
    return Signal("attention", site.previous_layer, rows, form)


def mean_over(attention: Tensor, rows: Tensor) -> Tensor:
    """Mean over heads and over those of `rows` that may look at a token.

    Args:
        attention: [B, H, R, N] logits, -inf where the mask forbids, or probs.
        rows: [B, R] bool, rows that count.

    Returns:
        [B, N] float32, -inf for a token that no row may look at.
    """
    attention = attention.float()
    counted = rows[:, None, :, None] & attention.isfinite()
    number = counted.sum((1, 2))
    total = attention.masked_fill(~counted, 0).sum((1, 2))
    return (total / number.clamp(min=1)).masked_fill(number == 0, -torch.inf)


def nearest_text(hidden: Tensor, valid: Tensor, text: Tensor, text_valid: Tensor) -> Tensor:
    """Mark the text token that is most like the image.

    Args:
        hidden: [B, N, D] visual tokens.
        valid: [B, N] bool.
        text: [B, T, D] text tokens.
        text_valid: [B, T] bool.

    Returns:
        [B, T] bool, at most one per row: the highest mean cosine to the visual tokens, ties to the first.
    """
    image = normalize(hidden.float(), dim=-1).masked_fill(~valid[..., None], 0).sum(1, keepdim=True)
    alike = (normalize(text.float(), dim=-1) * image).sum(-1).masked_fill(~text_valid, -torch.inf)
    if not text.shape[1]:
        return text_valid
    first = torch.arange(text.shape[1], device=text.device) == alike.argmax(1, keepdim=True)
    return first & text_valid
