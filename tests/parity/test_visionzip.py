"""VisionZip against what its released tower returned (package visionzip 0.1.3), recorded in visionzip.npz."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from btp.core.pruner import Tokens
from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.pruners.visionzip import VisionZip

HERE = Path(__file__).parent
DATA = np.load(HERE / "visionzip.npz")
CASES = sorted({key.split("/")[0] for key in DATA.files})


def load(case, name):
    return torch.from_numpy(DATA[f"{case}/{name}"])


def seen(hidden):
    """Tokens of whole pictures, without their class token."""
    B, N = hidden.shape[0], hidden.shape[1] - 1
    index = torch.arange(N).expand(B, N)
    return Tokens(
        hidden=hidden[:, 1:],
        position=index,
        coord=torch.stack([torch.zeros_like(index), torch.zeros_like(index), index], dim=2),
        image=torch.zeros_like(index),
        size=torch.ones_like(index),
        valid=index >= 0,
        total=torch.full((B,), N),
        index=index,
    )


def test_all_recorded_cases_are_tested():
    """What the json promises is in the file, and nothing in the file is of an unknown kind."""
    recorded = json.loads((HERE / "visionzip.json").read_text())["recorded_cases_here"]
    assert set(recorded) <= set(CASES)
    assert all(re.fullmatch(r"case\d+", case) for case in CASES)


@pytest.mark.parametrize("case", CASES)
def test_tokens(case):
    """The rows that go to the projector, and the patches that are copied."""
    attention, hidden, metric = (load(case, name) for name in ("cls_attention_heads", "hidden", "metric"))
    dominant, contextual = load(case, "dominant_contextual").tolist()
    pruner = VisionZip(score="cls", contextual=0.15625, cls=True, merge="official", order="official")
    config = {"site": "vision.output", "keep": dominant + contextual, "positions": "renumber", "contextual": contextual}
    schedule = Schedule.from_config([config])
    pruner.check(schedule)
    values = {
        Signal("attention", "vision.feature", "cls"): attention[:, :, None, 1:],
        Signal("keys", "vision.feature"): metric[:, None, 1:],
        Signal("hidden", "vision.output", "cls"): hidden[:, :1],
    }
    selection = pruner.select(seen(hidden), Signals(values), schedule[0])
    torch.testing.assert_close(selection.states, load(case, "tokens_out"), atol=1e-5, rtol=0)
    copied = selection.keep[:, 1:dominant] + 1
    recorded = load(case, "dominant_idx_as_returned").sort(1).values
    assert torch.equal(copied, recorded[:, 1:])
    assert torch.equal(copied[0], load(case, "dominant_rows_in_order_batch0")[1:])
