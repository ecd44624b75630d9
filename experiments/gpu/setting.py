"""What every step is told, and what it may answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]

Cell = tuple[str, Callable[[], dict[str, Any]]]  # what is measured, by name, and what measures it


@dataclass(frozen=True)
class Setting:
    """Where the steps compute.

    Attributes:
        device: Device that is tried.
        tiny: True for the smallest case of each step, on small models alone.
        folder: Folder for what a step leaves on disk.
    """

    device: torch.device
    tiny: bool
    folder: Path


class LeftOut(Exception):
    """A step cannot run on this machine; the text says what it lacks. The next start tries it again."""
