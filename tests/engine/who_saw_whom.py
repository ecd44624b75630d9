"""One dense forward over a prompt and its answer, in which every token sees what it saw in the step that computed it.

An implementation of its own, sharing no code with the engine: it reads nothing but the trace. That one matrix per stage
is enough shows that each token passed each layer once.
"""

from __future__ import annotations

import torch
from oracle import additive, hooked


def saw(call, b, length):
    """(first layer, [length, length] bool) of each stage: row i saw column j. Tokens never computed see themselves."""
    found = {}
    for step in call.steps:
        for record in step:
            layer = record.site.layer
            mask = found.setdefault(layer, torch.eye(length).bool())
            for i in record.computed_at[b]:
                assert mask[i].sum() == 1, f"{i} passed layer {layer} twice"
                mask[i, [j for j in record.seen_at[b] if j <= i]] = True
    return sorted(found.items())


def dense(host, call, b, inputs, more=()):
    """[length, V] logits of row b's whole sequence, given alone and without padding.

    Args:
        more: (first layer, who saw whom) of stages in front of those of phase both.
    """
    length = inputs["input_ids"].shape[1]
    stages = [(0, torch.ones(length, length).bool().tril()), *more, *saw(call, b, length)]

    def before(layer):
        mask = next(m for first, m in reversed(stages) if first <= layer)

        def hook(module, args, kwargs):
            kwargs["attention_mask"] = additive(mask[None, None], args[0].dtype)
            return args, kwargs

        return hook

    with torch.no_grad(), hooked(host.decoder.layers, before):
        return host(**inputs, use_cache=False).logits[0]


def worst(host, call, inputs, sequences, logits):
    """The largest difference between logits [steps, B, V] of a run and those of the dense forwards.

    Args:
        call: of the trace.
        inputs: the prompts, padded anywhere; input_ids and attention_mask alone.
        sequences: [B, S + steps] prompts with their answers.
    """
    S, most = inputs["input_ids"].shape[1], 0.0
    for b, real in enumerate(inputs["attention_mask"].bool()):
        ids = torch.cat([sequences[b, :S][real], sequences[b, S:]])[None, :-1]
        want = dense(host, call, b, {"input_ids": ids})[int(real.sum()) - 1 :]
        most = max(most, (want - logits[:, b]).abs().max().item())
    return most
