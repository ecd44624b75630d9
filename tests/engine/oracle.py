"""Hiding tokens instead of removing them: an implementation of its own, sharing no code with the engine.

Every layer of the unpruned model gets an additive mask made from scratch. A token withdrawn in front of
layer l is hidden from every query of layer l and of those behind it, in prefill and in decode. In the vision
tower the same, picture by picture; what leaves there is hidden from the whole language model.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import accumulate

import tiny
import torch


@contextmanager
def hiding(lvlm, inputs, gone, renumber=False):
    """Hide tokens of the prompt from a decoder layer on.

    Args:
        inputs: the prompt, for its padding and its length.
        gone: (layer, per row a list of prompt places hidden from that layer on), in the order of the stages.
        renumber: which of them lower the positions behind all that is withdrawn by then; one for all, or one each.
    """
    real = inputs["attention_mask"].bool()
    B, S = real.shape
    closes = [renumber] * len(gone) if isinstance(renumber, bool) else renumber

    def before(layer):
        hidden_here, closed = torch.zeros(2, B, S, dtype=torch.bool)
        for (first, rows), close in zip(gone, closes, strict=True):
            if first <= layer:
                for b, places in enumerate(rows):
                    hidden_here[b, places] = True
                if close:
                    closed = hidden_here.clone()

        def hook(module, args, kwargs):
            hidden, cache = args[0], kwargs.get(tiny.CACHE)
            past = cache.get_seq_length(layer) if cache is not None else 0
            new = hidden.shape[1]
            seen = torch.zeros(B, past + new, dtype=torch.bool)
            seen[:, :S] = real & ~hidden_here
            seen[:, S:] = True
            causal = torch.arange(past + new)[None, :] <= torch.arange(past, past + new)[:, None]
            allowed = seen[:, None, None, :] & causal
            kwargs["attention_mask"] = additive(allowed, hidden.dtype)
            if any(closes):
                lower = torch.cat([closed.cumsum(1), closed.sum(1, keepdim=True).expand(B, past + new)], dim=1)
                position = kwargs["position_ids"].expand(B, -1) - lower[:, past : past + new]
                kwargs["position_embeddings"] = lvlm.decoder.rotary_emb(hidden, position)
            return args, kwargs

        return hook

    with hooked(lvlm.decoder.layers, before):
        yield


def hidden_from(layer, gone, shape):
    """[B, S] bool: places that are hidden from this layer on; `gone` as in `hiding`."""
    hidden = torch.zeros(shape, dtype=torch.bool)
    for first, rows in gone:
        if first <= layer:
            for b, places in enumerate(rows):
                hidden[b, places] = True
    return hidden


@contextmanager
def blinding(lvlm, gone):
    """Hide patches from the queries of the vision tower.

    Args:
        gone: (first layer that does not see them, per picture a list of patches).
    """
    front = 0 if lvlm.config.vision_feature_select_strategy == "full" else 1

    def before(layer):
        def hook(module, args, kwargs):
            hidden = args[0]
            seen = torch.ones(hidden.shape[:2], dtype=torch.bool)
            for first, pictures in gone:
                if first <= layer:
                    for p, patches in enumerate(pictures):
                        seen[p, [front + patch for patch in patches]] = False
            kwargs.pop("attention_mask", None)
            return (hidden, additive(seen[:, None, None, :], hidden.dtype)), kwargs

        return hook

    with hooked(lvlm.towers["vision"].layers, before):
        yield


@contextmanager
def hooked(layers, before):
    """A pre-hook, made for its number, on each layer."""
    hooks = [layer.register_forward_pre_hook(before(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def additive(allowed, dtype):
    """A mask that is added to logits."""
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def withdrawn(inputs, visual, call):
    """(layer, places) of each stage, from what a trace says was kept."""
    gone: list[tuple[int, list[list[int]]]] = []
    for stage in call.stages:
        first = max(stage.site.layer, 0) if stage.site.tower == "llm" else 0
        rows = []
        for b, kept in enumerate(stage.kept):
            places = visual[b].nonzero().flatten().tolist()
            rows.append([place for i, place in enumerate(places) if i not in kept])
        gone.append((first, rows))
    return gone


def unseen(visual, call, each, beams=1):
    """(first vision layer that does not see them, patches of each picture) of each stage in the tower.

    Args:
        each: patches of a picture.
        beams: rows of the trace that share one set of pictures.
    """
    gone = []
    for stage in call.stages:
        if stage.site.tower != "vision" or stage.site.kind == "output":
            continue
        pictures = []
        for kept, row in zip(stage.kept[::beams], visual[::beams], strict=True):
            for start in range(0, int(row.sum()), each):
                pictures.append([i for i in range(each) if start + i not in kept])
        gone.append((stage.site.layer + (stage.site.kind == "mlp"), pictures))
    return gone


def steps(lvlm, inputs, n=3, **more):
    """Greedy tokens and the logits of every step."""
    more = {"do_sample": False, "max_new_tokens": n, "min_new_tokens": n} | more
    with torch.no_grad():
        out = lvlm.generate(**inputs, return_dict_in_generate=True, output_logits=True, **more)
    return out.sequences, torch.stack(out.logits)


def alone(inputs, b, each):
    """Row b of a batch as a prompt of its own, without padding; pictures of `each` tokens."""
    real = inputs["attention_mask"][b].bool()
    counts = [0, *accumulate((inputs["input_ids"] == tiny.IMAGE).sum(1).tolist())]
    row = {"input_ids": inputs["input_ids"][b : b + 1, real], "attention_mask": torch.ones(1, int(real.sum())).long()}
    if counts[b] < counts[b + 1]:
        row["pixel_values"] = inputs["pixel_values"][counts[b] // each : counts[b + 1] // each]
    return row
