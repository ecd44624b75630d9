"""TransPrune: keeps tokens that the layers change most, and those that the text looks at."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.check_settings import check_number, check_one_of, check_whole
from btp.core.pruner import ScorePruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal, Signals
from btp.core.site import Site
from btp.ops.transition import DIRECTIONS, share_of_sum, transition_weights
from btp.pruners.text_attention import mean_over

PARTS = ("attention", "mlp")


class TransPrune(ScorePruner):
    """Transition of tokens in the layers before the stage, plus the text's attention in the layer behind it.

    The transition of a token is the sum of `transition_weights` over attention and MLP of the last `accumulate`
    layers; what those layers did to tokens that are gone by now still counts in their normalisers. The attention is
    previewed, and averaged over heads and over the text behind the first image. Each of the two is divided by its sum
    over the visual tokens alive, then weighted by 2 alpha and 2 (1 - alpha).

    Settings of a stage: `accumulate`, in place of the method's. Where fewer layers lie before the stage, all of them
    count.

    Args:
        direction: signed (1 - cosine, the released code) | orthogonal (1 - |cosine|, the paper's equation 2).
        alpha: weight of the transition, in [0, 1]. At 1 the attention is not computed, at 0 the transition is not.
        accumulate: layers before a stage whose transitions count, 1 or more.

    Source: Li et al. 2025, arXiv:2507.20630, and its released code. It counts layers from 1: "after layer 7" is
    `llm.layer.7` here. With several images its text rows begin behind the first one (as it does for a single one),
    and all visual tokens of the prompt are ranked together. Dividing by the sums and renumbering positions are in the
    code alone.
    """

    stage_settings = frozenset({"accumulate"})

    def __init__(self, *, direction: str, alpha: float, accumulate: int) -> None:
        check_one_of("pruner.method.direction", direction, DIRECTIONS)
        check_number("pruner.method.alpha", alpha, "a number in [0, 1]", 0, 1)
        _check_layers("pruner.method.accumulate", accumulate)
        self.direction, self.alpha, self.accumulate = direction, float(alpha), accumulate

    def check(self, schedule: Schedule) -> None:
        """Refuse a stage without a decoder layer before and behind it, and an accumulate that counts no layer."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if stage.withdraws_all:
                if stage.settings:
                    raise ValueError(
                        f"schedule.{i}.accumulate has no effect: keep is 0, so nothing is left to choose. Remove it."
                    )
                continue
            if (stage.site.tower, stage.site.kind) != ("llm", "layer") or stage.site.layer < 1:
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner {self.name!r} ranks by what the decoder layers "
                    f"before the stage changed. Set schedule.{i}.site to llm.layer.1 or later."
                )
            _check_layers(f"schedule.{i}.accumulate", stage.settings.get("accumulate", self.accumulate))

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Changes of the layers that count, for the tokens alive and for all rows, and the coming attention.

        Raises:
            ValueError: no layer lies before the stage.
        """
        layers = self._layers(stage)
        changes = [Signal("change", site, rows, part) for site in layers for part in PARTS for rows in (None, "all")]
        return (*(changes if self.alpha > 0 else ()), *((_coming(stage),) if self.alpha < 1 else ()))

    def score(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] scores in float32; the sum over a row's tokens is 2."""
        score = torch.zeros(tokens.valid.shape, device=tokens.hidden.device)
        if self.alpha > 0:
            score = score + 2 * self.alpha * share_of_sum(self._transition(signals, stage), tokens.valid)
        if self.alpha < 1:
            coming = _coming(stage)
            attention = mean_over(signals[coming], signals.rows_valid(coming)).clamp(min=0)
            score = score + 2 * (1 - self.alpha) * share_of_sum(attention, tokens.valid)
        return score

    def _transition(self, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] transitions, summed over the layers that count."""
        parts = []
        for site in self._layers(stage):
            for part in PARTS:
                mine, everyone = (Signal("change", site, rows, part) for rows in (None, "all"))
                valid = signals.rows_valid(everyone)
                parts.append(transition_weights(signals[mine], signals[everyone], valid, self.direction))
        return torch.stack(parts).sum(0)

    def _layers(self, stage: Stage) -> list[Site]:
        last = stage.site.previous_layer.layer
        first = max(0, last + 1 - stage.settings.get("accumulate", self.accumulate))
        return [Site("llm", "layer", layer) for layer in range(first, last + 1)]


def _coming(stage: Stage) -> Signal:
    return Signal("preview", stage.site, "text", "probs")


def _check_layers(key: str, value: object) -> None:
    check_whole(key, value, "how many layers before the stage count, 1 or more")
