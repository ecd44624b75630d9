"""Hiding tokens on top of the host's own masks: works for any family, whatever its layers may see.

Unlike the oracle of tests/engine, which builds causal masks from scratch, this one takes the mask that the host made
for each layer and closes columns in it, so that it also holds where pictures are seen both ways or in windows.
"""

from __future__ import annotations

from contextlib import contextmanager

import tiny
import torch
from oracle import hidden_from, hooked


@contextmanager
def hiding(lvlm, inputs, gone, later=()):
    """Hide places of the prompt from a decoder layer on, in prefill and in decode.

    Args:
        inputs: the prompt, for its length.
        gone: (layer, per row a list of prompt places hidden from that layer on).
        later: (layers, per row a list of prompt places hidden in these layers from the first decode step on).
    """
    B, S = inputs["input_ids"].shape

    def before(layer):
        hidden_here = hidden_from(layer, gone, (B, S))

        def hook(module, args, kwargs):
            hidden, cache = args[0], kwargs.get(tiny.CACHE)
            past = cache.get_seq_length(layer) if cache is not None else 0
            new = hidden.shape[1]
            closed = torch.zeros(B, 1, 1, past + new, dtype=torch.bool)
            closed[:, 0, 0, :S] = hidden_here
            for layers, rows in later if past else ():
                for row, places in enumerate(rows if layer in layers else ()):
                    closed[row, 0, 0, places] = True
            mask = kwargs.get("attention_mask")
            if mask is None:
                mask = torch.ones(new, past + new, dtype=torch.bool).tril(past)
            mask = mask.expand(B, 1, *mask.shape[-2:])
            own = torch.eye(new, past + new, dtype=torch.bool)[None, None] & closed  # a row without keys is NaN
            if mask.dtype == torch.bool:
                kwargs["attention_mask"] = (mask & ~closed) | own
            else:
                kwargs["attention_mask"] = mask.masked_fill(closed & ~own, torch.finfo(mask.dtype).min)
            return args, kwargs

        return hook

    with hooked(lvlm.decoder.layers, before):
        yield
