"""DivPrune against its released code: the order of its picks."""

from dataclasses import replace

import pytest
import torch
from pruners.hand import tokens

from btp.core.schedule import Stage
from btp.core.signals import Signals
from btp.pruners.divprune import DivPrune
from parity.plain_llama import recorded

ARRAYS, _ = recorded("divprune")
CASES = sorted(key.removesuffix("_x") for key in ARRAYS if key.endswith("_x"))


def one_copy(case, picks):
    """Case c has bit-identical rows 29, 59, ...; which of them is taken is a tie."""
    return [29 if case == "c" and i % 30 == 29 else i for i in picks.tolist()]


def pick(case, order, copies=1):
    x = ARRAYS[f"{case}_x"]
    count = round(float(ARRAYS[f"{case}_ratio"]) * len(x))  # half to even, as the released code
    seen = replace(tokens(*[len(x)] * copies), hidden=x.expand(copies, -1, -1))
    pruner = DivPrune(order=order, distance="cosine")
    return pruner.select(seen, Signals(), Stage("llm.input", count)).keep


@pytest.mark.parametrize("case", CASES)
def test_order(case):
    """Pick by pick, alone and in a batch."""
    official = one_copy(case, ARRAYS[f"{case}_order"])
    for row in (*pick(case, "selection"), *pick(case, "selection", copies=3)):
        assert one_copy(case, row) == official


@pytest.mark.parametrize("case", CASES)
def test_kept(case):
    """The same tokens, ascending."""
    official = sorted(one_copy(case, ARRAYS[f"{case}_kept"]))
    assert sorted(one_copy(case, pick(case, "raster")[0])) == official


@pytest.mark.parametrize("case", [case for case in CASES if case != "b"])
def test_other_distances_pick_otherwise(case):
    """l1 and l2 are other methods."""
    x = ARRAYS[f"{case}_x"]
    seen = replace(tokens(len(x)), hidden=x[None] * torch.linspace(1, 2, len(x))[:, None])
    for distance in ("l1", "l2"):
        keep = DivPrune(order="selection", distance=distance).select(seen, Signals(), Stage("llm.input", 20)).keep
        assert one_copy(case, keep[0]) != one_copy(case, ARRAYS[f"{case}_order"])[:20]
