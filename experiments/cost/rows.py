"""How fast this machine multiplies matrices of few rows and of many: what bounds a pruned prefill beside its FLOPs.

OMP_NUM_THREADS=1 python -m experiments.cost.rows
"""

from __future__ import annotations

import argparse
import time

import torch


def main() -> None:
    """Print a table: GFLOP/s of one layer's products for each number of rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[640, 320, 160, 120, 64])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--ffn", type=int, default=2752)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    print(f"| rows | {' | '.join(f'{dtype}, GFLOP/s' for dtype in args.dtype)} |\n|{'---|' * (len(args.dtype) + 1)}")
    for rows in args.rows:
        rates = [rate(rows, args.hidden, args.ffn, getattr(torch, dtype), args.repeats) for dtype in args.dtype]
        print(f"| {rows} | {' | '.join(f'{r:.0f}' for r in rates)} |", flush=True)


def rate(rows: int, hidden: int, ffn: int, dtype: torch.dtype, repeats: int) -> float:
    """Billions of operations a second of the seven products of a layer, by the processor's clock."""
    shapes = [(hidden, hidden)] * 4 + [(ffn, hidden)] * 2 + [(hidden, ffn)]
    weights = [torch.randn(shape).to(dtype) for shape in shapes]
    inputs = {size: torch.randn(rows, size).to(dtype) for size in (hidden, ffn)}
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)
        best = min(best, time.process_time() - start)
    return 2 * rows * sum(a * b for a, b in shapes) / best / 1e9


if __name__ == "__main__":
    main()
