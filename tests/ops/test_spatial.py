"""Seeds on grids, by hand."""

import pytest
import torch

from btp.ops.grid_spread import proportional, spatial_seeds, spread


def grid(rows, columns, frame=0):
    """[N, 3] coordinates, row by row."""
    return torch.cartesian_prod(torch.tensor([frame]), torch.arange(rows), torch.arange(columns)).view(-1, 3)


def seeds(coord, count, image=None, distance="manhattan"):
    image = torch.zeros(len(coord), dtype=torch.long) if image is None else image
    return spatial_seeds(coord[None], image[None], [count], distance)[0]


def test_worked_example():
    """4 x 4, from token 0: the far corner, then 3 before its equals, then 9 before 12."""
    assert seeds(grid(4, 4), 4) == (0, 15, 3, 9)


def test_euclidean_differs():
    """By Euclid the fourth corner is farther than the inside, and only then the inside is next."""
    assert seeds(grid(4, 4), 5) == (0, 15, 3, 9, 6)
    assert seeds(grid(4, 4), 5, distance="euclidean") == (0, 15, 3, 12, 5)


def test_longer_sets_extend_shorter_ones():
    """The order of picking does not depend on how many are asked for."""
    whole = seeds(grid(5, 7), 35)
    assert sorted(whole) == list(range(35))
    assert all(seeds(grid(5, 7), n) == whole[:n] for n in range(36))


def test_newlines_are_never_seeds():
    """Tokens off the grid are passed over, and counts are capped at those on it."""
    coord = torch.cat([grid(2, 2)[:2], torch.full((1, 3), -1), grid(2, 2)[2:], torch.full((1, 3), -1)])
    assert seeds(coord, 6) == (0, 4, 1, 3)


def test_images_and_frames_share_and_take_turns():
    """Seeds go to grids in proportion to their tokens, whatever the order of the grids."""
    coord = torch.cat([grid(4, 4), grid(2, 4)])
    image = torch.tensor([0] * 16 + [1] * 8)
    assert seeds(coord, 3, image) == (0, 16, 15)
    assert seeds(coord, 6, image) == (0, 16, 15, 3, 23, 9)
    assert seeds(torch.cat([grid(2, 2, 0), grid(2, 2, 1)]), 4) == (0, 4, 3, 7)


def test_rows_of_a_batch_are_apart():
    """Each row has its own grid and count; padding is off the grid."""
    coord = torch.full((2, 16, 3), -1)
    coord[0], coord[1, :4] = grid(4, 4), grid(2, 2)
    assert spatial_seeds(coord, torch.zeros(2, 16, dtype=torch.long), [4, 2], "manhattan") == [
        (0, 15, 3, 9),
        (0, 3),
    ]
    assert spatial_seeds(coord, torch.zeros(2, 16, dtype=torch.long), [0, 0], "manhattan") == [(), ()]


def test_worked_out_once_per_grid():
    """The second sample of a size finds the picks of the first, and so does a second picture of that size."""
    first = seeds(grid(6, 9), 20)
    before = spread.cache_info().misses
    assert seeds(grid(6, 9), 20) == first
    coord, image = torch.cat([grid(6, 9)] * 2)[None], torch.arange(2).repeat_interleave(54)[None]
    spatial_seeds(coord, image, [40], "manhattan")
    assert spread.cache_info().misses == before


def test_proportional():
    """Largest remainders take what is left, none gets more than it has."""
    assert proportional(4, [16, 8]) == [3, 1]
    assert proportional(5, [4, 4, 4]) == [2, 2, 1]
    assert proportional(3, [1, 1, 1]) == [1, 1, 1]
    assert proportional(0, []) == []


def test_message():
    """An unknown distance is refused."""
    with pytest.raises(ValueError, match=r"distance is 'cosine'\. Choose from: manhattan, euclidean"):
        seeds(grid(2, 2), 1, distance="cosine")
