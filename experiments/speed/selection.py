"""Times the choice of tokens against the plain way to write it, on the CPU, one thread, in one process.

The plain loop is the one that released codes have: distances of all to all once, then at every pick the
minimum over the rows of all tokens chosen so far, anew; sets and lists on the host; the seed on the grid
worked out for every sample. README.md beside this file says how to run it and what it printed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.pruner import Tokens
from btp.core.schedule import Stage
from btp.core.signals import Signal, Signals
from btp.ops.farthest_point import farthest_points
from btp.pruners.btp import BTP

BALANCE, OVER, SEED = 0.6, 1.5, 0.25


def similarities(x: Tensor) -> Tensor:
    """[N, N] cosine of all to all."""
    x = normalize(x, dim=1)
    return x @ x.T


def plain_farthest(x: Tensor, seed: list[int], k: int) -> list[int]:
    """Max-min distance, the minimum over all chosen rows anew at every pick."""
    distance = 1 - similarities(x)
    chosen = list(seed)
    while len(chosen) < k:
        if chosen:
            nearest = distance[chosen].min(0).values
            nearest[chosen] = -1
        else:
            nearest = distance.topk(2, dim=0, largest=False).values[1]
        chosen.append(int(nearest.argmax()))
    return sorted(chosen)


def plain_grid(side: int, count: int, total: int) -> list[int]:
    """Max-min Manhattan distance on the grid, from token 0, again from scratch at every pick."""
    places = torch.tensor([divmod(i, side) for i in range(total)])
    distance = (places[:, None] - places).abs().sum(2)
    chosen = [0]
    while len(chosen) < count:
        nearest = distance[chosen].min(0).values
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return chosen


def plain_btp(x: Tensor, attention: Tensor, side: int, k: int) -> list[int]:
    """BTP's first stage as one would write it down."""
    N = len(x)
    wanted = int(BALANCE * k + 1e-6)
    order = attention.mean((0, 1)).argsort(descending=True, stable=True).tolist()[: int(OVER * wanted + 1e-6)]
    chosen = ([i for i in order if i < N / 2] + [i for i in order if i >= N / 2])[:wanted]
    for token in plain_grid(side, int(SEED * N), N):
        if token not in chosen and len(chosen) < k:
            chosen.append(token)
    return plain_farthest(x, chosen, k)


def seconds(run: Callable[[], object], least: int) -> float:
    """Least processor time of `least` runs, or of more where these take less than a second together."""
    times: list[float] = []
    while len(times) < least or sum(times) < 1:
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def compare(N: int, width: int, repeats: int) -> list[str]:
    """Rows of the table for N tokens of this width: diversity alone, and a stage of BTP."""
    k, side = N // 4, 24
    random = torch.Generator().manual_seed(N)
    x = torch.randn(1, N, width, generator=random)
    attention = torch.randn(1, 32, 1, N, generator=random)
    index = torch.arange(N)[None]
    tokens = Tokens(
        hidden=x,
        position=index,
        coord=torch.stack([torch.zeros_like(index), index // side, index % side], dim=-1),
        image=torch.zeros_like(index),
        size=torch.ones_like(index),
        valid=torch.ones_like(index, dtype=torch.bool),
        total=torch.tensor([N]),
        index=index,
        host_total=(N,),
        host_alive=(N,),
    )
    pruner = BTP(score="logits", source="last", over=OVER, split="half", seed=SEED, distance="manhattan")
    stage = Stage("llm.layer.2", k, settings={"balance": BALANCE})
    signals = Signals({Signal("attention", "llm.layer.1", "last", "logits"): attention})
    nothing = index[:, :0]
    shared = seconds(lambda: similarities(x[0]), repeats)
    rows = []
    for name, plain, ours in (
        (
            "diversity",
            lambda: plain_farthest(x[0], [], k),
            lambda: farthest_points(x, nothing, k)[0].tolist(),
        ),
        (
            "BTP stage",
            lambda: plain_btp(x[0], attention[0], side, k),
            lambda: pruner.select(tokens, signals, stage).keep[0].tolist(),
        ),
    ):
        same = "yes" if plain() == ours() else "no"
        before, after = seconds(plain, repeats), seconds(ours, repeats)
        times = f"{before * 1e3:.1f} | {after * 1e3:.1f} | {before / after:.1f} | {shared * 1e3:.1f}"
        rows.append(f"| {N} | {width} | {name} | {times} | {same} |")
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[576, 1152, 2880])
    parser.add_argument("--width", type=int, nargs="+", default=[256, 4096], help="of the hidden states")
    parser.add_argument("--repeats", type=int, default=3, help="least runs of each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| N | D | k = N / 4 of | plain, ms | btp, ms | times faster | all to all, ms | same picks |")
    print("|" + "---|" * 8)
    with torch.inference_mode():
        for width in args.width:
            for N in args.tokens:
                for row in compare(N, width, args.repeats):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
