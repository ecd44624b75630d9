"""Frames apart: by row, image and frame; counts shared out."""

import torch

from btp.ops.frames import frames_apart, shared_out


def test_each_frame_is_a_row():
    """Tokens keep their order; newlines and padding are in none."""
    image = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]])
    frame = torch.tensor([[1, 0, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0]])
    valid = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 1, 0]]).bool()
    found = frames_apart(image, frame, valid)
    assert found.index.tolist() == [[1, 3], [0, 2], [4, -1], [0, 1], [2, 4]]
    assert (found.rows, found.sizes) == ((0, 0, 0, 1, 1), (2, 2, 1, 2, 2))
    back = found.back(found.index * 10, torch.full((2, 6), -5))
    assert back.tolist() == [[0, 10, 20, 30, 40, -5], [0, 10, 20, -5, 40, -5]]


def test_nothing_on_a_grid():
    found = frames_apart(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    assert (found.rows, found.sizes, len(found.index)) == ((), (), 0)


def test_shares():
    """In proportion; the rest to the first frames that have room."""
    assert shared_out([7, 4], [0, 0, 1, 1], [8, 8, 2, 6]) == (4, 3, 1, 3)
    assert shared_out([16, 0], [0, 0, 1], [8, 8, 2]) == (8, 8, 0)
    for count in range(12):
        found = shared_out([count], [0] * 4, [5, 1, 3, 2])
        assert sum(found) == count
        assert all(k <= n for k, n in zip(found, (5, 1, 3, 2), strict=True))
