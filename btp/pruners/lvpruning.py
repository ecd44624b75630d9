"""LVPruning: at three depths a small network, trained with the model frozen, looks from each token at the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from btp.core.check_settings import check_number, check_whole
from btp.core.pruner import Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.topk import marked, top_k, unscored
from btp.core.trained import Masked, Soft, Trained
from btp.pruners.random import Random
from btp.pruners.trained_folder import read_weights

KEEP, DROP = 2.0, -2.0  # bias of the two decisions at first: a training begins near keeping all
NARROW = 0.1  # spread of the decisions between tokens at first


class LVPruning(Trained):
    """Keeps the tokens that a stage's module gives the highest score for staying.

    Args:
        width: Width of the modules inside; null takes the width of the hidden states, as the paper does.
        blocks: Blocks of cross-attention, one behind the other.
        heads: Heads of each; they divide the width.
        tau: temperature of the sampled decisions in training.
        noise: Share of that sampling's noise in the decisions of inference: 0, as in the paper, keeps the highest
            scores; 1 draws as in training, without replacement. A sample has the same noise alone and in a batch.
        seed: Seed of untrained modules, and of the noise.
        weights: folder of trained modules; null leaves them untrained.
        digest: Digest of the weights, where it is known.

    Source: Sun et al. 2025, arXiv:2501.13652, section 3. "After layer 1" there is `llm.layer.1` here. No code was
    released: that a block projects its output, that nothing leads around its MLP, that answers are hidden from the
    modules, and how they begin, are ours (docs/fidelity.md).
    """

    stage_settings = frozenset({"target"})
    loss_names = ("ratio",)

    def __init__(
        self,
        *,
        width: int | None,
        blocks: int,
        heads: int,
        tau: float,
        noise: float,
        seed: int,
        weights: str | None = None,
        digest: str | None = None,
    ) -> None:
        super().__init__(seed)
        for key, value in {"blocks": blocks, "heads": heads, "width": heads if width is None else width}.items():
            check_whole(f"pruner.method.{key}", value, "an int of 1 or more")
        if not tau > 0:
            raise ValueError(f"pruner.method.tau is {tau!r}. Write a number above 0.")
        check_number("pruner.method.noise", noise, "a number from 0 on; the paper has 0", 0)
        self.inner, self.blocks, self.heads, self.tau = width, blocks, heads, float(tau)
        self.noise, self.random = float(noise), Random(seed=seed, salt="content")
        if weights is not None:
            read_weights(self, weights, digest)

    def make_module(self, width: int) -> nn.Module:
        """A stage's module."""
        inner = width if self.inner is None else self.inner
        if inner % self.heads:
            raise ValueError(
                f"pruner.method.heads is {self.heads}, which does not divide the width of the modules, {inner}. Set "
                "pruner.method.heads or pruner.method.width."
            )
        return Decision(width, inner, self.blocks, self.heads)

    def check(self, schedule: Schedule) -> None:
        """Refuse targets that are no shares."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            target = stage.settings.get("target")
            if target is not None and not (isinstance(target, int | float) and 0 < target <= 1):
                raise ValueError(
                    f"schedule.{i}.target is {target!r}. Write the share of the original tokens that training aims at, "
                    "above 0 and at most 1."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """The states of the text behind the picture, in front of the stage's layer."""
        return (Signal("hidden", stage.site, "text"),)

    def decide(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N, 2] logits of keeping and of dropping each token, in float32 or better."""
        (text,) = self.needs(stage)
        module = self.module_of(stage, tokens)
        like = next(module.parameters())
        return module(tokens.hidden.to(like), signals[text].to(like), signals.rows_valid(text)).float()

    def ranking(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] log-odds of staying."""
        keep, drop = self.decide(tokens, signals, stage).unbind(-1)
        return keep - drop

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """The stage's number of tokens with the highest scores, or drawn by them."""
        scores = self.ranking(tokens, signals, stage).detach()
        if self.noise:
            scores = scores + self.noise * logistic(self.random.score(tokens, signals, stage)).to(scores)
        return Selection(top_k(scores, tokens.keep_counts(stage), tokens.valid), scores=scores)

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """The probability of staying."""
        return {"score": unscored(self.ranking(tokens, signals, stage).detach().sigmoid())}

    def soften(self, tokens: Tokens, signals: Signals, stage: Stage) -> Soft:
        """Sampled decisions, 0 or 1, whose gradient is that of their probabilities (Gumbel-softmax)."""
        weight = F.gumbel_softmax(self.decide(tokens, signals, stage), self.tau, hard=True)[..., 0]
        return Soft(weight.to(tokens.hidden.dtype), weight.detach() > 0.5)

    def aim(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """As many as the stage's target, with the highest scores."""
        aimed = replace(stage, keep=_target(stage), solver=None)
        keep = top_k(self.ranking(tokens, signals, stage), tokens.keep_counts(aimed), tokens.valid)
        return marked(keep, tokens.valid.shape[1])

    def losses(self, stages: Sequence[Masked], num_layers: int) -> dict[str, Tensor]:
        """Distance of the shares that stay from the stages' targets: smooth L1 with beta 0.5, which is the square
        below 0.5.

        Raises:
            ValueError: a stage has no target.
        """
        missed = []
        for masked in stages:
            share = masked.count.float() / masked.total.clamp(min=1)
            missed.append(F.smooth_l1_loss(share, torch.full_like(share, _target(masked.stage)), beta=0.5))
        return {"ratio": torch.stack(missed).mean()}


def logistic(number: Tensor) -> Tensor:
    """Noise of the standard logistic distribution, the difference of two Gumbel-distributed numbers, in float64.

    Args:
        number: int64 evenly spread over 0 to 2^31 - 1.
    """
    share = (number.double() + 0.5) / 2**31
    return share.log() - (-share).log1p()


def _target(stage: Stage) -> float:
    target = stage.settings.get("target")
    if target is None:
        raise ValueError(
            f"the stage at {stage.site} has no target, the share of tokens that training aims at. Write target on "
            "every stage of pruner.schedule."
        )
    return float(target)


class Decision(nn.Module):
    """Cross-attention from visual tokens to the text, and two numbers for each token: stay and go.

    Args:
        width: Width of the states.
        inner: Inner of the module; another one is reached by a linear map in front.
        blocks, heads: Blocks and heads of the attention.
    """

    def __init__(self, width: int, inner: int, blocks: int, heads: int) -> None:
        super().__init__()
        self.enter = nn.Identity() if inner == width else nn.Linear(width, inner)
        self.blocks = nn.ModuleList(CrossAttention(inner, heads) for _ in range(blocks))
        self.head = nn.Linear(inner, 2)
        with torch.no_grad():
            self.head.weight.normal_(std=NARROW * inner**-0.5)
            self.head.bias.copy_(torch.tensor([KEEP, DROP]))

    def forward(self, visual: Tensor, text: Tensor, text_valid: Tensor) -> Tensor:
        """[B, N, 2] from states [B, N, D] and [B, T, D], of which text_valid [B, T] are real."""
        visual, text = self.enter(visual), self.enter(text)
        for block in self.blocks:
            visual = block(visual, text, text_valid)
        return self.head(visual)


class CrossAttention(nn.Module):
    """Attention whose residual is the projected query, and an MLP between two norms without a way around it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, width),
            nn.LayerNorm(width),
        )

    def forward(self, visual: Tensor, text: Tensor, text_valid: Tensor) -> Tensor:
        """[B, N, D] from states [B, N, D] and [B, T, D], of which text_valid [B, T] are real."""
        query = self.query(visual)
        mask = text_valid[:, None, None, :] | ~text_valid.any(1)[:, None, None, None]  # a prompt without text
        seen = F.scaled_dot_product_attention(
            self._split(query), self._split(self.key(text)), self._split(self.value(text)), attn_mask=mask
        )
        return self.mlp(self.out(seen.transpose(1, 2).flatten(2)) + query)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, N, d]
