"""A cache method's own work against the obvious way to write it: `python -m experiments.speed.slots`.

Two tables. The score behind the prompt, blockwise against all attention materialised; and a decode step in which every
head of a layer evicts one slot, against one of a plain cache with as many slots.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import DynamicLayer

from btp.core.cache_pruner import CachePruner
from btp.core.schedule import Stage
from btp.core.signals import Signal, Signals
from btp.core.site import Site
from btp.core.slots import Slots
from btp.engine.cache.decide_eviction import ask
from btp.engine.cache.layer_slots import Held
from btp.engine.cache.slot_signals import one_row, slot_signal
from btp.engine.hooks.attention_registry import Attending
from btp.engine.hooks.deferred_checks import Doubts
from btp.pruners.a2sf import A2SF
from btp.pruners.h2o import H2O
from btp.pruners.keydiff import KeyDiff
from btp.pruners.knorm import KNorm
from btp.pruners.streaming import Streaming
from btp.pruners.tova import TOVA

SITE = Site.parse("llm.cache.0")


def plain_score(query: Tensor, key: Tensor, decay: float) -> Tensor:
    """[B, H, n] the decayed sum, with every probability of every row held at once."""
    n = query.shape[2]
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    logits = logits + torch.full((n, n), -torch.inf).triu(1)
    probs = logits.softmax(-1)
    weight = decay ** torch.arange(n - 1, -1, -1.0)
    return (probs * weight[:, None]).sum(2)


def our_score(query: Tensor, key: Tensor, decay: float) -> Tensor:
    """The same as the engine shows it."""
    now = Attending(0, query, key, key, None, query.shape[-1] ** -0.5, lambda mask: None)
    signal = Signal("attention", SITE, "decayed", decay=decay)
    return slot_signal(signal, now, torch.ones(query.shape[::2], dtype=torch.bool), True)[0][:, :, 0]


class Step:
    """A decode step of one layer: the cache grows, the row attends, and perhaps one slot of each head leaves."""

    def __init__(self, n: int, heads: int, d: int, pruner: CachePruner | None) -> None:
        self.pruner, self.n, self.heads, self.d = pruner, n, heads, d
        self.stage = Stage(SITE, n, phase="both")
        self.layer = DynamicLayer()
        self.layer.update(torch.randn(1, heads, n, d), torch.randn(1, heads, n, d))
        position = torch.arange(n).expand(1, 1, n)
        self.held = Held(position, torch.zeros_like(position, dtype=torch.bool), (n,), (0,))
        self.carried()
        self.new = [torch.randn(1, heads, 1, d) for _ in range(3)]
        self.doubts, self.length = Doubts(), n

    def carried(self) -> None:
        """A score of each slot, as behind a prompt."""
        if self.pruner is not None and self.pruner.accumulates:
            self.held.carried = {"score": torch.rand(1, self.heads, self.n)}

    def __call__(self) -> Tensor:
        q, k, v = self.new
        self.length += 1
        if self.pruner is None:  # at equal slots: one leaves from the end, which costs nothing
            assert self.layer.keys is not None
            assert self.layer.values is not None
            self.layer.keys, self.layer.values = (x[:, :, : self.n] for x in (self.layer.keys, self.layer.values))
        keys, values = self.layer.update(k, v)
        if self.pruner is None:
            return scaled_dot_product_attention(q, keys, values)
        now = Attending(0, q, keys, values, None, self.d**-0.5, lambda mask: None)
        if any(signal.kind == "attention" for signal in self.pruner.needs(self.stage)):
            out, probs = one_row(now, None)
        else:
            out, probs = scaled_dot_product_attention(q, keys, values), None
        self.evict(now, probs)
        return out

    def evict(self, now: Attending, probs: Tensor | None) -> None:
        """What the engine does behind a layer's attention."""
        pruner, length = self.pruner, self.length
        assert pruner is not None
        self.held.grow(torch.tensor([[length - 1]]))
        slots = Slots(
            position=self.held.position.expand(1, self.heads, -1),
            length=torch.tensor([length]),
            prompt=torch.tensor([self.n]),
            layer=0,
            layers=1,
            groups=1,
            new=1,
            prefill=False,
            due=True,
            carried=dict(self.held.carried),
            host_total=(self.n,),
            host_alive=self.held.alive,
            host_length=(length,),
            running=self.held.running,
        )
        real = torch.ones(1, 1, dtype=torch.bool)
        seen = {s: slot_signal(s, now, real, True, probs)[0] for s in pruner.needs(self.stage)}
        answer = ask(pruner, self.stage, slots, Signals(seen), self.doubts)
        self.held.carried, self.held.running = dict(answer.carried), answer.running
        self.held.evict(self.layer, answer.stay, answer.counts, not pruner.in_order)


def least_ms(*jobs: Callable[[], object], repeats: int) -> list[float]:
    """Least processor time of each, taken in turns."""
    times: list[list[float]] = [[] for _ in jobs]
    for i in range(repeats + 1):
        for mine, job in zip(times, jobs, strict=True):
            began = time.process_time()
            job()
            if i:  # the first round warms up
                mine.append((time.process_time() - began) * 1000)
    return [min(mine) for mine in times]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", choices=("scores", "steps"), help="one of the two tables")
    arguments = parser.parse_args()
    n, heads, d = arguments.slots, arguments.heads, arguments.size
    torch.manual_seed(0)
    print(f"{n} slots, {heads} key heads, d {d}, {torch.get_num_threads()} thread(s)\n")
    with torch.inference_mode():
        if arguments.only != "steps":
            print_scores(n, heads, d, arguments.repeats)
        if arguments.only != "scores":
            print_steps(n, heads, d, arguments.steps)


def print_scores(n: int, heads: int, d: int, repeats: int) -> None:
    """The first table."""
    query, key = torch.randn(1, heads, n, d), torch.randn(1, heads, n, d)
    print("| score behind the prompt | materialised, ms | blockwise, ms | times faster | largest difference |")
    print("|---|---|---|---|---|")
    for name, decay in (("A2SF, decay 0.95", 0.95), ("A2SF, decay 0.2", 0.2), ("H2O", 1.0)):
        both = [lambda f=f, a=decay: f(query, key, a) for f in (plain_score, our_score)]
        plain, ours = least_ms(*both, repeats=repeats)
        far = float((both[0]() - both[1]()).abs().max())
        print(f"| {name} | {plain:.0f} | {ours:.1f} | {plain / ours:.1f} | {far:.1e} |", flush=True)


def print_steps(n: int, heads: int, d: int, count: int) -> None:
    """The second table."""
    methods = {
        "streaming": Streaming(),
        "knorm": KNorm(),
        "keydiff": KeyDiff(),
        "tova": TOVA(),
        "a2sf_online": A2SF(decay=0.2, history="always"),
        "h2o": H2O(),
    }
    steps = [Step(n, heads, d, pruner) for pruner in (None, *methods.values())]
    base, *found = least_ms(*steps, repeats=count)
    print(f"\na decode step without eviction: {base:.2f} ms a layer\n")
    print("| decode step | ms a layer | times one without |\n|---|---|---|")
    for name, took in zip(methods, found, strict=True):
        print(f"| {name} | {took:.2f} | {took / base:.2f} |")


if __name__ == "__main__":
    main()
