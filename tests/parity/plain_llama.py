"""A small Llama in plain float32, and a prefill in which a pruner decides: nothing of the engine, of transformers or of
attention kernels, so that a method can be held against its official code by itself."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from checked_selection import check_selection
from torch.nn.functional import silu

from btp.core.pruner import ScorePruner, Tokens
from btp.core.signals import Signals
from btp.ops.merge import merge_states

HERE = Path(__file__).parent


def recorded(name):
    """The arrays that lie here of a method's parity file, and what its json says."""
    with numpy.load(HERE / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    return arrays, json.loads((HERE / f"{name}.json").read_text())


def cases(name, kind):
    """Names of the recorded cases of a kind: `rank` finds rank0, rank1 ..."""
    found = {key.split("/")[0] for key in recorded(name)[0]}
    return sorted(case for case in found if case.rstrip("0123456789") == kind)


def part(arrays, case):
    """The arrays of one case, without its name in front."""
    return {key.removeprefix(f"{case}/"): value for key, value in arrays.items() if key.startswith(f"{case}/")}


@dataclass
class Ran:
    """What a layer did: its output, its attention and what entered and left its two blocks."""

    out: torch.Tensor
    probs: torch.Tensor
    rotary: torch.Tensor
    blocks: dict


class PlainLlama:
    """Weights by name, [out, in]; prefixes and suffixes of a checkpoint are left out."""

    def __init__(self, weights, heads, eps, base=10000.0):
        short = {k.replace("self_attn.", "").replace("mlp.", "").removesuffix(".weight"): v for k, v in weights.items()}
        self.weights = {name: value.float() for name, value in short.items()}
        self.heads, self.eps, self.base = heads, eps, base
        self.layers = len({name.split(".")[1] for name in short if name.startswith("layers.")})

    def norm(self, x, name):
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weights[name]

    def rotary(self, positions, d):
        """[2, B, S, d] cosine and sine."""
        angle = positions[..., None].float() * self.base ** (-torch.arange(0, d, 2).float() / d)
        return torch.stack([angle.cos(), angle.sin()]).repeat(1, 1, 1, 2)

    def attend(self, layer, x, positions):
        """[B, H, S, S] causal probabilities, [B, H, S, d] values, the normed input and RoPE of a layer."""
        normed = self.norm(x, f"layers.{layer}.input_layernorm")
        q, k, v = (self.split(normed @ self.weights[f"layers.{layer}.{name}_proj"].T) for name in "qkv")
        rotary = self.rotary(positions, q.shape[-1])
        scores = self.turn(q, rotary) @ self.turn(k, rotary).mT / q.shape[-1] ** 0.5
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(ahead, -torch.inf).softmax(-1), v, normed, rotary

    def run(self, layer, x, positions):
        probs, v, normed, rotary = self.attend(layer, x, positions)
        mixed = (probs @ v).transpose(1, 2).flatten(2) @ self.weights[f"layers.{layer}.o_proj"].T
        x = x + mixed
        second = self.norm(x, f"layers.{layer}.post_attention_layernorm")
        gate, up, down = (self.weights[f"layers.{layer}.{name}_proj"] for name in ("gate", "up", "down"))
        fed = (silu(second @ gate.T) * (second @ up.T)) @ down.T
        return Ran(x + fed, probs, rotary, {"attention": (normed, mixed), "mlp": (second, fed)})

    def split(self, x):
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    @staticmethod
    def turn(x, rotary):
        cos, sin = rotary[:, :, None]
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


class Walk:
    """Prompts of equal shape on their way through the layers; a pruner decides in front of some of them.

    Args:
        x: [B, S, D] embeddings, with the visual tokens in one span.
        first, total: where the span begins, and its length.
        behind: rows that follow the last token of the prompt.

    Attributes:
        stages: what happened at each stage, in order: the selection, the scores where there are any, the rows
            [B, S'] that stayed (of the sequence before it), the visual tokens' states behind it.
        lengths, positions: of each layer.
    """

    def __init__(self, model, x, first, total, behind=0):
        B, S, _ = x.shape
        self.model, self.start, self.x = model, x, x
        self.first, self.total, self.behind = first, total, behind
        self.words = S - behind - first - total
        self.alive = total
        self.index = torch.arange(total).expand(B, total)
        self.positions_now = torch.arange(S).expand(B, S)
        self.ran, self.then = {}, {}  # by layer: what it did, and where in it the tokens alive now stood
        self.stages, self.lengths, self.positions = [], [], []

    @property
    def place(self):
        """[B, N] where the visual tokens stand now."""
        return torch.arange(self.first, self.first + self.alive).expand(len(self.x), -1)

    def through(self, pruner, schedule):
        """Run every layer; `self.x` ends behind the final norm."""
        stages = {stage.site.layer: stage for stage in schedule}
        for layer in range(self.model.layers):
            if layer in stages:
                self.pause(pruner, stages[layer])
            self.lengths.append(self.x.shape[1])
            self.positions.append(self.positions_now)
            self.then[layer] = self.place
            self.ran[layer] = self.model.run(layer, self.x, self.positions_now)
            self.x = self.ran[layer].out
        self.x = self.model.norm(self.x, "norm")
        return self

    def pause(self, pruner, stage):
        """Let the pruner decide, and do what it says."""
        signals, tokens = self.signals(pruner, stage), self.tokens()
        chosen = pruner.select(tokens, signals, stage)
        counts = chosen.counts or tokens.keep_counts(stage)
        check_selection(chosen, counts, tokens.host_alive, pruner.name, stage.site)
        keep = chosen.keep
        states = (
            take(tokens.hidden, keep, 1) if chosen.merge is None else merge_states(tokens.hidden, keep, chosen.merge)
        )
        before, behind = self.first, self.first + self.alive
        rows = torch.arange(self.x.shape[1]).expand(len(keep), -1)
        rows = torch.cat([rows[:, :before], before + keep, rows[:, behind:]], dim=1)
        self.x = torch.cat([self.x[:, :before], states, self.x[:, behind:]], dim=1)
        closed = torch.arange(rows.shape[1]).expand_as(rows)
        self.positions_now = closed if stage.positions == "renumber" else take(self.positions_now, rows, 1)
        self.alive, self.index = keep.shape[1], take(self.index, keep, 1)
        self.then = {layer: take(place, keep, 1) for layer, place in self.then.items()}
        scores = pruner.score(tokens, signals, stage) if isinstance(pruner, ScorePruner) else None
        self.stages.append({"chosen": chosen, "scores": scores, "rows": rows, "states": states, "index": self.index})

    def signals(self, pruner, stage):
        """Everything the pruner declares."""
        values = {signal: self.show(signal) for signal in pruner.needs(stage)}
        axes = {"hidden": 1, "attention": 2, "preview": 2, "rotary": 2, "change": 2}
        counted = {s: v.shape[axes[s.kind]] for s, v in values.items() if s.rows in ("text", "all", "start")}
        return Signals(values, {s: torch.ones(len(self.x), n, dtype=torch.bool) for s, n in counted.items()})

    def show(self, signal):
        """One signal, of the visual tokens alive where it has columns for them."""
        layer, end = signal.site.layer, self.x.shape[1] - self.behind
        if signal.kind == "hidden":
            span = slice(self.first, self.first + self.total)
            return self.start[:, span] if signal.rows == "start" else self.start[:, span.stop : span.stop + self.words]
        if signal.kind == "preview":
            number = 1 if signal.rows == "last" else self.words
            probs = self.model.attend(layer, self.x, self.positions_now)[0]
            return take(probs[:, :, end - number : end], self.place, 3)
        ran, place = self.ran[layer], self.then[layer]
        end = ran.probs.shape[2] - self.behind
        words = slice(end - (1 if signal.rows == "last" else self.words), end)
        if signal.kind == "attention":
            return take(ran.probs[:, :, words], place, 3)
        if signal.kind == "rotary":
            return ran.rotary[:, :, words] if signal.rows else take(ran.rotary, place, 2, batch=1)
        before, after = ran.blocks[signal.form]
        sizes = torch.stack([after.norm(dim=-1) / before.norm(dim=-1), torch.cosine_similarity(before, after, dim=-1)])
        return sizes if signal.rows == "all" else take(sizes, place, 2, batch=1)

    def tokens(self):
        """The visual tokens alive; none is padded."""
        shape = B, N = self.index.shape
        return Tokens(
            hidden=take(self.x, self.place, 1),
            position=self.place,
            coord=torch.full((B, N, 3), -1),
            image=torch.zeros(shape, dtype=torch.long),
            size=torch.ones(shape, dtype=torch.long),
            valid=torch.ones(shape, dtype=torch.bool),
            total=torch.full((B,), self.total),
            index=self.index,
            host_total=(self.total,) * B,
            host_alive=(N,) * B,
        )


def take(x, place, axis, batch=0):
    """Entries `place` [B, N] along an axis of x, each row of `place` for its own index of the batch axis."""
    shape = [1] * x.dim()
    shape[batch], shape[axis] = place.shape
    wanted = list(x.shape)
    wanted[axis] = place.shape[1]
    return x.gather(axis, place.reshape(shape).expand(wanted))
