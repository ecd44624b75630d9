"""CDPruner: a kernel of three tokens by hand, relevance by hand, and a determinant that no other greedy step beats."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hand import stage, tokens

from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.ops.conditional_diversity import ascending, diverse_set
from btp.pruners.cdpruner import CDPruner

TEXT = Signal("hidden", "llm.input", "text")
AT = "llm.input"


def seen(hidden, words, real=None):
    """Tokens with these states, and the text behind them."""
    shown = replace(tokens(*[len(hidden)]), hidden=torch.tensor(hidden)[None])
    values = torch.tensor(words)[None]
    real = torch.ones(1, len(words), dtype=torch.bool) if real is None else torch.tensor([real])
    return shown, Signals({TEXT: values}, {TEXT: real})


def test_the_kernel_by_hand():
    """Quality 3, 2, 1 at 0, 0 and 90 degrees: after the first the copy adds 4 - 4 = 0, the third 1 - 0 = 1."""
    x = torch.tensor([[[2.0, 0], [5, 0], [0, 1]]])
    assert diverse_set(x, torch.tensor([[3.0, 2, 1]]), [2]).tolist() == [[0, 2]]
    # 45 degrees: it adds 4 (1 - 1/2) = 2 > 1
    x = torch.tensor([[[2.0, 0], [5, 5], [0, 1]]])
    assert diverse_set(x, torch.tensor([[3.0, 2, 1]]), [3]).tolist() == [[0, 1, 2]]


def test_every_pick_is_the_best_there_is():
    """Each next token makes the determinant of the chosen ones larger than any other would."""
    torch.manual_seed(0)
    x, quality = torch.randn(1, 9, 6), torch.rand(1, 9)
    unit = torch.nn.functional.normalize(x[0], dim=-1).double() * quality[0].double()[:, None]
    kernel = unit @ unit.mT
    picks = diverse_set(x, quality, [5])[0].tolist()
    for n in range(1, 6):
        chosen = picks[: n - 1]
        worth = {i: float(torch.linalg.det(kernel[[*chosen, i]][:, [*chosen, i]])) for i in range(9) if i not in chosen}
        assert picks[n - 1] == max(worth, key=worth.get)


def test_copies_come_last_and_in_order():
    """More picks than directions: distinct tokens, the lowest index first, no NaN."""
    x = torch.tensor([[[1.0, 0], [0, 2], [1, 1], [3, 0], [0, 0]]])
    picks = diverse_set(x, torch.ones(1, 5), [5])[0].tolist()
    assert sorted(picks) == [0, 1, 2, 3, 4]
    assert picks == [0, 1, 2, 3, 4]


def test_ragged_rows():
    """Padding is never picked; a row is picked from as if alone."""
    torch.manual_seed(1)
    x, quality = torch.randn(2, 8, 4), torch.rand(2, 8)
    valid = torch.arange(8) < torch.tensor([[8], [5]])
    picks = diverse_set(x, quality, [4, 2], valid)
    assert picks[1, 2:].tolist() == [-1, -1]
    assert torch.equal(picks[1:, :2], diverse_set(x[1:, :5], quality[1:, :5], [2]))
    assert ascending(torch.tensor([[3, 1, -1]]), 4).tolist() == [[1, 3, -1]]
    with pytest.raises(ValueError, match=r"asked for \(9,\) of 8 tokens"):
        diverse_set(x[:1], quality[:1], [9])


def test_relevance_by_hand():
    """Cosines to the words (1, 0) and (0, 1), the padded word apart: 1/2, 0.7071, -1/2 become 0.8284, 1, 0."""
    shown, values = seen([[3.0, 0], [1, 1], [-2, 0]], [[2.0, 0], [0, 7], [9, 9]], [True, True, False])
    found = CDPruner(relevance="text").explain(shown, values, stage(AT))["relevance"]
    torch.testing.assert_close(found, torch.tensor([[1 / 1.2071, 1.0, 0.0]]), atol=1e-4, rtol=0)
    turned = CDPruner(relevance="inverse").explain(shown, values, stage(AT))["relevance"]
    torch.testing.assert_close(turned, torch.tensor([[0.2071 / 1.2071, 0.0, 1.0]]), atol=1e-4, rtol=0)


def test_the_choice_by_hand():
    """The text points at the second axis: its token is first. Without text the first of equals is."""
    shown, values = seen([[1.0, 0], [1, 0.1], [0, 1]], [[0.0, 1]])
    kept = {r: CDPruner(relevance=r).select(shown, values, stage(AT, 1)).keep.tolist() for r in ("text", "none")}
    assert kept == {"text": [[2]], "none": [[0]]}
    assert CDPruner(relevance="none").select(shown, Signals(), stage(AT, 2)).keep.tolist() == [[0, 2]]


def test_a_text_that_says_nothing():
    """No word behind the picture, or all tokens alike to it: diversity decides, and nothing is NaN."""
    shown, values = seen([[1.0, 0], [2, 0], [0, 1]], [[0.0, 1]], [False])
    selection = CDPruner(relevance="text").select(shown, values, stage(AT, 2))
    assert selection.keep.tolist() == [[0, 2]]
    assert selection.scores.tolist() == [[1, 1, 1]]


def test_any_pair_is_beaten():
    """With two picks of orthogonal tokens the two of highest quality stay."""
    quality = torch.tensor([[0.3, 0.9, 0.1, 0.8]])
    best = max(combinations(range(4), 2), key=lambda pair: quality[0, list(pair)].prod())
    assert sorted(diverse_set(torch.eye(4)[None], quality, [2])[0].tolist()) == list(best)


def test_messages():
    """Unknown settings and other sites are refused with their key."""
    with pytest.raises(ValueError, match=r"pruner.method.relevance is 'clip'. Choose from: text, inverse, none"):
        CDPruner(relevance="clip")
    method = CDPruner(relevance="text")
    with pytest.raises(ValueError, match=r"schedule.0.site is vision.output, .* Set schedule.0.site to llm.input"):
        method.check(Schedule.from_config([{"site": "vision.output", "keep": 0.5}]))
    method.check(Schedule.from_config([{"site": "llm.input", "keep": 0.5}, {"site": "llm.layer.3", "keep": 0}]))
    assert method.needs(stage(AT)) == (TEXT,)
    assert CDPruner(relevance="none").needs(stage(AT)) == ()
