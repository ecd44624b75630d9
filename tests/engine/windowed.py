"""Hiding tokens where layers have windows and pictures see themselves both ways: an oracle of its own.

It shares no code with the engine and takes nothing from the host's masks. Every mask is made from scratch over places
of the unpruned prompt; a layer with a window is shown the places that its cache still holds.
"""

from __future__ import annotations

from contextlib import contextmanager

import tiny
import torch
from families import gemma3
from oracle import additive, hidden_from, hooked

from btp.models.families.gemma3 import Gemma3

BOI, EOI, PIXELS = 3, 4, 9  # PIXELS: visual tokens of a picture


def gemma(window, attention="sdpa", dtype=torch.float32):
    """A tiny Gemma 3 of four layers, the second with full attention."""
    torch.manual_seed(0)
    model, _ = gemma3.build(window)
    model.set_attn_implementation(attention)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.12)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return Gemma3(model.eval().to(dtype))


def prompts(lvlm, rows, padding="left", seed=0):
    """Inputs from rows of ints (text tokens to write) and "i" for a picture."""
    random = torch.Generator().manual_seed(seed)
    image = lvlm.config.image_token_id
    lines, pictures = [], 0
    for row in rows:
        line = []
        for part in row:
            if part == "i":
                line += [BOI, *[image] * PIXELS, EOI]
                pictures += 1
            else:
                line += torch.randint(7, 300, (part,), generator=random).tolist()
        lines.append(line)
    S = max(map(len, lines))
    pads = [[0] * (S - len(line)) for line in lines]
    left = padding == "left"
    ids = torch.tensor([p + r if left else r + p for p, r in zip(pads, lines, strict=True)])
    real = [
        [0] * len(p) + [1] * len(r) if left else [1] * len(r) + [0] * len(p) for p, r in zip(pads, lines, strict=True)
    ]
    edge = lvlm.config.vision_config.image_size
    inputs = {"input_ids": ids, "attention_mask": torch.tensor(real), "token_type_ids": (ids == image).long()}
    if pictures:
        inputs["pixel_values"] = torch.randn(pictures, 3, edge, edge, generator=random).to(lvlm.dtype)
    return inputs


@contextmanager
def hiding(lvlm, inputs, gone, windows, renumber=False):
    """Hide places of the prompt from a decoder layer on, in prefill and in decode.

    Args:
        inputs: the prompt.
        gone: (layer, per row a list of prompt places hidden from that layer on).
        windows: of each layer; None for full attention.
        renumber: lower the positions behind all that is withdrawn.
    """
    real = inputs["attention_mask"].bool()
    B, S = real.shape
    kind = inputs.get("token_type_ids", torch.zeros(B, S))
    block, now = torch.zeros(B, S, dtype=torch.long), 0  # 0 for text, else which picture
    for b in range(B):
        for s in range(S):
            if kind[b, s] == 1:
                now += s == 0 or kind[b, s - 1] != 1
                block[b, s] = now

    def before(layer):
        hidden_here = hidden_from(layer, gone, (B, S))

        def hook(module, args, kwargs):
            hidden, cache = args[0], kwargs.get(tiny.CACHE)
            past = cache.get_seq_length(layer) if cache is not None else 0
            new = hidden.shape[1]
            total = past + new
            seen = torch.ones(B, total, dtype=torch.bool)
            seen[:, :S] = real & ~hidden_here
            picture = torch.zeros(B, total, dtype=torch.long)
            picture[:, :S] = block
            query, key = torch.arange(past, total)[:, None], torch.arange(total)[None, :]
            together = (picture[:, past:, None] == picture[:, None, :]) & (picture[:, None, :] > 0)
            allowed = (key <= query) | together
            if windows[layer] is not None:
                allowed = allowed & (query - key < windows[layer])
            allowed = (allowed & seen[:, None, :])[:, None]
            held = total
            if past and cache.layers[layer].is_sliding:
                held = min(past, windows[layer] - 1) + new
            kwargs["attention_mask"] = additive(allowed[..., -held:], hidden.dtype)
            if renumber:
                lower = torch.cat([hidden_here.cumsum(1), hidden_here.sum(1, keepdim=True).expand(B, total)], dim=1)
                position = kwargs["position_ids"].expand(B, -1) - lower[:, past:total]
                name = lvlm.decoder.config.layer_types[layer]
                kwargs["position_embeddings"] = lvlm.decoder.rotary_emb(hidden, position, name)
            return args, kwargs

        return hook

    with hooked(lvlm.decoder.layers, before):
        yield
