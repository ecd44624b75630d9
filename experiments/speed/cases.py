"""Both sides of every row of the table: each method's choice, and the plain way to write it, on the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, cycle, pairwise

import torch
from torch import Tensor

from btp.core.ledger import TokenLedger
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.engine.hooks.attention_rows import attention_rows, tower_rows
from btp.ops.merge import merge_states
from btp.ops.recycle import cell_numbers, marked, ranks, recycle
from btp.pruners.aim import AIM
from btp.pruners.dart import DART
from btp.pruners.divprune import DivPrune
from btp.pruners.fastervlm import FasterVLM
from btp.pruners.fastv import FastV
from btp.pruners.random import Random
from btp.pruners.sparsevlm import SparseVLM
from btp.pruners.tome import ToMe
from btp.pruners.visionzip import VisionZip
from experiments.speed import plain

LEAD, TEXT = 35, 40  # text tokens in front of the image and behind it
HEADS, SIZE = 32, 128  # of the language model
TOWER_HEADS, TOWER_SIZE = 16, 64
LAYERS = 32  # of LLaVA-1.5's language model
AIM_KEPT = (252, 220, 189, 157, 126, 94, 63, 31)  # in front of layer 14 and behind each cut, as published for it


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        method, what: what is timed.
        tokens, kept, width: N, k and D.
        plain, ours: hand back the same kind of thing: indices or rows.
        comparable: both decide about the same tokens.
    """

    method: str
    what: str
    tokens: int
    kept: int
    width: int
    plain: Callable[[], list[int] | Tensor]
    ours: Callable[[], list[int] | Tensor]
    comparable: bool = True


