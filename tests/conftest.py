"""Makes tests/tiny.py importable and keeps runs quiet and repeatable."""

import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "runner"), str(HERE / "engine"), str(HERE / "training")]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
