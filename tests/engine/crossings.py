"""Crossings of what a proof runs over: each value beside the hardest of all else first, all with all where time is."""

from itertools import product

import pytest


def one_by_one(*axes):
    """Every case of some axes; one that differs from the first of each axis in more than one place takes long.

    Args:
        axes: Values of each, the hardest first; one that is named again further on counts once.
    """
    axes = [list(dict.fromkeys(axis)) for axis in axes]
    found = []
    for case in product(*axes):
        other = sum(value != axis[0] for value, axis in zip(case, axes, strict=True))
        found.append(pytest.param(*case, marks=pytest.mark.long if other > 1 else ()))
    return found
