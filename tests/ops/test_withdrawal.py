"""The divergence by hand, and the search for a layer."""

import math

import pytest
import torch

from btp.ops.kl_search import divergence, first_passing

FULL = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log()
WITHDRAWN = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()


def test_by_hand():
    """.6 ln(.6/.7) + .3 ln(.3/.2), and the other direction; between the two lies an eta that tells them apart."""
    moved = divergence(WITHDRAWN, FULL, "withdrawn")
    assert math.isclose(moved, 0.6 * math.log(0.6 / 0.7) + 0.3 * math.log(1.5), rel_tol=1e-12)
    assert round(float(moved), 6) == 0.029149
    assert round(float(divergence(WITHDRAWN, FULL, "full")), 6) == 0.026812
    eta = 0.028
    assert first_passing(moved[None], [7], eta, 32) == 32
    assert first_passing(divergence(WITHDRAWN, FULL, "full")[None], [7], eta, 32) == 7


def test_against_torch():
    """KL as torch has it, over any leading shape, in float32 at least."""
    p, q = torch.randn(4, 3, 50).log_softmax(-1), torch.randn(3, 50).log_softmax(-1)
    wanted = torch.nn.functional.kl_div(q.expand_as(p), p, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(divergence(p, q, "withdrawn"), wanted)
    assert divergence(p.bfloat16(), q.bfloat16(), "full").dtype == torch.float32
    assert divergence(q, q, "full").abs().max() == 0


def test_tokens_ruled_out():
    """What the weighing side rules out adds nothing; what only the other one rules out is infinitely far."""
    p, q = torch.tensor([0.0, -torch.inf]), torch.tensor([0.5, 0.5]).log()
    assert float(divergence(p, q, "withdrawn")) == pytest.approx(math.log(2))
    assert float(divergence(p, q, "full")) == math.inf
    assert float(divergence(p, p, "full")) == 0


def test_first_passing():
    """In the order of the candidates, not the least divergence; equal passes; none passing is said."""
    moved = torch.tensor([0.5, 0.2, 0.3, 0.1])
    assert first_passing(moved, (5, 6, 7, 8), 0.25, 9) == 6
    assert first_passing(moved, (8, 7, 6, 5), 0.25, 9) == 7
    assert first_passing([0.5, 0.25], (5, 6), 0.25, 9) == 6
    assert first_passing(moved, (5, 6, 7, 8), 0.05, 9) == 9
    assert first_passing([math.nan, 0.1], (5, 6), 1.0, 9) == 6
    found = [first_passing(moved, (5, 6, 7, 8), eta / 100, 9) for eta in range(60)]
    assert found == sorted(found, reverse=True)
    assert first_passing([0.0, 0.0], (5, 6), 0.0, 9) == 5


def test_messages():
    """An unknown direction, and lists of unequal length."""
    with pytest.raises(ValueError, match=r"pruner.search.direction is 'both'. Choose from: withdrawn, full"):
        divergence(FULL, FULL, "both")
    with pytest.raises(ValueError, match="2 divergences came for 1 candidate layers"):
        first_passing([0.1, 0.2], [5], 1.0, 9)
