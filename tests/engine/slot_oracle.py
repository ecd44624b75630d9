"""Hiding slots instead of evicting them: one dense forward over the finished sequence, with a mask per layer and head.

An implementation of its own: from what a trace says left which cache when, each layer and query head gets a mask over
all rows. It shares no code with the engine.
"""

from __future__ import annotations

from contextlib import contextmanager

import oracle
import tiny
import torch


def visible(call, at, b, tokens, heads, entered):
    """[Hkv, T, T] bool for row b: which places each place may look at in layer `at`.

    Args:
        tokens: T, real tokens of the prompt and of the answer that were fed.
        entered: places of the prompt that entered the layer.
    """
    prompt = tokens - call.decode_steps
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril().expand(heads, -1, -1).clone()
    out = [p for p in range(prompt) if p not in entered]
    seen[:, :, out] = False
    for record in call.evicted:
        if record.site.layer != at:
            continue
        for h in range(heads):
            for place in record.gone[b, h % record.gone.shape[1]].tolist():
                if place >= 0:
                    seen[h, prompt + record.step :, place] = False  # the step itself still saw it
    seen[:, range(tokens), range(tokens)] = True
    return seen


def dense(host, inputs, sequences, call, entered=None):
    """Logits [steps, B, V] of the answer's tokens, each row alone, without cache and engine."""
    rows, steps = [], call.decode_steps
    heads = host.config.get_text_config().num_key_value_heads
    groups = host.config.get_text_config().num_attention_heads // heads
    S = inputs["input_ids"].shape[1]
    for b in range(len(sequences)):
        real = inputs["attention_mask"][b].bool()
        fed = torch.cat([sequences[b, :S][real], sequences[b, S : S + steps]])[None]

        def before(at, b=b, length=fed.shape[1]):
            places = range(length) if entered is None else entered(at, b)
            seen = visible(call, at, b, length, heads, set(places)).repeat_interleave(groups, 0)[None]

            def hook(module, args, kwargs):
                kwargs["attention_mask"] = oracle.additive(seen, args[0].dtype)
                return args, kwargs

            return hook

        picture = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
        for name, x in picture.items():
            if x.shape == inputs["input_ids"].shape:  # kinds of tokens; the answer is text
                picture[name] = torch.cat([x[b, real], x.new_zeros(steps)])[None]
        with torch.no_grad(), oracle.hooked(host.decoder.layers, before):
            out = host.model(input_ids=fed, attention_mask=torch.ones_like(fed), use_cache=False, **picture)
        rows.append(out.logits[0, -(steps + 1) :])
    return torch.stack(rows, dim=1)


@contextmanager
def hiding_slots(host, inputs, call):
    """Hide in every decode step, per layer and query head, what a trace says left the layer's cache before.

    The prompt's own forward stays as it is; caches stay whole.
    """
    real = inputs["attention_mask"].bool()
    B, S = real.shape
    place = (real.cumsum(1) - 1).masked_fill(~real, -1)
    ends = real.sum(1).tolist()
    groups = host.decoder.config.num_attention_heads // host.decoder.config.num_key_value_heads

    def before(at):
        mine = [record for record in call.evicted if record.site.layer == at]

        def hook(module, args, kwargs):
            hidden, cache = args[0], kwargs.get(tiny.CACHE)
            if hidden.shape[1] > 1 or not mine:
                return None
            past = cache.get_seq_length(at)
            step = past + 1 - S
            heads = max(record.gone.shape[1] for record in mine)
            behind = [torch.arange(end, end + step) for end in ends]
            places = torch.cat([place, torch.stack(behind)], dim=1)[:, None]  # [B, 1, S + t]
            seen = (places >= 0).expand(B, heads, -1).clone()
            for record in mine:
                if record.step < step:
                    gone = record.gone.expand(-1, heads, -1)
                    seen &= ~((places[..., None] == gone[:, :, None]) & (gone >= 0)[:, :, None]).any(-1)
            wide = seen.repeat_interleave(groups, 1) if heads > 1 else seen
            kwargs["attention_mask"] = oracle.additive(wide[:, :, None], hidden.dtype)
            return args, kwargs

        return hook

    with oracle.hooked(host.decoder.layers, before):
        yield


def scale(logits):
    """How large logits are, for a tolerance."""
    return max(1.0, float(logits.abs().max()))
