"""A small ViT that says of each patch of a picture whether it is foreground.

Source: Sah et al. 2024, arXiv:2410.09324, of which the abstract alone could be read: a ViT of 2 or 10 layers without a
class token, two scores a patch. Width, heads, norms and positions are ours: those of ViT-Tiny.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, M, width]."""
        B, M, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, M, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, M, width))
        return x + self.mlp(self.norm2(x))


class TokenClassifier(nn.Module):
    """Pixels to two scores a patch: background, foreground.

    Args:
        layers: 2 (small) or 10 (large) in the paper.
        width, heads: Width and heads of a block.
        patch: side of a patch in pixels; that of the model behind it.
        grid: patches along each side of the position table, which is resized to the picture's.
        channels: Channels of a picture.
    """

    def __init__(self, layers: int, width: int, heads: int, patch: int, grid: int, channels: int = 3) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(torch.zeros(1, width, grid, grid))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 2)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, M, 2] scores (background, foreground) of pictures [B, 3, h, w], patches in raster order."""
        x = self.embed(pixels)
        places = self.positions
        if places.shape[-2:] != x.shape[-2:]:
            places = F.interpolate(places, x.shape[-2:], mode="bicubic", align_corners=False)
        x = (x + places).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def patch_labels(foreground: Tensor, patch: int, above: float = 0.0, valid: Tensor | None = None) -> Tensor:
    """[B, M] 1 for patches of which a larger share than `above` is foreground, 0 for others, -1 without a valid pixel.

    Args:
        foreground: [B, h, w] bool: pixels of any object; those that no annotator decided on count too.
        patch: side of a patch.
        above: share of the valid pixels of a patch.
        valid: [B, h, w] bool, pixels that belong to the picture; None for all.
    """
    valid = torch.ones_like(foreground) if valid is None else valid

    def per_patch(x: Tensor) -> Tensor:
        return F.avg_pool2d(x.double()[:, None], patch).flatten(1) * patch**2

    there = per_patch(valid)
    share = per_patch(foreground & valid) / there.clamp(min=1)
    return (share > above).long().masked_fill(there == 0, -1)


def box_foreground(boxes: Tensor, height: int, width: int) -> Tensor:
    """[h, w] bool: pixels inside any of the boxes [n, 4] (left, top, right, bottom) in pixels."""
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    left, top, right, bottom = boxes.unbind(1)
    inside_rows = (rows > top[:, None]) & (rows < bottom[:, None])
    inside_columns = (columns > left[:, None]) & (columns < right[:, None])
    return (inside_rows[:, :, None] & inside_columns[:, None]).any(0)


def accumulated_loss(scores: Tensor, labels: Tensor, weight: float = 1.0) -> Tensor:
    """Mean cross-entropy over all patches of all pictures that have a label.

    Args:
        scores: [B, M, 2].
        labels: [B, M] 0 background, 1 foreground, -1 for none.
        weight: Weight of a foreground patch.

    Source: the paper's accumulative cross-entropy, as a review restates it.
    """
    each = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none").view_as(labels)
    each = torch.where(labels == 1, each * weight, each)
    return each.sum() / (labels >= 0).sum()


def foreground(
    probability: Tensor, valid: Tensor, threshold: float, background: float, floor: float
) -> tuple[Tensor, tuple[int, ...]]:
    """Scores whose highest are the patches to keep, and how many these are.

    Args:
        probability: [B, M] of being foreground.
        valid: [B, M] bool.
        threshold: Threshold from which on a patch is foreground.
        background: share of the other patches that stays too, the likeliest first.
        floor: share of all patches that stays at least.

    Returns:
        [B, M] the probabilities, and counts per row. Waits for the device.
    """
    inside = (probability >= threshold) & valid
    counts = []
    for found, real in zip(inside.sum(1).tolist(), valid.sum(1).tolist(), strict=True):
        more = _ceil(background * (real - found))
        counts.append(min(real, max(found + more, 1, _ceil(floor * real))))
    return probability, tuple(counts)


def _ceil(x: float) -> int:
    """Rounded up, with 1e-9 forgiven."""
    return int(-(-(x - 1e-9) // 1)) if x > 0 else 0