def tokens_of(x: Tensor, first: int = LEAD) -> Tokens:
    """One sample's visual tokens [N, D] behind `first` text tokens, none gone yet."""
    N = len(x)
    index = torch.arange(N)[None]
    return Tokens(
        hidden=x[None],
        position=index + first,
        coord=torch.stack([torch.zeros_like(index), index // 24, index % 24], dim=-1),
        image=torch.zeros_like(index),
        size=torch.ones_like(index),
        valid=torch.ones_like(index, dtype=torch.bool),
        total=torch.tensor([N]),
        index=index,
        picture=torch.zeros_like(index),
        slot=index,
        row=index + first,
        host_total=(N,),
        host_alive=(N,),
    )


def chosen(pruner: Pruner, seen: Tokens, values: dict[Signal, Tensor], stage: Stage) -> Selection:
    """A pruner's decision; all rows of signals are real."""
    counted = {"text": TEXT, "all": LEAD + seen.hidden.shape[1] + TEXT, "start": seen.hidden.shape[1]}
    valid = {s: torch.ones(1, counted[s.rows], dtype=torch.bool) for s in values if s.rows in counted}
    return pruner.select(seen, Signals(values, valid), stage)


def merged(seen: Tokens, selection: Selection) -> Tensor:
    """[K, D] the rows that go on."""
    if selection.states is not None:
        return selection.states[0]
    assert selection.merge is not None
    return merge_states(seen.hidden, selection.keep, selection.merge)[0]


def divprune(N: int, k: int, width: int) -> Case:
    """The whole choice."""
    x = torch.randn(N, width)
    seen, stage = tokens_of(x), Stage("llm.input", k, "renumber")
    pruner = DivPrune(order="selection", distance="cosine")
    return Case(
        "DivPrune",
        "choice",
        N,
        k,
        width,
        lambda: plain.farthest(x, k),
        lambda: chosen(pruner, seen, {}, stage).keep[0].tolist(),
    )


def dart(N: int, quota: int, width: int) -> Case:
    """The whole choice, from keys and states."""
    x, text = torch.randn(N, width), torch.randn(TEXT, width)
    keys, text_keys = torch.randn(HEADS, N, SIZE), torch.randn(HEADS, TEXT, SIZE)
    pruner = DART(image_pivots=4, text_pivots=4, final_norm=True, visit_order="norm", count="exact")
    k = 4 + 8 * quota
    stage, seen = Stage("llm.layer.2", k), tokens_of(x)
    shown = dict(zip(pruner.needs(stage), (keys[None], text_keys[None], x[None], text[None]), strict=True))
    return Case(
        "DART",
        "choice",
        N,
        k,
        width,
        lambda: plain.duplicates(x, keys, text, text_keys, quota),
        lambda: chosen(pruner, seen, shown, stage).keep[0].tolist(),
    )


def fastervlm(N: int, k: int) -> Iterator[Case]:
    """The choice from the class token's row, and with that row, of one layer."""
    query, key = torch.randn(2, TOWER_HEADS, N + 1, TOWER_SIZE)
    x = torch.randn(N, TOWER_HEADS * TOWER_SIZE)
    whole = plain.attention(query, key, causal=False)
    pruner, seen, stage = FasterVLM(heads="mean", score="cls"), tokens_of(x), Stage("vision.output", k, "renumber")
    signal = pruner.needs(stage)[0]

    def choice(row: Tensor) -> list[int]:
        return chosen(pruner, seen, {signal: row}, stage).keep[0].tolist()

    def row() -> Tensor:
        return tower_rows(query[None], key[None], None, TOWER_SIZE**-0.5, "cls", "probs", 1)

    yield Case(
        "FasterVLM",
        "choice alone, microseconds either way",
        N,
        k,
        x.shape[1],
        lambda: plain.highest(whole[:, 0, 1:].mean(0), k),
        lambda: choice(whole[None, :, :1, 1:]),
    )
    yield Case(
        "FasterVLM",
        "with the attention of one layer",
        N,
        k,
        x.shape[1],
        lambda: plain.highest(plain.attention(query, key, causal=False)[:, 0, 1:].mean(0), k),
        lambda: choice(row()),
    )


def fastv(N: int, k: int) -> Iterator[Case]:
    """The same for the last token's row of a decoder layer."""
    S = LEAD + N + TEXT
    query, key = torch.randn(2, HEADS, S, SIZE)
    x = torch.randn(N, HEADS * SIZE)
    whole = plain.attention(query, key, causal=True)
    span = slice(LEAD, LEAD + N)
    visual = torch.zeros(1, S, dtype=torch.bool)
    visual[:, span] = True
    view = TokenLedger.open(visual, torch.ones_like(visual)).now
    pruner, seen, stage = FastV(score="probs", query="last", seed=0), tokens_of(x), Stage("llm.layer.2", k)
    signal = pruner.needs(stage)[0]

    def choice(row: Tensor) -> list[int]:
        return chosen(pruner, seen, {signal: row}, stage).keep[0].tolist()

    def row() -> Tensor:
        last = torch.tensor([[S - 1]])
        return attention_rows(query[None], key[None], None, SIZE**-0.5, last, view, "probs")

    yield Case(
        "FastV",
        "choice alone, microseconds either way",
        N,
        k,
        x.shape[1],
        lambda: plain.highest(whole[:, -1, span].mean(0), k),
        lambda: choice(whole[None, :, -1:, span]),
    )
    yield Case(
        "FastV",
        "with the attention of one layer",
        N,
        k,
        x.shape[1],
        lambda: plain.highest(plain.attention(query, key, causal=True)[:, -1, span].mean(0), k),
        lambda: choice(row()),
    )


def aim() -> Iterator[Case]:
    """One layer's walk, and those of a whole prefill: of all layers at full length, or of the cuts on what is left."""
    pruner = AIM(metric="hidden", order="raster", mean="official", tau=0.1, iterations=5, damping=0.0)

    def cut(query: Tensor, key: Tensor, N: int, k: int) -> Callable[[], list[int]]:
        seen, stage = tokens_of(torch.randn(N, HEADS * SIZE)), Stage("llm.layer.14", k)
        shown = dict(zip(pruner.needs(stage), (query[None] * SIZE**-0.5, key[None]), strict=True))
        return lambda: chosen(pruner, seen, shown, stage).keep[0].tolist()

    N, k, last = AIM_KEPT[0], AIM_KEPT[1], AIM_KEPT[-1]
    query, key = torch.randn(2, HEADS, LEAD + N + TEXT, SIZE)
    cuts = [cut(query[:, : LEAD + n + TEXT], key[:, : LEAD + n + TEXT], n, left) for n, left in pairwise(AIM_KEPT)]
    yield Case(
        "AIM",
        "walk of one layer",
        N,
        k,
        HEADS * SIZE,
        lambda: plain.walk(query, key, LEAD, N, k),
        cuts[0],
    )
    yield Case(
        "AIM",
        "whole prefill",
        N,
        last,
        HEADS * SIZE,
        lambda: [plain.walk(query, key, LEAD, N, k) for _ in range(LAYERS)][-1],
        lambda: [one() for one in cuts][-1],
        comparable=False,
    )


def sparsevlm(N: int, direct: int) -> Case:
    """One cut with recycling."""
    width = HEADS * SIZE
    x, visual, text = torch.randn(N, width), torch.randn(N, width) * 0.1, torch.randn(TEXT, width) * 0.1
    rows = torch.randn(HEADS, TEXT, N).softmax(-1)
    removed = int(0.3 * (N - direct)) + 1
    means = removed // 10 + 1
    pruner = SparseVLM(
        score="attention", guard=0, heads=None, recycle=0.3, per_cluster=10, count="table", scale=1, bias=0
    )
    seen, stage = tokens_of(x), Stage("llm.layer.3", direct + means, "renumber")
    shown = dict(zip(pruner.needs(stage), (visual[None], text[None], rows[None]), strict=True))
    return Case(
        "SparseVLM",
        "cut with recycling",
        N,
        direct + means,
        width,
        lambda: plain.rank_and_cluster(x, visual, text, rows, direct, removed, means)[1],
        lambda: merged(seen, chosen(pruner, seen, shown, stage)),
    )


def tome(N: int, r: int) -> Case:
    """Matching and merging in one block; the plain way carries the class token along."""
    width = TOWER_HEADS * TOWER_SIZE
    x, keys = torch.randn(N + 1, width), torch.randn(TOWER_HEADS, N + 1, TOWER_SIZE)
    pruner = ToMe(class_token=True, order="official", proportional_attention=True)
    seen, stage = tokens_of(x[1:], 0), Stage("vision.mlp.2", N - r, "renumber")
    shown = {pruner.needs(stage)[0]: keys[None, :, 1:]}
    return Case(
        "ToMe",
        "one block",
        N,
        N - r,
        width,
        lambda: plain.matched(x, torch.ones(N + 1), keys.mean(0), r)[1:],
        lambda: merged(seen, chosen(pruner, seen, shown, stage)),
    )


def visionzip(N: int, dominant: int, contextual: int) -> Case:
    """The whole choice and its merging."""
    width, k = TOWER_HEADS * TOWER_SIZE, dominant + contextual
    x, keys = torch.randn(N + 1, width), torch.randn(TOWER_HEADS, N + 1, TOWER_SIZE)
    rows = torch.randn(TOWER_HEADS, N + 1).softmax(-1)
    pruner = VisionZip(score="cls", contextual=contextual, cls=True, merge="official", order="official")
    seen, stage = tokens_of(x[1:], 0), Stage("vision.output", k, "renumber")
    shown = dict(zip(pruner.needs(stage), (rows[None, :, None, 1:], keys[None, :, 1:], x[None, :1]), strict=True))
    return Case(
        "VisionZip",
        "choice and merging",
        N,
        k,
        width,
        lambda: plain.zipped(x, rows, keys, dominant, contextual),
        lambda: merged(seen, chosen(pruner, seen, shown, stage)),
    )


def vflowopt(tiles: int, share: float, side: float) -> Case:
    """Recycling of one picture: a base crop and a mosaic of tiles."""
    width, grid = 3584, 27
    base = torch.stack(torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij"), -1).view(-1, 2)
    mosaic = torch.stack(torch.meshgrid(torch.arange(grid), torch.arange(tiles * grid), indexing="ij"), -1).view(-1, 2)
    coord = torch.cat([base, mosaic])
    region = (torch.arange(len(coord)) >= len(base)).long()
    T = len(coord)
    x, worth = torch.randn(T, width), torch.rand(T)
    direct = torch.tensor([T - round(T * (1 - share)) - int(T / side**2)])
    seen = replace(tokens_of(x, 14), coord=torch.cat([region[:, None], coord], dim=1)[None])

    def ours() -> Tensor:
        cell = cell_numbers(region[None], coord[None], side, seen.valid)
        rank = ranks(worth[None], seen.valid)
        stays, plan = recycle(rank, cell, seen.valid, worth[None], direct, torch.tensor([T]))
        keep = marked(stays, int(stays.sum()))
        return merge_states(seen.hidden, keep, plan)[0]

    kept = len(plain.recycled(x, worth, region, coord, share, side))
    return Case(
        "VFlowOpt",
        "recycling",
        T,
        kept,
        width,
        lambda: plain.recycled(x, worth, region, coord, share, side),
        ours,
    )


def random(N: int, k: int, rows: int, salt: str) -> Case:
    """The draw, of other samples each time: a processor learns the turns that sorting the same numbers takes."""
    alone = tokens_of(torch.zeros(N, 256))
    seen = replace(alone, index=alone.index.expand(rows, N), valid=alone.valid.expand(rows, N), host_alive=(N,) * rows)

    def sample(i: int) -> Tokens:
        total = torch.arange(N + i * rows, N + (i + 1) * rows)
        return replace(seen, hidden=torch.randn(rows, N, 256), total=total, host_total=tuple(total.tolist()))

    samples = cycle([sample(i) for i in range(64 // rows)])
    pruner, stage, seeds = Random(seed=0, salt=salt), Stage("llm.layer.2", k), count()
    return Case(
        "random",
        f"choice alone, {rows} at once, salt {salt}",
        N,
        k,
        256,
        lambda: plain.permuted(N, k, [next(seeds) for _ in range(rows)]),
        lambda: chosen(pruner, next(samples), {}, stage).keep,
        comparable=False,
    )


def cases(widths: list[int]) -> Iterator[Case]:
    """All rows of the table, in order; each is made when its turn comes."""
    for width in widths:
        yield divprune(576, 56, width)
        yield divprune(2880, 639, width)
    yield dart(576, 16, HEADS * SIZE)
    yield dart(2880, 40, HEADS * SIZE)
    yield from fastervlm(576, 58)
    yield from fastv(576, 288)
    yield from aim()
    yield sparsevlm(576, 300)
    yield tome(576, 16)
    yield visionzip(576, 54, 10)
    yield vflowopt(2, 0.265, 15.58)
    for rows in (1, 32):
        for salt in ("content", "none"):
            yield random(576, 144, rows, salt)
