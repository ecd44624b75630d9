"""The loop of farthest points on the device: as one kernel, queued pick by pick, and on the CPU, all three alike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from btp.measure.clock import Side, Spread, alternate, synchroniser
from btp.ops import farthest_point_cuda
from btp.ops.farthest_point import farthest_points
from experiments.gpu.setting import Cell, Setting

SHAPES = ((1, 576, 4096, 144), (8, 576, 4096, 144), (1, 2880, 4096, 720), (1, 2880, 4096, 64))
SMALL = ((2, 64, 32, 20),)
SEEDS = 16


def cells(setting: Setting) -> Iterator[Cell]:
    """A shape: batch, tokens, width, picks."""
    for shape in SMALL if setting.tiny else SHAPES:
        rows, tokens, width, k = shape
        yield f"{k} of {rows} x {tokens} x {width}", functools.partial(choice, setting, *shape)


def choice(setting: Setting, rows: int, tokens: int, width: int, k: int) -> dict[str, Any]:
    """Milliseconds of each way that there is, and whether all pick the same."""
    x = torch.randn(rows, tokens, width, generator=torch.Generator().manual_seed(0))
    seed = torch.arange(0, SEEDS).expand(rows, -1)
    there, at = x.to(setting.device), seed.to(setting.device)
    counts, sure = (k,) * rows, (SEEDS,) * rows

    def picks() -> Tensor:
        return farthest_points(there, at, counts, None, sure, ordered=True)

    def loop() -> Tensor:
        with patch.object(farthest_point_cuda, "one_launch", lambda device: None):
            return farthest_point_cuda.queued(there, at, counts, None, sure, None, True)

    ways: dict[str, Callable[[], Tensor]] = {"queued": loop}
    if setting.device.type == "cpu":
        ways["read"] = picks
    elif farthest_point_cuda.one_launch(setting.device) is not None:
        ways["kernel"] = picks
    wanted = farthest_points(x, seed, counts, None, sure, ordered=True)
    same = {name: bool((way().cpu() == wanted).all()) for name, way in ways.items()}
    sides = {name: Side(way) for name, way in ways.items()}
    took = alternate(sides, repeats=2 if setting.tiny else 20, warmup=2, sync=synchroniser(setting.device))
    times = {f"{name}_ms": asdict(Spread.of(seconds))["median_ms"] for name, seconds in took.items()}
    return {"holds": all(same.values()), **times, "same": same}
