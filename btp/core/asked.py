"""What a prompt asks of which videos, for methods that hold frames against the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One row of a batch.

    Attributes:
        question: its text, without the chat template.
        clips: its videos in the order of the prompt, behind all pictures; each a sequence of frames (PIL pictures)
            that may open them only when they are looked at.
    """

    question: str
    clips: tuple[Sequence[Any], ...] = ()
