"""Handwritten digits (scikit-learn's bundled set), split so that no image serves two splits."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from btp.tasks.drawn import SPLITS


@cache
def digit_images(split: str) -> dict[int, NDArray[np.float32]]:
    """Return the images of each digit that belong to `split`.

    Args:
        split: train | calibration | validation | test.

    Returns:
        digit -> [n, 8, 8] ink in [0, 1]; the splits are disjoint.
    """
    data = load_digits()
    order = np.random.default_rng(20250522).permutation(len(data.target))
    images, targets = data.images[order].astype(np.float32) / 16, data.target[order]
    names = list(SPLITS)
    edges = np.concatenate([[0.0], np.cumsum(list(SPLITS.values()))])
    low, high = edges[names.index(split)], edges[names.index(split) + 1]
    out = {}
    for digit in range(10):
        mine = images[targets == digit]
        out[digit] = mine[round(low * len(mine)) : round(high * len(mine))]
    return out
