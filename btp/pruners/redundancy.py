"""What ATP-LLaVA ranks by: how much attention a token receives, and how coarse a grid of the picture it lies on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from btp.core.check_settings import check_one_of
from btp.core.pruner import Tokens
from btp.core.schedule import Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.topk import marked, top_k
from btp.ops.redundancy import grid_scores, received_from_text, received_inside, spread_out

SELF = ("open", "causal", "logits")
NORMS = ("minmax", "none")
COUNTS = ("stage", "own")


@dataclass(frozen=True)
class Scores:
    """Of the tokens at a stage, all [B, N], without gradient.

    Attributes:
        inside, text: attention from the visual tokens and from the text, as the method normalises them.
        redundancy: mean of the two, higher = less redundant.
        spatial: Stride of the coarsest grid.
    """

    inside: Tensor
    text: Tensor
    redundancy: Tensor
    spatial: Tensor


class Redundancy:
    """Makes the scores of a stage.

    Args:
        inside: open | causal | logits, see `btp.ops.redundancy.received_inside`.
        norm: minmax (each score over its tokens, from 0 to 1) | none.
        strides: Strides of the grids.
        sample: weight of a grid's density in its score.

    Raises:
        ValueError: a setting is out of range; names its key.
    """

    def __init__(self, inside: str, norm: str, strides: Sequence[int], sample: float) -> None:
        for key, value, known in (("inside", inside, SELF), ("norm", norm, NORMS)):
            check_one_of(f"pruner.method.{key}", value, known)
        if not strides or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in strides):
            raise ValueError(f"pruner.method.strides is {strides!r}. Write a list of ints of 1 or more, as [2, 4].")
        self.inside, self.norm, self.strides, self.sample = inside, norm, tuple(strides), float(sample)

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Queries, keys and the text's attention in the layer before the stage."""
        before = stage.site.previous_layer
        return (Signal("queries", before), Signal("keys", before), Signal("attention", before, "text"))

    def __call__(self, tokens: Tokens, signals: Signals, stage: Stage) -> Scores:
        """The scores of the tokens that are there."""
        queries, keys, text = self.needs(stage)
        with torch.no_grad():
            inside = received_inside(signals[queries], signals[keys], tokens.valid, self.inside)
            from_text = received_from_text(signals[text].to(inside.dtype), signals.rows_valid(text))
            if self.norm == "minmax":
                inside, from_text = spread_out(inside, tokens.valid), spread_out(from_text, tokens.valid)
            spatial = grid_scores(tokens.coord, self.strides, self.sample).to(inside.dtype)
            return Scores(inside, from_text, (inside + from_text) / 2, spatial)


def at_least_one(stays: Tensor, scores: Tensor, valid: Tensor) -> Tensor:
    """[B, N] bool: `stays` among valid tokens, with the highest score of a row of which nothing would."""
    stays = stays & valid
    best = scores.masked_fill(~valid, -torch.inf).argmax(1, keepdim=True)
    alone = torch.zeros_like(stays).scatter(1, best, True) & valid
    return torch.where(stays.any(1, keepdim=True), stays, alone)


def choose(tokens: Tokens, stage: Stage, stays: Tensor, first: Tensor, redundancy: Tensor, own: bool) -> Selection:
    """Keep what the method's own rule lets stay, or exactly the stage's number: those `first`, then by redundancy.

    The second is the rule with the threshold of redundancy moved until the number is met. A keep of 1.0 keeps all.

    Args:
        stays: [B, N] bool, of the rule.
        first: [B, N] bool, tokens that stay whatever their redundancy.
        own: take the rule.
    """
    scores = redundancy + first.to(redundancy.dtype) * (2 + redundancy.detach().abs().amax())
    if not own or (isinstance(stage.keep, float) and stage.keep == 1.0):
        return Selection(top_k(scores, tokens.keep_counts(stage), tokens.valid), scores=scores)
    counts = tuple(stays.sum(1).tolist())
    return Selection(top_k(stays.float(), counts, tokens.valid), counts=counts, scores=scores)


def rules(tokens: Tokens, stage: Stage, selection: Selection, reasons: dict[str, Tensor]) -> dict[str, Tensor]:
    """Which reason, the first that applies, each kept token has; `rank` where none does."""
    left = marked(selection.keep, tokens.valid.shape[1])
    found = {}
    for name, holds in reasons.items():
        found[name] = left & holds
        left = left & ~holds
    return found | {"rank": left}
