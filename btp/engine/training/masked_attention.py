"""Attention whose key columns are weighed by numbers in [0, 1], with gradient also where a weight is 0.

P_ij = exp(a_ij) M_j / sum_k exp(a_ik) M_k, and M_i = 1 for a row's own column. A weight of 0 takes the column away
exactly as removing its token would. Written block by block with its own backward pass, which recomputes: a bias of
log M would lose the gradient at 0, and holding all probabilities costs more time and memory than computing them again.

Source: Rao et al. 2021, arXiv:2106.02034, equation 11; used by arXiv:2501.13652, section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64  # query rows at once: their probabilities stay in the cache of a core
STEEPEST = 30.0  # exponent beyond a row's largest kept one up to which a hidden column's gradient is told apart


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, columns: Tensor, scaling: float
) -> Tensor:
    """Attention with weighed columns.

    Args:
        query: [B, Hq, S, d].
        key, value: [B, Hkv, S, d]; grouped heads are not repeated.
        mask: Mask as a layer gets it: None (causal), bool or additive [B or 1, 1 or Hq, S, S].
        columns: [B, S] weights, 1 for tokens that cannot be dropped.
        scaling: the layer's own factor.

    Returns:
        [B, Hq, S, d].
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
    return _Masked.apply(query, key, value, columns.to(query.dtype), mask, scaling, _is_causal(mask))  # type: ignore[return-value]


def _is_causal(mask: Tensor | None) -> bool:
    """Whether no row sees a later one, so that these need not be computed."""
    if mask is None:
        return True
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return not bool(seen.triu(1).any())


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, columns, mask, scaling, causal):
        out = torch.empty_like(query)
        most = query.new_empty(*query.shape[:3], 1)
        norm = torch.empty_like(most)
        for rows, cols in _blocks(query.shape[2], causal):
            logits = _logits(query, key, mask, rows, cols, scaling)
            weight = _weights(columns, rows, cols)
            most[:, :, rows] = logits.masked_fill(weight <= 0, -torch.inf).amax(-1, keepdim=True)
            shares = logits.sub_(most[:, :, rows]).clamp_(max=STEEPEST).exp_().mul_(weight)
            norm[:, :, rows] = shares.sum(-1, keepdim=True)
            out[:, :, rows] = (shares @ value[:, :, cols]).div_(norm[:, :, rows])
        ctx.save_for_backward(query, key, value, columns, mask, most, norm, out)
        ctx.scaling, ctx.causal = scaling, causal
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        query, key, value, columns, mask, most, norm, out = ctx.saved_tensors
        d_query, d_key, d_value = (torch.zeros_like(x) for x in (query, key, value))
        d_columns = torch.zeros_like(columns)
        common = (grad * out).sum(-1, keepdim=True)
        for rows, cols in _blocks(query.shape[2], ctx.causal):
            logits = _logits(query, key, mask, rows, cols, ctx.scaling)
            shares = logits.sub_(most[:, :, rows]).clamp_(max=STEEPEST).exp_().div_(norm[:, :, rows])
            weight = _weights(columns, rows, cols)
            upward = (grad[:, :, rows] @ value[:, :, cols].transpose(-1, -2)).sub_(common[:, :, rows])
            if ctx.needs_input_grad[3]:
                of_weight = (shares * upward).sum(1)  # [B, R, C]
                at = torch.arange(rows.start, rows.stop, device=grad.device)
                of_weight[:, at - rows.start, at] = 0  # a row's own column weighs 1 whatever M says
                d_columns[:, cols] += of_weight.sum(1)
            shares.mul_(weight)
            d_value[:, :, cols] += shares.transpose(-1, -2) @ grad[:, :, rows]
            upward.mul_(shares).mul_(ctx.scaling)
            d_query[:, :, rows] = upward @ key[:, :, cols]
            d_key[:, :, cols] += upward.transpose(-1, -2) @ query[:, :, rows]
        return d_query, d_key, d_value, d_columns, None, None, None


def _blocks(length: int, causal: bool):
    """Slices of query rows, each with the columns that it may see."""
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        yield slice(start, stop), slice(0, stop if causal else length)


def _logits(query: Tensor, key: Tensor, mask: Tensor | None, rows: slice, cols: slice, scaling: float) -> Tensor:
    """[B, H, R, C], -inf where a row may not look; at itself it always may."""
    logits = (query[:, :, rows] * scaling) @ key[:, :, cols].transpose(-1, -2)
    if mask is not None and mask.dtype != torch.bool:
        return logits.add_(mask[:, :, rows, cols])
    row = torch.arange(rows.start, rows.stop, device=query.device)[:, None]
    col = torch.arange(cols.start, cols.stop, device=query.device)
    seen = col <= row if mask is None else mask[:, :, rows, cols] | (col == row)
    return logits.masked_fill_(~seen, -torch.inf)


def _weights(columns: Tensor, rows: slice, cols: slice) -> Tensor:
    """[B, 1, R, C] weights of the columns for each row."""
    weight = columns[:, None, None, cols].repeat(1, 1, rows.stop - rows.start, 1)
    at = torch.arange(rows.start, rows.stop, device=columns.device)
    weight[:, :, at - rows.start, at] = 1
    return weight
