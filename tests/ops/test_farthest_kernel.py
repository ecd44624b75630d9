"""Farthest points by one kernel: Triton's interpreter runs it on a CPU, its compiler makes it for GPUs without one."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from btp.ops import farthest_point as diversity
from btp.ops import farthest_point_cuda as picks_queued
from btp.ops.farthest_point import farthest_points

CUDA = torch.device("cuda")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
interpreted = pytest.mark.skipif(
    find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs Triton and TRITON_INTERPRET=1: make test-triton",
)
COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from btp.ops.farthest_point_triton import _walk
for number in ("fp32", "fp64"):
    types = dict(table=f"*{number}", first=f"*{number}", nearest=f"*{number}", picks="*i64", N="i32", steps="i32")
    for capability, block in ((75, 64), (80, 1024), (90, 4096)):
        source = ASTSource(_walk, signature=types | {"BLOCK": "constexpr"}, constexprs={"BLOCK": block})
        made = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": max(block // 256, 1)})
        assert made.asm["cubin"]
"""


def plain(table, first, nearest, steps):
    """One row at a time in lists, as one would write it down; [B, steps]."""
    found = []
    for row, start, near in zip(table.tolist(), first.tolist(), nearest.tolist(), strict=True):
        picks = [start.index(min(start))]
        while len(picks) < steps:
            near = [max(pair) for pair in zip(near, row[picks[-1]], strict=True)]
            picks.append(near.index(min(near)))
        found.append(picks)
    return torch.tensor(found)


@interpreted
@pytest.mark.parametrize("trial", range(24))
def test_the_kernel_is_the_plain_loop(trial):
    """Whatever the rows, their length, what is barred and how many picks; in every second trial few different
    numbers, so that most picks are ties; some rows run out of tokens."""
    from btp.ops.farthest_point_triton import walk

    random = torch.Generator().manual_seed(trial)
    B, N = (int(torch.randint(1, most, (), generator=random)) for most in (5, 90))
    steps = int(torch.randint(1, N + 1, (), generator=random))
    table = torch.randn(B, N, N, generator=random, dtype=[torch.float32, torch.float64][trial % 3 == 0])
    first, nearest = torch.randn(2, B, N, generator=random, dtype=table.dtype)
    if trial % 2:
        table, first, nearest = (torch.round(x) for x in (table, first, nearest))
    barred = torch.rand(B, N, generator=random) < 0.3
    table.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    first, nearest = (x.masked_fill(barred, torch.inf) for x in (first, nearest))
    if trial % 4 == 0:
        nearest = torch.full_like(nearest, -torch.inf).masked_fill(barred, torch.inf)
    assert torch.equal(walk(table, first, nearest, steps), plain(table, first, nearest, steps))


@interpreted
@pytest.mark.parametrize("trial", range(16))
def test_the_same_choice_as_without_it(monkeypatch, trial):
    """Rows of different length, seeds and counts, of every dtype and distance, with copies among the tokens: picked by
    the kernel, queued one by one and read on a CPU, in the same order."""
    from btp.ops.farthest_point_triton import walk

    random = torch.Generator().manual_seed(trial)
    B, N, D = (int(torch.randint(low, high, (), generator=random)) for low, high in ((1, 4), (30, 60), (2, 20)))
    lengths = torch.randint(24, N + 1, (B,), generator=random)
    counts = [int(torch.randint(16, int(n) + 1, (), generator=random)) for n in lengths]
    x = torch.randn(B, N, D, generator=random).to(DTYPES[trial % 4])
    distance = diversity.DISTANCES[trial % 3]
    if distance != "cosine":  # whose copies are not at distance 0 to the last bit
        x[:, N - N // 2 :] = x[:, : N // 2].clone()
    seed = torch.randint(-1, 10, (B, int(torch.randint(0, 5, (), generator=random))), generator=random)
    sure = [len({i for i in row if i >= 0}) if trial % 2 else 0 for row in seed.tolist()]
    valid = torch.arange(N) < lengths[:, None]
    given = (x, seed, counts, valid)
    read = farthest_points(*given, distance=distance, ordered=True)

    def on_a_device(x, seed, counts, valid, power, ordered):
        return picks_queued.queued(x, seed, counts, valid, sure, power, ordered)

    calls = []
    monkeypatch.setattr(diversity, "read", on_a_device)
    queued = farthest_points(*given, distance=distance, ordered=True)
    monkeypatch.setattr(picks_queued, "one_launch", lambda device: lambda *args: calls.append(args) or walk(*args))
    assert torch.equal(farthest_points(*given, distance=distance, ordered=True), queued)
    assert torch.equal(read, queued)
    assert len(calls) == 1


def test_it_compiles_for_gpus():
    """Triton's compiler makes machine code of it for three generations of GPUs, down to ptxas; none is needed."""
    if find_spec("triton") is None:
        pytest.skip("needs Triton: make test-triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment)


def test_without_triton_picks_are_queued():
    """Nothing is tried and nothing warned of where it is not installed, nor on a CPU."""
    picks_queued.one_launch.cache_clear()
    assert picks_queued.one_launch(torch.device("cpu")) is None
    if find_spec("triton") is None:
        assert picks_queued.one_launch(CUDA) is None


@pytest.mark.skipif(find_spec("triton") is None or torch.cuda.is_available(), reason="needs Triton and no GPU")
def test_a_kernel_that_cannot_run_is_warned_of_once():
    """Picks are queued then, as without Triton."""
    picks_queued.one_launch.cache_clear()
    with pytest.warns(RuntimeWarning, match="cannot build the kernel of farthest points on cuda"):
        assert picks_queued.one_launch(CUDA) is None
    assert picks_queued.one_launch(CUDA) is None
    picks_queued.one_launch.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or find_spec("triton") is None, reason="needs a CUDA device, Triton")
@pytest.mark.parametrize("shape", [(1, 576, 4096, 144), (8, 576, 1024, 288), (2, 2880, 512, 720)])
def test_on_a_gpu(monkeypatch, shape):
    """The kernel runs there, and picks what the queued loop does."""
    B, N, D, k = shape
    x, seed = torch.randn(B, N, D, device=CUDA), torch.arange(5, device=CUDA).expand(B, 5)
    assert picks_queued.one_launch(x.device) is not None
    found = [farthest_points(x, some, k, ordered=True) for some in (seed, seed[:, :0])]
    monkeypatch.setattr(picks_queued, "one_launch", lambda device: None)
    for some, picks in zip((seed, seed[:, :0]), found, strict=True):
        assert torch.equal(farthest_points(x, some, k, ordered=True), picks)
