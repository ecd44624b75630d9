"""Text raters (SparseVLM): text tokens relevant to the image, and attention from them."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.keep import keep_count
from btp.core.topk import top_k


def text_scores(visual: Tensor, visual_valid: Tensor, text: Tensor, text_valid: Tensor) -> Tensor:
    """Relevance of each text token to the image: visual tokens' softmax over the text, averaged.

    The mean over visual tokens of softmax over text of (visual . text), without scaling, in float32 or better.

    Args:
        visual: [B, N, D] states of the visual tokens.
        visual_valid: [B, N] bool.
        text: [B, T, D] states of the text tokens.
        text_valid: [B, T] bool.

    Returns:
        [B, T]; sums to 1 over the real text tokens of a row, 0 where padded.

    Source: Zhang et al. 2024, arXiv:2410.04417, section 3.2, on the embeddings that enter the decoder.
    """
    exact = torch.promote_types(visual.dtype, torch.float32)
    logits = visual.to(exact) @ text.to(exact).mT  # [B, N, T]
    share = logits.masked_fill(~text_valid[:, None], -torch.inf).softmax(2)
    counted = visual_valid[..., None] & text_valid[:, None]
    total = share.masked_fill(~counted, 0).sum(1, dtype=torch.float64)  # so that equal text tokens score equally
    return (total / visual_valid.sum(1, keepdim=True).clamp(min=1)).to(exact)


def choose_raters(scores: Tensor, valid: Tensor) -> Tensor:
    """Mark the text tokens whose score is above the mean; all of them where none is.

    Args:
        scores: [B, T] as `text_scores` returns them.
        valid: [B, T] bool.

    Returns:
        [B, T] bool; empty only in a row without text.
    """
    mean = scores.masked_fill(~valid, 0).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
    above = (scores > mean) & valid
    return torch.where(above.any(1, keepdim=True), above, valid)


def position_kernel(text: Tensor, visual: Tensor) -> Tensor:
    """What rotary positions alone contribute: the scaled product of a query and a key of ones, both turned.

    It passes through zero and below with growing distance.

    Args:
        text: [2, B, T, d] cosine and sine of the queries' positions, in rotate-half form (first and second half of d
            are the pairs).
        visual: [2, B, N, d] the same of the keys.

    Returns:
        [B, T, N] float32 or better.
    """
    return _turned_ones(text) @ _turned_ones(visual).mT / text.shape[-1] ** 0.5


def bounded(kernel: Tensor, guard: float) -> Tensor:
    """`kernel` with magnitudes below `guard` raised to it, signs kept; the same as it was where guard is 0."""
    return torch.where(kernel.abs() < guard, torch.full_like(kernel, guard).copysign(kernel), kernel)


def loudest_heads(block: Tensor, heads: int | float) -> Tensor:
    """Keep the heads with the largest sum over the block.

    Args:
        block: [B, H, R, N] scores, 0 where a row or column does not count.
        heads: how many: an int, at most H, or a float, share of H rounded down; at least one.

    Returns:
        [B, h, R, N] in the order of the heads; ties to the lowest.
    """
    number = max(1, keep_count(heads, block.shape[1]))
    if number == block.shape[1]:
        return block
    chosen = top_k(block.sum((2, 3)), (number,) * block.shape[0])
    return block.gather(1, chosen[:, :, None, None].expand(-1, -1, *block.shape[2:]))


def block_rank(block: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Matrix rank of the real part of each block, with the tolerance that float32 has by default.

    Singular values are taken in float64, so that padding cannot move one across the tolerance.

    Args:
        block: [B, R, N] scores.
        rows: [B, R] bool, rows that count.
        columns: [B, N] bool, columns that count.

    Returns:
        [B] int64.
    """
    block = block.masked_fill(~(rows[..., None] & columns[:, None]), 0).double()
    longest = torch.maximum(rows.sum(1), columns.sum(1)).double()
    return torch.linalg.matrix_rank(block, rtol=longest * torch.finfo(torch.float32).eps)


def _turned_ones(rotary: Tensor) -> Tensor:
    """[B, R, d] a vector of ones behind RoPE: cos - sin in the first half, cos + sin in the second."""
    cos, sin = rotary.to(torch.promote_types(rotary.dtype, torch.float32))
    half = cos.shape[-1] // 2
    return torch.cat([cos[..., :half] - sin[..., :half], cos[..., half:] + sin[..., half:]], dim=-1)
