"""Which tokens of a grid lie farthest apart: depends on the grid alone, so it is worked out once per grid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

DISTANCES = ("manhattan", "euclidean")


def spatial_seeds(coord: Tensor, image: Tensor, counts: Sequence[int], distance: str) -> list[tuple[int, ...]]:
    """Tokens spread evenly over the grids of each row, in the order in which they are picked.

    Each frame of each image is a grid of its own. It gets seeds in proportion to its tokens, starts from its
    first one and takes the one farthest from all taken so far; ties go to the lowest index. Grids take turns,
    so that whatever is cut off at the end is cut off evenly. Tokens off the grid (newlines) are never seeds.

    Reads `coord` and `image` on the host: one copy from the device where they lie on one.

    Args:
        coord: [B, N, 3] (frame, row, column); -1 off the grid and for padding.
        image: [B, N] which image of the row.
        counts: B numbers of seeds, capped at the tokens on the grids.
        distance: manhattan | euclidean.

    Returns:
        B tuples of distinct indices into N.

    Raises:
        ValueError: the distance is unknown.

    Source: Li et al. 2025, arXiv:2505.22038, section 4.2 and appendix 7.7.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance is {distance!r}. Choose from: {', '.join(DISTANCES)}.")
    if not any(counts):
        return [()] * len(counts)
    places = torch.cat([image[..., None], coord], dim=-1).long().cpu().numpy()  # [B, N, 4]
    return [_row(row.tobytes(), count, distance) for row, count in zip(places, counts, strict=True)]


@lru_cache(maxsize=256)
def _row(raw: bytes, count: int, distance: str) -> tuple[int, ...]:
    """Seeds of one row, by the bytes of its [N, 4] image numbers and coordinates: most rows have met before."""
    places = torch.frombuffer(bytearray(raw), dtype=torch.long).view(-1, 4).tolist()
    on_grid = sorted((i for i, place in enumerate(places) if place[2] >= 0), key=lambda i: (places[i][:2], i))
    grids = [list(group) for _, group in groupby(on_grid, key=lambda i: places[i][:2])]
    shares = proportional(min(count, len(on_grid)), [len(grid) for grid in grids])
    turns = []
    for g, (grid, share) in enumerate(zip(grids, shares, strict=True)):
        picks = spread(tuple((places[i][2], places[i][3]) for i in grid), share, distance)
        turns += [((j + 0.5) / share, g, grid[pick]) for j, pick in enumerate(picks)]
    return tuple(token for _, _, token in sorted(turns))


@lru_cache(maxsize=256)
def spread(places: tuple[tuple[int, int], ...], count: int, distance: str) -> tuple[int, ...]:
    """Greedy max-min over grid places, from the first one on; cached.

    Args:
        places: (row, column) of each token.
        count: picks, at most len(places).
        distance: manhattan | euclidean.

    Returns:
        Indices into `places`, in the order of picking.
    """
    grid = torch.tensor(places, dtype=torch.long).view(-1, 2)
    nearest = torch.full((len(places),), torch.iinfo(torch.long).max)
    picks = [0][:count]
    for _ in range(count - 1):
        apart = grid - grid[picks[-1]]
        away = apart.abs().sum(1) if distance == "manhattan" else apart.square().sum(1)  # squares rank alike
        nearest = torch.minimum(nearest, away)
        nearest[picks[-1]] = -1
        picks.append(int(nearest.argmax()))
    return tuple(picks)


def proportional(count: int, sizes: Sequence[int]) -> list[int]:
    """Share `count` among groups in proportion to their sizes; what is left goes to the largest remainders.

    Args:
        count: at most the sum of the sizes.
        sizes: Sizes of the groups.

    Returns:
        One number per group, none above its size; equal remainders favour the earlier group.
    """
    total = sum(sizes)
    shares = [count * size // total for size in sizes]
    rest = sorted(range(len(sizes)), key=lambda i: (-(count * sizes[i] % total), i))
    for i in rest[: count - sum(shares)]:
        shares[i] += 1
    return shares
