"""Raters: who they are, and what their attention says."""

import pytest
import torch

from btp.ops.text_raters import block_rank, bounded, choose_raters, loudest_heads, position_kernel, text_scores


def all_of(x):
    return torch.ones(x.shape[:2], dtype=torch.bool)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotary(positions, d, base=10000.0):
    """[2, B, R, d] as transformers hands it out: the frequencies twice."""
    angle = positions[..., None].float() * base ** (-torch.arange(0, d, 2) / d)
    return torch.stack([angle.cos(), angle.sin()]).repeat(1, 1, 1, 2)


def test_worked_example():
    """Image (1,0) (0,2), text (1,1) (2,0) (0,1): scores .3565 .3643 .2792, raters 0 and 1."""
    visual = torch.tensor([[[1.0, 0], [0, 2]]])
    text = torch.tensor([[[1.0, 1], [2, 0], [0, 1]]])
    scores = text_scores(visual, all_of(visual), text, all_of(text))
    assert scores[0].tolist() == pytest.approx([0.3565, 0.3643, 0.2792], abs=5e-5)
    assert choose_raters(scores, all_of(text)).tolist() == [[True, True, False]]


def test_scores_are_shares():
    """They sum to 1 over the text, and padding neither gives nor takes."""
    visual, text = random(3, 9, 6), random(3, 5, 6, seed=1)
    visual_valid = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    text_valid = torch.arange(5) < torch.tensor([2, 5, 3])[:, None]
    loud = visual.masked_fill(~visual_valid[..., None], 30.0), text.masked_fill(~text_valid[..., None], 30.0)
    scores = text_scores(loud[0], visual_valid, loud[1], text_valid)
    assert scores.sum(1).tolist() == pytest.approx([1, 1, 1])
    assert not scores[~text_valid].any()
    for b, (n, t) in enumerate(((9, 2), (4, 5), (1, 3))):
        alone = (visual[b, :n] @ text[b, :t].T).softmax(1).mean(0)
        assert scores[b, :t].tolist() == pytest.approx(alone.tolist(), abs=1e-6)
        raters = choose_raters(scores, text_valid)[b, :t]
        assert raters.tolist() == (alone > 1 / t).tolist()


def test_all_text_rates_where_none_stands_out():
    """Equal scores, a single token; without text there is nobody."""
    scores = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0], [0.0, 0, 0, 0]])
    valid = torch.arange(4) < torch.tensor([4, 1, 0])[:, None]
    assert torch.equal(choose_raters(scores, valid), valid)
    visual = random(1, 3, 2)
    assert text_scores(visual, all_of(visual), visual[:, :2], torch.zeros(1, 2, dtype=torch.bool)).tolist() == [[0, 0]]


@pytest.mark.parametrize("N", [7, 30, 576])
def test_equal_text_scores_equally(N):
    """The same word over and over: all of it rates, whatever order sums are taken in."""
    visual, text = random(1, N, 16), random(1, 1, 16, seed=1).expand(-1, 5, -1)
    assert choose_raters(text_scores(visual, all_of(visual), text, all_of(text)), all_of(text)).all()


def test_scores_in_float32():
    """Products of low precision states are summed in float32."""
    visual, text = random(1, 9, 64).bfloat16(), random(1, 5, 64, seed=1).bfloat16()
    low = text_scores(visual, all_of(visual), text, all_of(text))
    assert low.dtype == torch.float32
    assert torch.equal(low, text_scores(visual.float(), all_of(visual), text.float(), all_of(text)))


def test_kernel_is_rope_of_ones():
    """A query and a key of ones, turned as Llama turns them, times each other over sqrt(d)."""
    d = 8
    text, visual = rotary(torch.tensor([[7, 9]]), d), rotary(torch.tensor([[0, 3, 4]]), d)
    ones = torch.ones(1, 1, d)
    turned = torch.cat([-ones[..., d // 2 :], ones[..., : d // 2]], dim=-1)
    query, key = (ones * cos + turned * sin for cos, sin in (text, visual))
    kernel = position_kernel(text, visual)
    assert torch.allclose(kernel, query @ key.mT / d**0.5)
    far = torch.tensor([7, 4, 3])[:, None] * 10000.0 ** (-torch.arange(0, d, 2) / d)
    assert kernel[0, 0].tolist() == pytest.approx((2 * far.cos().sum(1) / d**0.5).tolist(), abs=1e-5)


def test_guard():
    """Small divisors grow to the guard and keep their sign; 0 guards nothing."""
    kernel = torch.tensor([0.01, -0.01, 2.0, -3.0])
    assert bounded(kernel, 0.1).tolist() == pytest.approx([0.1, -0.1, 2, -3])
    assert torch.equal(bounded(kernel, 0.0), kernel)


def test_loudest_heads():
    """By their sum, per row, in their own order; a share rounds down and keeps one at least."""
    block = torch.tensor([[1.0, 4, 2, 3], [5, 0, 5, 5]]).view(2, 4, 1, 1).expand(-1, -1, 2, 3)
    assert loudest_heads(block, 2)[:, :, 0, 0].tolist() == [[4, 3], [5, 5]]
    assert loudest_heads(block, 3)[:, :, 0, 0].tolist() == [[4, 2, 3], [5, 5, 5]]
    assert torch.equal(loudest_heads(block, 14), block)
    assert torch.equal(loudest_heads(block, 0.5), loudest_heads(block, 2))
    assert loudest_heads(block, 0.1)[:, :, 0, 0].tolist() == [[4], [5]]
    assert loudest_heads(block, 2).shape == (2, 2, 2, 3)


def test_rank_of_the_real_part():
    """As torch ranks each block alone in float32, whatever stands in rows and columns that do not count."""
    low = random(4, 3) @ random(3, 10, seed=1)
    block = torch.full((3, 6, 10), 7.0) + random(3, 6, 10, seed=2)
    block[0, 1:5] = low
    block[1, :5, :8] = random(5, 8, seed=3)
    block[2] = 0
    rows = torch.tensor([[0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]], dtype=torch.bool)
    columns = torch.arange(10) < torch.tensor([10, 8, 3])[:, None]
    assert block_rank(block, rows, columns).tolist() == [3, 5, 0]
    assert torch.linalg.matrix_rank(low).item() == 3


def test_rank_uses_the_tolerance_of_float32():
    """A direction at 1e-9 of the largest is none; one at 1e-3 is."""
    columns = rows = torch.ones(1, 2, dtype=torch.bool)
    for small, rank in ((1e-9, 1), (1e-3, 2)):
        assert block_rank(torch.tensor([[[1.0, 0], [0, small]]]), rows, columns).item() == rank
