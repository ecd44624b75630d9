"""Stands in for the kernels of FlashAttention-2: functions of their signatures that compute densely from what they get.

transformers' own way to them runs as it is: its masks, its unpadding, its reading of position ids. Rows are aligned
with the last keys, as in the kernels from version 2.1 on, and a row without keys gives zeros.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from transformers import modeling_flash_attention_utils as way

FLASH = "flash_attention_2"


class Kernels:
    """The two functions of the package, and what they were called with."""

    def __init__(self):
        self.dense, self.ragged = 0, []

    def flash_attn_func(
        self,
        q,
        k,
        v,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
        return_attn_probs=False,
    ):
        """[B, R, Hq, d] of q [B, R, Hq, d], k and v [B, n, Hkv, d]."""
        self.dense += 1
        assert len(q) == len(k) == len(v)
        rows = zip(q, k, v, strict=True)
        return torch.stack([_attend(*row, softmax_scale, causal, window_size) for row in rows])

    def flash_attn_varlen_func(
        self,
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
        return_attn_probs=False,
        block_table=None,
    ):
        """[all R, Hq, d] of sequences laid end to end."""
        ends_q, ends_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
        self.ragged.append((ends_q, ends_k))
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert ends_q[0] == ends_k[0] == 0
        assert (ends_q[-1], ends_k[-1]) == (len(q), len(k))
        parts = []
        for a, b, c, d in zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False):
            assert b - a <= max_seqlen_q, "rows beyond max_seqlen_q are not computed"
            assert d - c <= max_seqlen_k, "keys beyond max_seqlen_k are not seen"
            parts.append(_attend(q[a:b], k[c:d], v[c:d], softmax_scale, causal, window_size))
        return torch.cat(parts)


def _attend(q, k, v, scale, causal, window):
    R, n = len(q), len(k)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    row, column = torch.arange(R)[:, None] + n - R, torch.arange(n)
    left, right = window
    seen = torch.ones(R, n, dtype=torch.bool)
    if causal:
        right = 0 if right < 0 else min(right, 0)
    if right >= 0:
        seen &= column <= row + right
    if left >= 0:
        seen &= column >= row - left
    logits = torch.einsum("rhd,nhd->hrn", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    probs = logits.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("hrn,nhd->rhd", probs, v)


@contextmanager
def kernels():
    """Let transformers find these functions where it looks for the package, under its name alone."""
    made = Kernels()

    def imported(implementation, *args, **kwargs):
        assert implementation == FLASH, f"no package has kernels called {implementation}"
        return made.flash_attn_func, made.flash_attn_varlen_func, None, way._pad_input, way._unpad_input

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(way, "_lazy_imports", imported)
        patch.setattr(way, "_loaded_implementation", None)
        yield made


def switched(host):
    """The same model with FlashAttention-2 in its decoder and its tower."""
    configs = {id(m.config): m.config for m in host.model.modules() if hasattr(m, "config")}
    for config in configs.values():
        config._attn_implementation = FLASH
    assert host.decoder.config._attn_implementation == FLASH
    return host
