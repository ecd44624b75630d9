"""Cache methods beside the same presses of kvpress: `python -m experiments.speed.kvpress`.

Both choose slots behind the prompt of one attention layer with random weights, from the same hidden states, keys and
values, and both hand back the cache without the others. Run it where kvpress is installed (README.md beside this file).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding, apply_rotary_pos_emb

from btp.core.cache_pruner import CachePruner
from btp.core.schedule import Stage
from btp.core.signals import Signals
from btp.core.slots import Slots
from btp.engine.cache.decide_eviction import ask
from btp.engine.cache.layer_slots import Held
from btp.engine.cache.slot_signals import slot_signal
from btp.engine.hooks.attention_registry import Attending
from btp.engine.hooks.deferred_checks import Doubts
from btp.pruners.keydiff import KeyDiff
from btp.pruners.knorm import KNorm
from btp.pruners.snapkv import SnapKV
from btp.pruners.streaming import Streaming
from btp.pruners.tova import TOVA
from experiments.speed.slots import least_ms

WINDOW, KERNEL, SINKS = 64, 5, 4  # kvpress's own settings
OURS: Mapping[str, tuple[CachePruner, dict[str, Any]]] = {
    "SnapKVPress": (SnapKV(kernel=KERNEL, pool="mean"), {"recent": WINDOW}),
    "KnormPress": (KNorm(), {}),
    "KeyDiffPress": (KeyDiff(), {}),
    "StreamingLLMPress": (Streaming(), {"first": SINKS}),
    "TOVAPress": (TOVA(), {"recent": 1}),  # kvpress never lets the last token go
}


class Layer:
    """One attention layer behind a prompt of random states.

    Attributes:
        module: the attention module of a Llama.
        hidden: [1, n, D]; query, keys, values: [1, heads, n, d] behind RoPE.
        rotary: cosine and sine of the positions.
    """

    def __init__(self, n: int, heads: int, groups: int, d: int) -> None:
        config = LlamaConfig(
            hidden_size=heads * groups * d,
            num_attention_heads=heads * groups,
            num_key_value_heads=heads,
            head_dim=d,
            num_hidden_layers=1,
            max_position_embeddings=n,
            attn_implementation="sdpa",
        )
        self.module = LlamaAttention(config, 0).eval()
        self.hidden = torch.randn(1, n, heads * groups * d)
        self.rotary = LlamaRotaryEmbedding(config)(self.hidden, torch.arange(n)[None])
        q, k, self.values = (
            proj(self.hidden).view(1, n, -1, d).transpose(1, 2)
            for proj in (self.module.q_proj, self.module.k_proj, self.module.v_proj)
        )
        self.query, self.keys = apply_rotary_pos_emb(q, k, *self.rotary)


def ours(layer: Layer, pruner: CachePruner, settings: Mapping[str, Any], keep: int) -> tuple[Tensor, Tensor]:
    """[Hkv, keep] positions held, ascending, and the keys that are left, as the engine does behind an attention."""
    stage = Stage("llm.cache.0", keep, settings=dict(settings))
    heads, n, d = layer.keys.shape[1:]
    now = Attending(0, layer.query, layer.keys, layer.values, None, d**-0.5, lambda mask: None)
    position = torch.arange(n).expand(1, 1, n)
    held = Held(position, torch.zeros_like(position, dtype=torch.bool), (n,), (0,))
    slots = Slots(
        position=position.expand(1, heads, n),
        length=torch.tensor([n]),
        prompt=torch.tensor([n]),
        layer=0,
        layers=1,
        groups=layer.query.shape[1] // heads,
        new=n,
        prefill=True,
        due=True,
        carried={},
        host_total=(n,),
        host_alive=(n,),
        host_length=(n,),
    )
    seen, real = {}, {}
    for signal in pruner.needs(stage):
        seen[signal], valid = slot_signal(signal, now, torch.ones(1, n, dtype=torch.bool), True)
        if valid is not None:
            real[signal] = valid
    answer = ask(pruner, stage, slots, Signals(seen, real), Doubts())
    cache = SimpleNamespace(keys=layer.keys, values=layer.values)
    held.evict(cache, answer.stay, answer.counts, False)  # type: ignore[arg-type]
    return held.position.expand(1, heads, -1)[0], cache.keys


def theirs(layer: Layer, press: Any) -> tuple[Tensor, Tensor]:
    """The same by a press: keys that are left, which say by themselves where they stood."""
    more = {"position_embeddings": layer.rotary}
    keys, values = press.compress(layer.module, layer.hidden, layer.keys, layer.values, None, more)
    return values, keys


def places(kept: Tensor, whole: Tensor) -> list[list[int]]:
    """Sorted places, per head, of keys [1, H, K, d] among all [1, H, n, d]."""
    found = torch.cdist(kept[0], whole[0]).argmin(-1)
    return [sorted(row) for row in found.tolist()]


def main() -> None:
    """Print the table."""
    import kvpress  # type: ignore[import-not-found]  # it wants another transformers than btp's environment has

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--share", type=float, default=0.25, help="of the slots that stay")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with torch.inference_mode():
        layer = Layer(arguments.slots, arguments.heads, arguments.groups, arguments.size)
        keep = int(arguments.slots * arguments.share)
        print(
            f"{arguments.slots} slots, {keep} kept, {arguments.heads} key heads x {arguments.groups}, "
            f"d {arguments.size}, {torch.get_num_threads()} thread(s)\n"
        )
        print("| press | same slots | kvpress, ms | btp, ms |\n|---|---|---|---|")
        for name, (pruner, settings) in OURS.items():
            press = getattr(kvpress, name)(compression_ratio=1 - arguments.share)
            jobs: list[Callable[[], tuple[Tensor, Tensor]]] = [
                lambda press=press: theirs(layer, press),
                lambda p=pruner, s=settings: ours(layer, p, s, keep),
            ]
            mine = [sorted(row) for row in jobs[1]()[0].tolist()]
            press_kept = places(jobs[0]()[1], layer.keys)
            same = sum(len(set(a) & set(b)) for a, b in zip(mine, press_kept, strict=True))
            took = least_ms(*jobs, repeats=arguments.repeats)
            print(f"| {name} | {same} of {arguments.heads * keep} | {took[0]:.1f} | {took[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
