"""The loop of farthest points as one kernel: each row of the batch walks through its table by itself.

A row is one block of threads that holds its N minima in registers, so that nothing is launched, written or waited for
between two picks. Importing this file needs Triton, which torch's CUDA builds bring along.
"""

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

WARP_TOKENS = 256  # of a row that one warp holds, 8 a thread; at most 16 warps a row


def walk(table: Tensor, first: Tensor, nearest: Tensor, steps: int) -> Tensor:
    """Pick `steps` tokens of each row, each the one least similar to those before it; ties go to the lowest index.

    Args:
        table: [B, N, N] similarities, inf on the diagonal, so that a picked token is never picked again.
        first: [B, N] numbers of which the least is picked first; inf for tokens that may not be picked.
        nearest: [B, N] similarity to the nearest token chosen so far, -inf where there is none, inf as in `first`.
        steps: Number of picks, 1 or more.

    Returns:
        [B, steps] int64 in the order of picking; 0 where all tokens are taken.
    """
    B, N, _ = table.shape
    picks = torch.empty(B, steps, dtype=torch.long, device=table.device)
    block = triton.next_power_of_2(N)
    with torch.cuda.device_of(table):  # Triton launches on the current device, wherever its arguments lie
        _walk[(B,)](  # type: ignore[index]
            *(x.contiguous() for x in (table, first, nearest)),
            picks,
            N,
            steps,
            BLOCK=block,
            num_warps=min(max(block // WARP_TOKENS, 1), 16),
        )
    return picks


@triton.jit(do_not_specialize=["steps"])
def _walk(table, first, nearest, picks, N, steps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)  # B * N * N passes 2^31
    token = tl.arange(0, BLOCK)
    real = token < N
    table += row * N * N
    picks += row * steps
    pick = tl.argmin(tl.load(first + row * N + token, mask=real, other=float("inf")), 0)
    near = tl.load(nearest + row * N + token, mask=real, other=float("inf"))
    tl.store(picks, pick)
    for step in range(1, steps):
        near = tl.maximum(near, tl.load(table + pick * N + token, mask=real, other=float("inf")))
        pick = tl.argmin(near, 0)
        tl.store(picks + step, pick)
