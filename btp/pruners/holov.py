"""HoloV: every crop of the picture keeps tokens, as many as it matters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.check_settings import check_number, check_one_of, check_whole
from btp.core.keep import on_device
from btp.core.pruner import Tokens
from btp.core.schedule import Stage
from btp.core.selection import Selection
from btp.core.signals import Signals
from btp.core.topk import top_k
from btp.ops.apportion import apportion, best_of_groups
from btp.pruners.patch_attention import PatchAttention, PatchAttentionPruner, exact, is_patch

RANKS = ("attention", "holistic")
SCALES = ("crop", "picture")
TINY = 1e-30


class HoloV(PatchAttentionPruner):
    """Holistic context: tokens are shared among crops by worth, and each crop keeps its best.

    The tokens of a picture, row by row, are cut into `crops` runs of equal length. A token's holistic score is its
    attention plus beta times the variance of its cosines to the other tokens of its crop, brought to the scale of the
    attention. A crop gets tokens in proportion to its mean score, at most as many as it has.

    Args:
        crops: runs that a picture is cut into, at most as many as it has tokens.
        beta: weight of the variance.
        rank: attention, a crop keeps those with most attention, as released | holistic, those of highest score.
        scale: crop, the variance is scaled by its mean in the crop, as released; the mean score of every crop is then
            1 + beta times its mean attention, and beta changes no share | picture, by its mean in the picture.
        score: cls | received, a stand-in for towers without class token.

    Source: Zou et al. 2025, arXiv:2510.02912, section 4, and its released code.
    """

    def __init__(self, *, crops: int, beta: float, rank: str, scale: str, score: str) -> None:
        check_whole("pruner.method.crops", crops, "a number of crops, 1 or more")
        check_number("pruner.method.beta", beta, "a number, 0 or more", 0)
        for key, value, known in (("rank", rank, RANKS), ("scale", scale, SCALES)):
            check_one_of(f"pruner.method.{key}", value, known)
        self.crops, self.beta, self.rank, self.scale = crops, float(beta), rank, scale
        self.attention = PatchAttention(score)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Share the count among the crops, then keep the best of each."""
        attention, holistic, crop, sizes = self._worth(tokens, signals, stage)
        counts = tokens.keep_counts(stage)
        worth = _sums(holistic, crop, sizes) / sizes.clamp(min=1)
        quota = apportion(worth, on_device(counts, crop.device), sizes)
        by = attention if self.rank == "attention" else holistic
        stays = best_of_groups(by, crop, quota, tokens.valid)
        return Selection(top_k(stays.float(), counts, tokens.valid), scores=holistic)

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """Attention, and with the variance."""
        attention, holistic, *_ = self._worth(tokens, signals, stage)
        return {"attention": attention, "holistic": holistic}

    def _worth(self, tokens: Tokens, signals: Signals, stage: Stage) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B, N] attention, holistic score and crop of each token; [B, C] tokens of each crop."""
        attention = self.attention.of(tokens, signals, stage)
        shown = tokens.valid if stage.site.tower == "vision" else tokens.valid & is_patch(tokens)
        attention = attention.masked_fill(~shown, 0)
        crop, sizes = _crops(tokens, self.crops)
        spread = _variance(tokens, crop, sizes)
        groups = (crop, sizes) if self.scale == "crop" else (torch.zeros_like(crop), sizes.sum(1, keepdim=True))
        means = [_sums(x, *groups).gather(1, groups[0]) for x in (attention, spread)]
        holistic = attention + self.beta * spread * means[0] / means[1].clamp(min=TINY)
        return attention, holistic.masked_fill(~shown, 0), crop, sizes


def _crops(tokens: Tokens, most: int) -> tuple[Tensor, Tensor]:
    """[B, N] number of the run that each token lies in, the first ones a token longer; [B, C] tokens of each."""
    alive = tokens.valid.sum(1, keepdim=True)
    crops = alive.clamp(min=1, max=most)
    short, longer = alive // crops, alive % crops
    place = torch.arange(tokens.valid.shape[1], device=alive.device).expand_as(tokens.valid)
    edge = longer * (short + 1)
    crop = torch.where(place < edge, place // (short + 1), longer + (place - edge) // short.clamp(min=1))
    crop = crop.clamp(min=0, max=most - 1)
    number = torch.arange(most, device=alive.device)
    sizes = torch.where(number < crops, short + (number < longer), 0)
    return crop, sizes


def _variance(tokens: Tokens, crop: Tensor, sizes: Tensor) -> Tensor:
    """[B, N] variance of each token's cosines to the others of its crop, as the released code takes it.

    Its sum has a term more, the square of the mean, from the token's cosine to itself, which is set to 0.
    """
    unit = normalize(exact(tokens.hidden), dim=-1)
    B, N, D = unit.shape
    crops = sizes.shape[1]
    longest = -(-N // min(crops, N))
    within = torch.arange(N, device=unit.device) - (sizes.cumsum(1) - sizes).gather(1, crop)
    at = (crop * longest + within).masked_fill(~tokens.valid, crops * longest)  # padding goes behind the last one
    apart = unit.new_zeros(B, crops * longest + 1, D).scatter(1, at[..., None].expand_as(unit), unit)
    apart = apart[:, :-1].view(B, crops, longest, D)
    number = torch.arange(longest, device=unit.device)
    real = number < sizes[..., None]  # [B, C, n]
    pairs = real[..., None] & real[..., None, :]
    alike = (apart @ apart.mT).masked_fill(number[:, None] == number, 0)  # a block per crop
    others = (sizes - 1).clamp(min=1)[..., None]
    mean = alike.sum(-1) / others
    spread = ((alike - mean[..., None]).square() * pairs).sum(-1) / others
    spread = spread.flatten(1).gather(1, at.clamp(max=crops * longest - 1))
    return spread.masked_fill(~tokens.valid, 0)


def _sums(x: Tensor, crop: Tensor, sizes: Tensor) -> Tensor:
    """[B, C] sums over each crop of x [B, N], which is 0 where padded."""
    return x.new_zeros(sizes.shape).scatter_add(1, crop, x)
