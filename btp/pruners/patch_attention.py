"""How much the vision tower attends to each visual token: what several methods rank by in front of the decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.check_settings import check_one_of
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal, Signals
from btp.core.site import Site

SCORES = {"cls": "cls", "received": "mean"}  # score -> rows of the attention signal
SITES = ("vision.output", "llm.input")
FEATURE = Site.parse("vision.feature")  # the layer whose output the projector reads


class PatchAttention:
    """Attention to each patch in one layer of the vision tower, averaged over heads.

    Args:
        score: cls, from the class token | received, from all tokens on average, for towers without class token.
        layer: The layer that the projector reads, or `vision.layer.N`.
        key: config key of `score`, for messages.
    """

    def __init__(self, score: str, layer: Site = FEATURE, key: str = "pruner.method.score") -> None:
        check_one_of(key, score, SCORES)
        self.signal = Signal("attention", layer, SCORES[score], "probs")

    def of(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] in float32 or better; what is no patch (a newline) has the lowest number there is."""
        seen = exact(signals[self.signal])[:, :, 0].mean(1)  # [P, N]
        if stage.site.tower == "vision":
            return seen
        found = by_token(seen, tokens)
        return found.masked_fill(~is_patch(tokens), torch.finfo(found.dtype).min)


class PatchAttentionPruner(Pruner):
    """Chooses once, in front of the decoder, by attention in the vision tower.

    Attributes:
        attention: What is ranked by.
    """

    attention: PatchAttention

    def check(self, schedule: Schedule) -> None:
        """Refuse stages behind the first decoder layer or inside the tower."""
        super().check(schedule)
        check_sites(schedule, self.name)

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """One row of attention of the tower's last layer that is used."""
        return () if stage.withdraws_all else (self.attention.signal,)


def by_token(seen: Tensor, tokens: Tokens) -> Tensor:
    """[B, N, ...] what was seen of pictures [P, n, ...], for the tokens of a prompt; 0 for those that are no patch."""
    patch = is_patch(tokens)
    assert tokens.picture is not None
    assert tokens.slot is not None
    found = seen[tokens.picture.clamp(min=0), tokens.slot.clamp(min=0)]
    return found.masked_fill(~patch.view(*patch.shape, *[1] * (found.dim() - 2)), 0)


def joined_keys(keys: Tensor, tokens: Tokens, stage: Stage) -> Tensor:
    """[B, N, H * d] keys [P, H, n, d] of the tower, all heads in one."""
    joined = exact(keys).transpose(1, 2).flatten(2)
    return joined if stage.site.tower == "vision" else by_token(joined, tokens)


def is_patch(tokens: Tokens) -> Tensor:
    """[B, N] bool: the token is one of the vision tower's."""
    assert tokens.picture is not None  # the engine fills them in wherever a vision signal is asked for
    assert tokens.slot is not None
    return (tokens.picture >= 0) & (tokens.slot >= 0)


def exact(x: Tensor) -> Tensor:
    """`x` in float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_sites(schedule: Schedule, method: str, first: int = 0) -> None:
    """Refuse stages that are not in front of the decoder, where each token is a patch.

    Args:
        schedule: Schedule of the method, or a part of it.
        method: Name of the method.
        first: number of the part's first stage.

    Raises:
        ValueError: names the config key and the sites there are.
    """
    for i, stage in enumerate(schedule, first):
        if str(stage.site) not in SITES and not stage.withdraws_all:
            raise ValueError(
                f"schedule.{i}.site is {stage.site}, but pruner {method!r} chooses once, in front of the language "
                f"model. Set schedule.{i}.site to vision.output (a count per picture) or llm.input (one for all)."
            )
