"""The Pareto front of scores and costs."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pareto_front(cost: ArrayLike, score: ArrayLike) -> NDArray[np.bool_]:
    """Which points no other beats: none costs at most as much and scores at least as well, better in one of both.

    Args:
        cost, score: [n] numbers; less cost and more score are better. A point without either number is on no front.

    Returns:
        [n] True on the front; points equal in both are on it together.
    """
    x, y = np.asarray(cost, float), np.asarray(score, float)
    known = ~(np.isnan(x) | np.isnan(y))
    on, best = np.zeros(len(x), bool), -np.inf
    for value in np.unique(x[known]):
        here = known & (x == value)
        top = y[here].max()
        if top > best:
            on |= here & (y == top)
            best = top
    return on
