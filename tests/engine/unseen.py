"""Hiding patches of a vision model instead of removing them: an implementation of its own, sharing no code with the
engine. All rows stay; patches that are gone are hidden as keys in every layer from then on, and left out of means.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface


def gone_from(host, trace, rows):
    """Per layer [B, T] bool, rows hidden from its queries, and [B, T] those gone at the end."""
    fixed = set(host.towers["vision"].fixed(rows))
    patches = [row for row in range(rows) if row not in fixed]
    layers = []
    for at in range(len(host.layers) + 1):
        hidden = torch.zeros(len(trace[0].total), rows, dtype=torch.bool)
        for record in trace[0].stages:
            first = record.site.layer + (record.site.kind == "mlp")
            if first <= at:
                for b, kept in enumerate(record.kept):
                    gone = sorted(set(range(len(patches))) - set(kept))
                    hidden[b, [patches[i] for i in gone]] = True
        layers.append(hidden)
    return layers


@contextmanager
def hiding(host, gone):
    """The model with keys hidden; `gone` as of `gone_from`."""
    number = {id(module): at for at, layer in enumerate(host.layers) for module in layer.modules()}
    base = host.vision.config._attn_implementation

    def attention(module, query, key, value, mask, scaling=None, **kwargs):
        seen = ~gone[number[id(module)]][:, None, None, :].expand(-1, 1, query.shape[2], -1)
        seen = seen | torch.eye(query.shape[2], dtype=torch.bool)
        return scaled_dot_product_attention(query, key, value, seen, scale=scaling).transpose(1, 2).contiguous(), None

    def averaged(module, args, output):
        """Every patch holds the mean of those that are left."""
        T = output.shape[1]
        patch = torch.ones(T, dtype=torch.bool)
        patch[list(host.towers["vision"].fixed(T))] = False
        output = output.clone()
        for b in range(len(output)):
            output[b, patch] = output[b, patch & ~gone[-1][b]].mean(0)
        return output

    AttentionInterface.register("hidden_keys", attention)
    host.model.set_attn_implementation("hidden_keys")
    hook = None if host.averaged is None else host.averaged.register_forward_hook(averaged)
    try:
        yield
    finally:
        host.model.set_attn_implementation(base)
        AttentionInterface._global_mapping.pop("hidden_keys")
        if hook is not None:
            hook.remove()
