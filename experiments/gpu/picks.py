"""Farthest points as the device picks them, by one kernel where Triton is at hand, beside the queued loop."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from btp.core.topk import marked
from btp.measure.clock import Side, Spread, alternate, synchroniser
from btp.ops import farthest_point_cuda
from btp.ops.farthest_point import farthest_points
from experiments.gpu.setting import Cell, Setting

SHAPES = ((1, 576, 4096, 144), (8, 576, 4096, 144), (1, 2880, 4096, 720), (1, 2880, 4096, 128))
SMALL = ((2, 64, 32, 20),)
SEEDS = 16
ALIKE = 0.95


def cells(setting: Setting) -> Iterator[Cell]:
    """A shape: batch, tokens, width, picks."""
    for shape in SMALL if setting.tiny else SHAPES:
        rows, tokens, width, k = shape
        yield f"{k} of {rows} x {tokens} x {width}", functools.partial(choice, setting, *shape)


def choice(setting: Setting, rows: int, tokens: int, width: int, k: int) -> dict[str, Any]:
    """Milliseconds of both ways, and the share of tokens that the CPU picks too: rounding may turn a tie."""
    x = torch.randn(rows, tokens, width, generator=torch.Generator().manual_seed(0))
    seed = torch.arange(SEEDS).expand(rows, -1)
    there, at = x.to(setting.device), seed.to(setting.device)
    counts, sure = (k,) * rows, (SEEDS,) * rows

    def ours() -> Tensor:
        return farthest_points(there, at, counts, None, sure)

    def loop() -> Tensor:
        with patch.object(farthest_point_cuda, "one_launch", lambda device: None):
            return farthest_point_cuda.queued(there, at, counts, None, sure, None, False)

    sides = {"ours": Side(ours), "queued": Side(loop)}
    took = alternate(sides, repeats=2 if setting.tiny else 20, warmup=2, sync=synchroniser(setting.device))
    times = {f"{name}_ms": Spread.of(seconds).median_ms for name, seconds in took.items()}
    wanted = marked(farthest_points(x, seed, counts, None, sure), tokens)
    same = {name: alike(marked(way().cpu(), tokens), wanted) for name, way in (("ours", ours), ("queued", loop))}
    kernel = farthest_point_cuda.one_launch(setting.device) is not None
    return {"holds": min(same.values()) >= ALIKE, "kernel": kernel, **times, "same": same}


def alike(mine: Tensor, wanted: Tensor) -> float:
    """Share of the tokens marked in `wanted` [B, N] that `mine` marks too."""
    return float((mine & wanted).sum() / wanted.sum())
