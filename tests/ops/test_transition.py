"""Transitions: the worked example of the method card in both readings, and what they do not depend on."""

import pytest
import torch

from btp.ops.transition import share_of_sum, transition_weights

ATTENTION = ([(1, 0), (1, 0), (0, 2), (2, 0), (1, 1)], [(1, 0), (-1, 0), (1, 1), (2, 1), (1, 0)])
MLP = ([(1, 1), (0, 1), (1, 0), (1, 1), (2, 0)], [(0, 1), (0, -2), (0, 1), (1, 0), (1, 1)])


def change(before, after):
    """[2, 1, S] norm ratio and cosine."""
    before, after = (torch.tensor(x, dtype=torch.float32) for x in (before, after))
    cosine = torch.cosine_similarity(before, after, dim=-1)
    return torch.stack([after.norm(dim=-1) / before.norm(dim=-1), cosine])[:, None]


def everywhere(block, direction, valid=None):
    valid = torch.ones(block.shape[1:], dtype=torch.bool) if valid is None else valid
    return transition_weights(block, block, valid, direction)


@pytest.mark.parametrize(
    ("direction", "sums", "scores", "kept"),
    [
        ("signed", [0.149176, 1.652603, 0.270205, 0.169086, 0.144885], [0.852503, 0.879168, 0.268329], [0, 1]),
        ("orthogonal", [0.295113, 0.431079, 0.514866, 0.336985, 0.286089], [0.398511, 1.151320, 0.450168], [1, 2]),
    ],
)
def test_worked_example(direction, sums, scores, kept):
    """One system, three visual, one text token; attention of the text .05, .60, .15."""
    total = everywhere(change(*ATTENTION), direction) + everywhere(change(*MLP), direction)
    assert total[0].tolist() == pytest.approx(sums, abs=1e-6)
    visible = torch.ones(1, 3, dtype=torch.bool)
    found = share_of_sum(total[:, 1:4], visible) + share_of_sum(torch.tensor([[0.05, 0.6, 0.15]]), visible)
    assert found[0].tolist() == pytest.approx(scores, abs=1e-6)
    assert sorted(found[0].topk(2).indices.tolist()) == kept


@pytest.mark.parametrize("direction", ["signed", "orthogonal"])
def test_normaliser_is_over_all_real_rows(direction):
    """A part of the rows weighs the same as in the whole; padding does not count, other rows do."""
    block = change(*ATTENTION)
    whole = everywhere(block, direction)
    part = transition_weights(block[:, :, 1:3], block, torch.ones(1, 5, dtype=torch.bool), direction)
    assert torch.equal(part, whole[:, 1:3])
    padded = torch.cat([block, torch.full((2, 1, 2), -9.0)], dim=2)
    valid = torch.arange(7)[None] < 5
    assert torch.allclose(everywhere(padded, direction, valid)[:, :5], whole)
    assert (everywhere(block[:, :, :4], direction) > whole[:, :4]).all()


@pytest.mark.parametrize("direction", ["signed", "orthogonal"])
def test_size_of_a_block_does_not_change_the_order(direction):
    """Scaling what a block hands out by one number scales all weights by it."""
    block = change(*MLP)
    larger = torch.stack([3 * block[0], block[1]])
    assert torch.allclose(everywhere(larger, direction), 3 * everywhere(block, direction))


def test_shares_sum_to_one():
    """Over the real tokens of a row; padding is 0."""
    valid = torch.tensor([[True, True, False]])
    assert share_of_sum(torch.tensor([[1.0, 3.0, 9.0]]), valid)[0].tolist() == pytest.approx([0.25, 0.75, 0])
    assert share_of_sum(torch.zeros(1, 3), valid).tolist() == [[0, 0, 0]]


def test_message():
    """A direction that is none."""
    block = change(*MLP)
    with pytest.raises(ValueError, match=r"direction is 'up'. Choose from: signed, orthogonal."):
        everywhere(block, "up")
