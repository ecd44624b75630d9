"""Trainings for tests: the smallest embedded model, a few steps, in this process."""

from pathlib import Path

import torch
from jobs import composed

from btp.runner.run import Run

SMALL = (
    "model=pocket_mini",
    "logger=none",
    "trainer=cpu",
    "limit=4",
    "trainer.workers=0",
    "training.batch=2",
    "training.log=2",
    "training.save=2",
    "training.gap=1",
)
TINY = ("pruner.method.width=16", "pruner.method.heads=2", "pruner.method.blocks=1")  # of LVPruning's modules


KEPT: dict = {}  # the model, loaded once


def prepared(output: Path, *words: str) -> Run:
    """A run of action=train that has not begun."""
    torch.set_num_threads(1)
    method = TINY if "pruner=lvpruning" in words else ("pruner.method.hidden=8",)
    return Run(composed(*SMALL, "action=train", *method, f"output={output}", *words), KEPT)


def folders(output: Path) -> list[Path]:
    """Of modules, finished or begun."""
    return sorted(p for p in (output / ".store" / "trained").glob("*") if p.is_dir())
