"""The importance map: the card's worked example, its limits, and that blocks and pictures at once do not matter."""

import pytest
import torch

from btp.ops import attention_received as inflow
from btp.ops import row_blocks
from btp.ops.attention_received import inflow_map, qualifying_rows, received_attention

ROWS = [[0.10, 0.60, 0.20, 0.10], [0.20, 0.40, 0.30, 0.10], [0.05, 0.75, 0.10, 0.10], [0.25, 0.45, 0.20, 0.10]]


def worked():
    """Queries and keys whose attention is ROWS: identity keys, logarithms as queries."""
    return torch.tensor(ROWS).log()[None, None], torch.eye(4)[None, None]


def drawn(P=2, H=3, N=11, C=0, d=8):
    return torch.randn(P, H, N, d), torch.randn(P, H, C + N, d)


def whole(queries, keys):
    """The same attention, all at once."""
    front = keys.shape[2] - queries.shape[2]
    return (queries @ keys.mT).softmax(-1).mean(1)[..., front:]


def test_worked_column_sums():
    """What each patch receives, and their mean of 1."""
    torch.testing.assert_close(received_attention(*worked()), torch.tensor([[0.6, 2.2, 0.8, 0.4]]))


@pytest.mark.parametrize(
    ("threshold", "rows", "combine", "wanted"),
    [
        (1.2, [1], "mean", [0.20, 0.40, 0.30, 0.10]),
        (0.7, [1, 2], "mean", [0.125, 0.575, 0.200, 0.100]),
        (0.7, [1, 2], "sum", [0.25, 1.15, 0.40, 0.20]),
        (0.0, [0, 1, 2, 3], "mean", [0.15, 0.55, 0.20, 0.10]),
        (50.0, [1], "mean", [0.20, 0.40, 0.30, 0.10]),
    ],
)
def test_worked_map(threshold, rows, combine, wanted):
    """The card's numbers; a threshold that none passes leaves the patch that receives most, 0 takes all."""
    queries, keys = worked()
    chosen = qualifying_rows(received_attention(queries, keys), threshold)
    assert chosen[0].nonzero().flatten().tolist() == rows
    torch.testing.assert_close(inflow_map(queries, keys, threshold, combine), torch.tensor([wanted]))


def test_the_map_sums_to_one_without_class_token():
    queries, keys = drawn()
    torch.testing.assert_close(inflow_map(queries, keys, 1.1, "mean").sum(1), torch.ones(2))
    torch.testing.assert_close(received_attention(queries, keys).mean(1), torch.ones(2))


@pytest.mark.parametrize("C", [0, 1, 2])
@pytest.mark.parametrize("block", [0, 1500, 2**22])
def test_blocks_and_class_tokens_do_not_matter(monkeypatch, block, C):
    """Any block gives what the whole matrix gives; class tokens take their share and leave."""
    monkeypatch.setattr(row_blocks, "CACHE", block)
    queries, keys = drawn(C=C)
    attention = whole(queries, keys)
    torch.testing.assert_close(received_attention(queries, keys), attention.sum(1))
    rows = qualifying_rows(attention.sum(1), 1.0)
    assert 0 < rows.sum() < rows.numel()
    wanted = (attention * rows[..., None]).sum(1)
    torch.testing.assert_close(inflow_map(queries, keys, 1.0, "sum"), wanted)


@pytest.mark.parametrize(("held", "pictures"), [(0, [1] * 5), (3 * 4 * 121, [3, 2]), (2**20, [5])])
def test_no_more_pictures_are_held_than_fit(monkeypatch, held, pictures):
    """And how many at once changes nothing."""
    queries, keys = drawn(P=5, C=1)
    received, found = received_attention(queries, keys), inflow_map(queries, keys, 1.1, "mean")
    monkeypatch.setattr(inflow, "HELD", held)
    real = torch.ones(5, 11, dtype=torch.bool)
    assert [len(attention) for attention, _ in inflow._attention(queries, keys, real)] == pictures
    torch.testing.assert_close(received_attention(queries, keys, real), received)
    torch.testing.assert_close(inflow_map(queries, keys, 1.1, "mean", real), found)


def test_padding_of_a_smaller_picture_does_not_matter():
    """A picture alone gives what it gives beside a larger one, whatever the padding holds."""
    queries, keys = drawn(P=1, N=7, C=1)
    padded = torch.cat([queries, 9 * torch.randn(1, 3, 4, 8)], 2), torch.cat([keys, 9 * torch.randn(1, 3, 4, 8)], 2)
    real = (torch.arange(11) < 7)[None]
    received = received_attention(*padded, real)
    torch.testing.assert_close(received[:, :7], received_attention(queries, keys))
    assert (received[:, 7:] == 0).all()
    chosen = qualifying_rows(received, 0.9, real)
    assert not chosen[:, 7:].any()
    assert torch.equal(chosen[:, :7], qualifying_rows(received[:, :7], 0.9))
    found = inflow_map(*padded, 0.9, "mean", real)
    torch.testing.assert_close(found[:, :7], inflow_map(queries, keys, 0.9, "mean"))
    assert (found[:, 7:] == 0).all()


def test_half_precision_is_summed_in_float32():
    queries, keys = drawn()
    assert received_attention(queries.bfloat16(), keys.bfloat16()).dtype == torch.float32
    assert received_attention(queries.double(), keys.double()).dtype == torch.float64


def test_messages():
    queries, keys = drawn(C=1)
    with pytest.raises(ValueError, match=r"pruner.method.rows is 'max'"):
        inflow_map(queries, keys, 1.1, "max")
    with pytest.raises(ValueError, match="tokens were withdrawn in the vision tower"):
        received_attention(queries, keys[:, :, :5])
