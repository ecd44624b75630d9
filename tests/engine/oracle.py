"""Hiding tokens instead of removing them: an implementation of its own, sharing no code with the engine.

Every layer of the unpruned model gets an additive mask made from scratch. A token withdrawn in front of
layer l is hidden from every query of layer l and of those behind it, in prefill and in decode.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch


@contextmanager
def hiding(lvlm, inputs, withdrawn, renumber=False):
    """Hide tokens from a layer on.

    Args:
        inputs: the prompt, for its padding and its length.
        withdrawn: layer -> per row a list of prompt places hidden from that layer on.
        renumber: lower the positions behind withdrawn tokens, per layer.
    """
    real = inputs["attention_mask"].bool()
    B, S = real.shape

    def before(layer):
        gone = torch.zeros(B, S, dtype=torch.bool)
        for first, rows in withdrawn.items():
            if first <= layer:
                for b, places in enumerate(rows):
                    gone[b, places] = True

        def hook(module, args, kwargs):
            hidden, cache = args[0], kwargs.get("past_key_values")
            past = cache.get_seq_length(layer) if cache is not None else 0
            new = hidden.shape[1]
            seen = torch.zeros(B, past + new, dtype=torch.bool)
            seen[:, :S] = real & ~gone
            seen[:, S:] = True
            causal = torch.arange(past + new)[None, :] <= torch.arange(past, past + new)[:, None]
            allowed = seen[:, None, None, :] & causal
            kwargs["attention_mask"] = torch.zeros(allowed.shape, dtype=hidden.dtype).masked_fill(
                ~allowed, torch.finfo(hidden.dtype).min
            )
            if renumber:
                lower = torch.cat([gone.cumsum(1), gone.sum(1, keepdim=True).expand(B, past + new)], dim=1)
                position = kwargs["position_ids"].expand(B, -1) - lower[:, past : past + new]
                kwargs["position_embeddings"] = lvlm.decoder.rotary_emb(hidden, position)
            return args, kwargs

        return hook

    hooks = [
        layer.register_forward_pre_hook(before(i), with_kwargs=True) for i, layer in enumerate(lvlm.decoder.layers)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def withdrawn(inputs, visual, call):
    """layer -> places, from what a trace says was kept."""
    gone: dict[int, list[list[int]]] = {}
    for stage in call.stages:
        first = max(stage.site.layer, 0)
        rows = []
        for b, kept in enumerate(stage.kept):
            places = visual[b].nonzero().flatten().tolist()
            rows.append([place for i, place in enumerate(places) if i not in kept])
        gone[first] = rows
    return gone


def steps(lvlm, inputs, n=3, **more):
    """Greedy tokens and the logits of every step."""
    more = {"do_sample": False, "max_new_tokens": n, "min_new_tokens": n} | more
    with torch.no_grad():
        out = lvlm.generate(**inputs, return_dict_in_generate=True, output_logits=True, **more)
    return out.sequences, torch.stack(out.logits)
