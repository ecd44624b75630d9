"""VisionZip: the card's worked example, splits, orders, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from checked_selection import check_selection
from hand import row, signals, stage, tokens

from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.ops.merge import merge_sizes, merge_states
from btp.pruners.visionzip import VisionZip

SETTINGS = {"score": "cls", "contextual": 0.15625, "cls": True, "merge": "official", "order": "official"}
ATTENTION = torch.tensor([[0.05, 0.30, 0.02, 0.10, 0.08, 0.25, 0.10], [0.15, 0.20, 0.04, 0.10, 0.12, 0.15, 0.10]])
H = torch.tensor([[0.0, 0], [1, 0], [9, 9], [0, 1], [2, 0], [0, 3], [8, 8], [1, 1]])
G = torch.tensor([[1.0, 0], [1, 0], [1, 1], [0, 1], [1, 0.1], [0, 1], [1, 1], [0.2, 1]])
BLOCK = "vision.feature"


def visionzip(**changed):
    return VisionZip(**SETTINGS | changed)


def example(cls_state=(7.0, 7)):
    """Seven patches behind a class token; its own attention is high, and counts for nothing."""
    seen = replace(tokens(7), hidden=H[None, 1:])
    values = {
        Signal("attention", BLOCK, "cls"): ATTENTION[None, :, None],
        Signal("attention", BLOCK, "mean"): ATTENTION[None, :, None],
        Signal("keys", BLOCK): G[None, None, 1:],
        Signal("hidden", "vision.output", "cls"): torch.tensor(cls_state).view(1, 1, 2),
    }
    return seen, Signals(values)


def test_example():
    """Class token, patches 2 and 6 (from 1), then patch 1 alone and patch 4 with 3, 5 and 7."""
    seen, values = example()
    selection = visionzip().select(seen, values, stage("vision.output", 5, contextual=2))
    assert selection.keep.tolist() == [[2, 1, 5, 0, 3]]  # the class token stands in for patch 3, the first to leave
    assert selection.ordered
    expected = torch.tensor([[7, 7], [9, 9], [8, 8], [1, 0], [2 + 1 / 3, 5 / 3]])
    torch.testing.assert_close(selection.states[0], expected)
    assert selection.merge.target.tolist() == [[0, 1, 2, 3, 3, 5, 3]]
    assert merge_sizes(seen.size, selection.keep, selection.merge).sum() == 7


def test_example_with_means():
    """The paper's text: patch 4's group averages all four."""
    seen, values = example()
    selection = visionzip(merge="mean").select(seen, values, stage("vision.output", 5, contextual=2))
    torch.testing.assert_close(selection.states[0, 3:], torch.tensor([[1, 0], [0.75, 1.25]]))


def test_example_in_raster_order():
    """All in their places, the class token where it stands in."""
    seen, values = example()
    selection = visionzip(order="raster").select(seen, values, stage("vision.output", 5, contextual=2))
    assert selection.keep.tolist() == [[0, 1, 2, 3, 5]]
    assert not selection.ordered
    torch.testing.assert_close(selection.states[0, 2], torch.tensor([7.0, 7]))


def test_example_without_the_class_token():
    """One patch more instead (ties: the first of 1, 4, 5, 7); the plan alone says all."""
    seen, values = example()
    at = stage("vision.output", 5, contextual=2)
    pruner = visionzip(cls=False)
    selection = pruner.select(seen, values, at)
    assert selection.keep.tolist() == [[0, 1, 5, 2, 4]]  # rest 3 4 5 7 (from 1): step 2, gathering at 3 and 5
    assert selection.states is None
    states = merge_states(seen.hidden, selection.keep, selection.merge)
    torch.testing.assert_close(states[0, :3], H[[1, 2, 6]])
    assert Signal("hidden", "vision.output", "cls") not in pruner.needs(at)


@pytest.mark.parametrize(("keep", "contextual"), [(64, 10), (128, 20), (192, 30), (32, 5)])
def test_published_splits(keep, contextual):
    """The share of the yaml gives them, as does their number on the stage."""
    seen = tokens(576)
    found = []
    for at in (stage("vision.output", keep), stage("vision.output", keep, contextual=contextual)):
        selection = visionzip().select(seen, signals(visionzip(), seen, at), at)
        check_selection(selection, (keep,), (576,), "visionzip", at.site)
        dominant = selection.keep[0, 1 : keep - contextual].tolist()
        gathers = selection.keep[0, keep - contextual :].tolist()
        assert dominant == sorted(dominant)
        assert gathers == sorted(gathers)
        torch.testing.assert_close(selection.states[0, 1 : keep - contextual], seen.hidden[0, dominant])
        sizes = merge_sizes(seen.size, selection.keep, selection.merge)[0]
        assert sizes[: keep - contextual].tolist() == [1] * (keep - contextual)
        assert sizes.sum() == 576  # every patch is dominant, gathers, is gathered, or stands for the class token
        found.append(selection.keep.tolist())
    assert found[0] == found[1]


def test_constant_states_double():
    """Own patch plus mean: 2 v with members, v without; in the mean v."""
    at = stage("vision.output", 20, contextual=6)
    for merge, lengths in (("official", {1.0, 2.0}), ("mean", {1.0})):
        pruner, seen = visionzip(merge=merge, cls=False), tokens(40)
        seen = replace(seen, hidden=torch.ones_like(seen.hidden))
        selection = pruner.select(seen, signals(pruner, seen, at), at)
        states = merge_states(seen.hidden, selection.keep, selection.merge)
        assert set(states[0, 14:, 0].mul(1e5).round().div(1e5).tolist()) <= lengths
        assert states.max().round(decimals=5) == max(lengths)


def test_received_attention_asks_for_another_row():
    """Towers without class token: the mean over all rows, and no class token."""
    at = stage("vision.output", 5, contextual=2)
    pruner = visionzip(score="received", cls=False)
    assert pruner.needs(at) == (Signal("attention", BLOCK, "mean"), Signal("keys", BLOCK))
    seen, values = example()
    same = visionzip(cls=False).select(seen, values, at)
    assert pruner.select(seen, values, at).keep.tolist() == same.keep.tolist()


@pytest.mark.parametrize("cls", [True, False])
@pytest.mark.parametrize("order", ["official", "raster"])
@pytest.mark.parametrize("contextual", [0.3, 0.0, 4])
def test_pictures_do_not_see_each_other(order, cls, contextual):
    """Ragged pictures, counts, numbers of contextual tokens (none among them): each as alone."""
    pruner = visionzip(order=order, cls=cls, contextual=contextual)
    seen, at = tokens(40, 23, 9, 3, 2), stage("vision.output", 0.4)
    values = signals(pruner, seen, at)
    selection = pruner.select(seen, values, at)
    counts = (16, 9, 3, 1, 0)
    check_selection(selection, counts, seen.host_alive, "visionzip", at.site)
    for b, count in enumerate(counts):
        alone, its_values = row(b, seen, values)
        its = pruner.select(alone, its_values, at)
        n = seen.host_alive[b]
        assert its.keep[0].tolist() == selection.keep[b, :count].tolist()
        assert its.merge.target[0].tolist() + [-1] * (40 - n) == selection.merge.target[b].tolist()
        torch.testing.assert_close(its.merge.weight[0], selection.merge.weight[b, :n])
        if cls and count:
            torch.testing.assert_close(its.states[0], selection.states[b, :count])


def test_without_contextual_tokens_the_rest_is_dropped():
    """A share too small for one token: dominant patches only, and nothing flows into them."""
    seen, values = example()
    selection = visionzip(cls=False).select(seen, values, stage("vision.output", 2))
    assert selection.keep.tolist() == [[1, 5]]
    assert selection.merge.target.tolist() == [[-1, 1, -1, -1, -1, 5, -1]]


def test_a_picture_of_which_all_stays_is_left_as_it_is():
    """No class token, no merge, no new state; beside one that is cut, its own states come back."""
    seen, at = tokens(9, 6), stage("vision.output", 1.0)
    selection = visionzip().select(seen, signals(visionzip(), seen, at), at)
    assert selection.merge is None
    assert selection.states is None
    mixed = visionzip().select(seen, signals(visionzip(), seen, at), stage("vision.output", 6))
    assert mixed.keep[1].tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(mixed.states[1], seen.hidden[1, :6])


def test_signals():
    """All from the block that the projector reads."""
    assert visionzip().needs(stage("vision.output")) == (
        Signal("attention", BLOCK, "cls", "probs"),
        Signal("keys", BLOCK),
        Signal("hidden", "vision.output", "cls"),
    )
    assert visionzip().needs(stage("vision.output", 0)) == ()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"site": "llm.input", "keep": 64}, r"schedule.0.site is llm.input, .* to vision.output"),
        ({"site": "vision.mlp.3", "keep": 64}, r"schedule.0.site is vision.mlp.3"),
        ({"keep": 64, "contextual": 64}, r"schedule.0.contextual is 64, more than schedule.0.keep=64 .* class token"),
        ({"keep": 64, "contextual": 1.5}, r"schedule.0.contextual is 1.5. Write a number of tokens, or a share"),
        ({"keep": 64, "contextual": True}, r"schedule.0.contextual is True"),
        ({"keep": 0, "contextual": 3}, r"schedule.0.contextual has no effect: keep is 0"),
        ({"keep": 64, "context": 3}, r"schedule.0.context is set, but .* Did you mean contextual"),
        ({"keep": 64, "positions": "original"}, r"schedule.0.positions is original, .* to renumber"),
    ],
)
def test_stage_messages(stages, message):
    """What a stage cannot mean is refused with its key."""
    with pytest.raises(ValueError, match=message):
        visionzip().check(Schedule.from_config([{"site": "vision.output", "positions": "renumber"} | stages]))


def test_accepted_schedules():
    """Published settings; raster order keeps positions; a stage that withdraws all may stand anywhere."""
    for keep, contextual in ((64, 10), (128, 20), (192, 30), (63, 62)):
        config = {"site": "vision.output", "keep": keep, "positions": "renumber", "contextual": contextual}
        visionzip().check(Schedule.from_config([config, {"site": "llm.layer.20", "keep": 0}]))
    visionzip(order="raster").check(Schedule.from_config([{"site": "vision.output", "keep": 0.1}]))
    with pytest.raises(ValueError, match=r"pruner.method.contextual is 80, more than schedule.0.keep=64"):
        visionzip(contextual=80, order="raster").check(Schedule.from_config([{"site": "vision.output", "keep": 64}]))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("score", "text", "pruner.method.score is 'text'. Choose from: cls, received"),
        ("merge", "sum", "pruner.method.merge is 'sum'. Choose from: official, mean"),
        ("order", "best", "pruner.method.order is 'best'. Choose from: official, raster"),
        ("cls", 1, "pruner.method.cls is 1. Write true or false"),
        ("contextual", -1, "pruner.method.contextual is -1"),
        ("contextual", 1.0, r"pruner.method.contextual is 1.0. .* in \[0, 1\)"),
    ],
)
def test_method_messages(key, value, message):
    """Settings out of range are named."""
    with pytest.raises(ValueError, match=message):
        visionzip(**{key: value})
