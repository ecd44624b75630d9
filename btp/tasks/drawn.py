"""Base of the embedded tasks: samples generated on demand, the same for a split, a seed and an index."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

SPLITS = {"train": 0.64, "calibration": 0.08, "validation": 0.08, "test": 0.20}  # with their shares of what is divided


class Drawn:
    """Samples of one split. Splits draw from separate random streams, so that they share no sample.

    Args:
        split: train | calibration | validation | test.
        seed: Seed of the samples.
        size: number of samples.

    Raises:
        ValueError: an unknown split, or no samples.
    """

    name: str

    def __init__(self, split: str, seed: int, size: int):
        if split not in SPLITS:
            raise ValueError(f"task.split is {split!r}. Choose from: {', '.join(SPLITS)}.")
        if size < 1:
            raise ValueError(f"The task has no samples: its size is {size}. Set limit or task.size to 1 or more.")
        self.split, self.seed, self.size = split, seed, size

    def __len__(self) -> int:
        return self.size

    def stream(self, index: int) -> np.random.Generator:
        """Source of everything drawn for sample `index`.

        Raises:
            IndexError: there is no such sample.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"sample {index} of {self.size}")
        return np.random.default_rng([self.seed, 1 + list(SPLITS).index(self.split), index])

    def id_of(self, index: int) -> str:
        """The id of sample `index`."""
        return f"{self.split}-{self.seed}-{index:06d}"


def known_abilities(asked: Sequence[str] | None, known: Collection[str]) -> list[str]:
    """The abilities asked for; None asks for all.

    Raises:
        ValueError: one of them is unknown.
    """
    unknown = [a for a in asked or () if a not in known]
    if unknown:
        raise ValueError(f"task.abilities holds {unknown}. Choose from: {', '.join(known)}.")
    return list(asked or known)
