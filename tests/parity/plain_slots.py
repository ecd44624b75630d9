"""A Llama with grouped heads in plain float32 whose cache is a list of slots per layer and key head: nothing of the
engine, of transformers' caches or of attention kernels. Rows run one by one, without padding."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.functional import silu

from parity.plain_llama import PlainLlama

EPSILON = 1e-8


@dataclass
class Head:
    """Slots of one key head: n places in the sequence, keys and values [n, d], and a running score [n]."""

    position: list[int] = field(default_factory=list)
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    score: torch.Tensor = field(default_factory=lambda: torch.zeros(0))

    def append(self, position, keys, values):
        """Add rows [R, d]."""
        self.position = [*self.position, *position]
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys])
        self.values = values if self.values is None else torch.cat([self.values, values])
        self.score = torch.cat([self.score, torch.zeros(len(position))])

    def keep(self, index):
        """Slots at these indices stay, in order."""
        index = sorted(index)
        self.position = [self.position[i] for i in index]
        self.keys, self.values, self.score = self.keys[index], self.values[index], self.score[index]


def a2sf(capacity, decay):
    """Every row makes what was seen before count less; the `capacity` highest sums stay, each head by itself."""

    def rule(heads, seen, prefill):
        for head, probs in zip(heads, seen, strict=True):
            rows = len(probs)
            weight = torch.tensor([decay ** (rows - 1 - r) for r in range(rows)])
            head.score = decay**rows * head.score + weight @ probs
            if len(head.position) > capacity:
                head.keep(head.score.topk(capacity).indices.tolist())

    return rule


def paged(capacity, page):
    """Value norm over key norm, averaged over heads; the first page, the newest and what fills no page are safe."""

    def rule(heads, seen, prefill):
        n = len(heads[0].position)
        if n <= capacity or (not prefill and n % page):
            return
        score = torch.stack([h.values.norm(dim=-1) / (h.keys.norm(dim=-1) + EPSILON) for h in heads]).mean(0)
        safe = {*range(page), *range(n - page - n % page, n)}
        others = [i for i in range(n) if i not in safe]
        if prefill:
            best = sorted(others, key=lambda i: -float(score[i]))[: capacity - 2 * page]
            stay = sorted({*safe, *best})
        else:
            pages = [others[i : i + page] for i in range(0, len(others), page)]
            worst = min(pages, key=lambda places: float(score[places].mean()))
            stay = [i for i in range(n) if i not in worst]
        for head in heads:
            head.keep(stay)

    return rule


class PlainSlots(PlainLlama):
    """Weights by name as `PlainLlama` takes them, with as many key heads as they say.

    Args:
        rule: called behind each layer's attention with its heads, the attention [R, n] that each got (summed over its
            group) and whether it was the prompt's.
    """

    def __init__(self, weights, heads, eps, rule, base=10000.0):
        super().__init__({name.removeprefix("model."): x for name, x in weights.items()}, heads, eps, base)
        self.rule = rule
        wide, narrow = (len(self.weights[f"layers.0.{name}_proj"]) for name in "qk")
        self.kv_heads = narrow * heads // wide

    def answer(self, ids, steps):
        """Greedy: logits [steps, V], tokens [steps], and the positions held at the end, [L][Hkv]."""
        self.caches = [[Head() for _ in range(self.kv_heads)] for _ in range(self.layers)]
        logits, tokens, length = [self.feed(ids, range(len(ids)))], [], len(ids)
        for t in range(steps):
            tokens.append(int(logits[-1].argmax()))
            if t + 1 < steps:
                logits.append(self.feed([tokens[-1]], [length + t]))
        return torch.stack(logits), tokens, [[head.position for head in layer] for layer in self.caches]

    def feed(self, ids, positions):
        """[V] logits of the last row."""
        x, positions = self.weights["embed_tokens"][list(ids)], list(positions)
        for layer in range(self.layers):
            x = self.step(layer, x, positions)
        return self.norm(x[-1], "norm") @ self.weights["lm_head"].T

    def step(self, layer, x, positions):
        """[R, D] behind one layer."""
        normed, heads = self.norm(x, f"layers.{layer}.input_layernorm"), self.caches[layer]
        q, k, v = (self.by_head(normed @ self.weights[f"layers.{layer}.{n}_proj"].T, n) for n in "qkv")
        turned = self.rotary(torch.tensor(positions)[None], q.shape[-1])
        q, k = (self.turn(x[None], turned)[0] for x in (q, k))
        group, mixed, seen = len(q) // len(k), [], []
        for h, head in enumerate(heads):
            head.append(positions, k[h], v[h])
            late = torch.tensor(head.position)[None] > torch.tensor(positions)[:, None]
            logits = q[h * group : (h + 1) * group] @ head.keys.T / q.shape[-1] ** 0.5
            probs = logits.masked_fill(late, -torch.inf).softmax(-1)
            mixed.append(probs @ head.values)
            seen.append(probs.sum(0))
        x = x + torch.cat(mixed).transpose(0, 1).flatten(1) @ self.weights[f"layers.{layer}.o_proj"].T
        second = self.norm(x, f"layers.{layer}.post_attention_layernorm")
        gate, up, down = (self.weights[f"layers.{layer}.{name}_proj"] for name in ("gate", "up", "down"))
        self.rule(heads, seen, len(positions) > 1)
        return x + (silu(second @ gate.T) * (second @ up.T)) @ down.T

    def by_head(self, x, name):
        """[H, R, d]."""
        return x.view(len(x), self.heads if name == "q" else self.kv_heads, -1).transpose(0, 1)
