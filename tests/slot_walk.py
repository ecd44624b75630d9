"""One layer's cache made by hand, with queries, keys and values of its own: a method evicts from it as in a model."""

from __future__ import annotations

import types

import torch
from torch.nn.functional import scaled_dot_product_attention as attend

from btp.core.cache_pruner import every_of
from btp.core.signals import Signals
from btp.core.slots import Slots
from btp.engine.cache.decide_eviction import ask
from btp.engine.cache.layer_slots import Held
from btp.engine.cache.slot_signals import slot_signal
from btp.engine.hooks.attention_registry import Attending
from btp.engine.hooks.deferred_checks import Doubts


class SlotWalk:
    """A prompt, then one token a step.

    Args:
        pruner, stage: the method and its stage.
        q: [B, Hq, T, d] queries of prompt and answer; k, v: [B, Hkv, T, d].
        prompt: tokens of the prompt, of each row.
        layer, layers: where it stands.

    Attributes:
        kept: [B][Hkv] sorted positions held behind each forward, oldest forward first.
        scores: position -> the method's running score, in the same order.
        out: [B, Hq, R, d] what each forward's attention gave.
    """

    def __init__(self, pruner, stage, q, k, v, prompt, layer=0, layers=1):
        self.pruner, self.stage, self.layer, self.layers = pruner, stage, layer, layers
        self.q, self.k, self.v = q, k, v
        self.cache = types.SimpleNamespace(keys=k[:, :, :prompt], values=v[:, :, :prompt])
        B, self.heads = k.shape[:2]
        position = torch.arange(prompt).expand(B, 1, prompt)
        self.held = Held(position, torch.zeros_like(position, dtype=torch.bool), (prompt,) * B, (0,) * B)
        self.prompt, self.length = prompt, prompt
        self.kept, self.scores, self.out = [], [], []
        self._forward(q[:, :, :prompt], True)
        for t in range(prompt, q.shape[2]):
            self.length = t + 1
            self.cache.keys, self.cache.values = (
                torch.cat([old, new[:, :, t : t + 1]], dim=2)
                for old, new in ((self.cache.keys, k), (self.cache.values, v))
            )
            self.held.grow(torch.full((B, 1), t))
            self._forward(q[:, :, t : t + 1], False)

    def _forward(self, query, prefill):
        B, Hq, R, d = query.shape
        keys, values = self.cache.keys, self.cache.values
        wide = [x.repeat_interleave(Hq // self.heads, 1) for x in (keys, values)]
        self.out.append(attend(query, *wide, is_causal=prefill))
        now = Attending(self.layer, query, keys, values, None, d**-0.5, lambda mask: None)
        phase = self.stage.phase
        turn = (self.length - self.prompt) % every_of(self.stage) == 0
        due = phase != "decode" if prefill else phase != "prefill" and turn
        if prefill or phase != "prefill":
            slots = Slots(
                position=self.held.position.expand(B, self.heads, -1),
                length=torch.full((B,), self.length),
                prompt=torch.full((B,), self.prompt),
                layer=self.layer,
                layers=self.layers,
                groups=Hq // self.heads,
                new=R,
                prefill=prefill,
                due=due,
                carried={n: x.expand(B, self.heads, -1) for n, x in self.held.carried.items()},
                host_total=(self.prompt,) * B if isinstance(self.stage.keep, float) else (1 << 30,) * B,
                host_alive=self.held.alive,
                host_length=(self.length,) * B,
                running=self.held.running,
            )
            seen = {
                s: slot_signal(s, now, torch.ones(B, R, dtype=torch.bool), True) for s in self.pruner.needs(self.stage)
            }
            values, valid = ({s: pair[i] for s, pair in seen.items()} for i in (0, 1))
            valid = {s: x for s, x in valid.items() if x is not None}
            answer = ask(self.pruner, self.stage, slots, Signals(values, valid), Doubts())
            self.held.carried, self.held.running = dict(answer.carried), answer.running
            if answer.counts != self.held.alive:
                self.held.evict(self.cache, answer.stay, answer.counts, not self.pruner.in_order and not prefill)
        position = self.held.position.expand(B, self.heads, -1)
        self.kept.append([[sorted(p for p in head if p >= 0) for head in row] for row in position.tolist()])
        score = self.held.carried.get("score")
        if score is not None:
            score = score.expand(B, self.heads, -1)
            self.scores.append(
                [
                    [dict(zip(p, s, strict=True)) for p, s in zip(*row, strict=True)]
                    for row in zip(position.tolist(), score.tolist(), strict=True)
                ]
            )
