"""DART: the card's example, counts, and what the choice must not depend on."""

from dataclasses import replace

import pytest
import torch
from checked_selection import check_selection
from hand import row, signals, stage, tokens

from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.pruners.dart import DART

KEYS = Signal("keys", "llm.layer.1")
TEXT_KEYS = Signal("keys", "llm.layer.1", "text")
STATES = Signal("hidden", "llm.layer.2", None, "normed")
TEXT_STATES = Signal("hidden", "llm.layer.2", "text", "normed")
SETTINGS = {"image_pivots": 4, "text_pivots": 4, "final_norm": True, "visit_order": "norm", "count": "exact"}


def dart(**changed):
    return DART(**SETTINGS | changed)


def shown(x, norms, start, length):
    """Tokens and signals of one prompt from states and key norms of all its places, the image at `start`."""
    x, norms = torch.tensor(x).float(), torch.tensor(norms).float()
    image, text = slice(start, start + length), slice(start + length, None)
    keys = norms[None, None, :, None]
    seen = tokens(length)
    seen = replace(seen, hidden=x[None, image], position=seen.index + start)
    values = {
        KEYS: keys[:, :, image],
        TEXT_KEYS: keys[:, :, text],
        STATES: x[None, image],
        TEXT_STATES: x[None, text],
    }
    real = torch.ones(1, len(x) - start - length, dtype=torch.bool)
    return seen, Signals(values, {TEXT_KEYS: real, TEXT_STATES: real})


WORKED = (
    [[1, 0], [1, 0.1], [0.9, 0.2], [0, 1], [0.2, 1], [-1, 0.1], [0.6, 0.8], [0.5, -0.9], [1, 1], [0, -1]],
    [9, 1, 3, 8, 2, 1, 0.5, 4, 5, 7],
    1,
    7,
)


@pytest.mark.parametrize("count", ["exact", "quota"])
def test_worked_example(count):
    """One pivot each, 3 and 9; 9 comes first in a set, takes 4, and 3 takes 7: sequence places 3, 4, 7."""
    seen, values = shown(*WORKED)
    pruner = dart(image_pivots=1, text_pivots=1, visit_order="cpython", count=count)
    found = pruner.select(seen, values, stage(keep=3))
    assert found.keep.tolist() == [[2, 3, 6]]
    assert found.counts == (None if count == "exact" else (3,))


def test_visit_order_by_norm():
    """The visual pivot first: token 3 takes 7 (sequence) all the same, then 9 takes 4."""
    seen, values = shown(*WORKED)
    pruner = dart(image_pivots=1, text_pivots=1)
    assert pruner.select(seen, values, stage(keep=3)).keep.tolist() == [[2, 3, 6]]
    assert pruner.select(seen, values, stage(keep=2)).keep.tolist() == [[2, 6]]  # the first pivot takes what is over


@pytest.mark.parametrize(("keep", "quota"), [(40, 44), (32, 36), (8, 12), (7, 4), (60, 60), (3, 4)])
def test_counts(keep, quota):
    """exact keeps what is asked for; quota 4 + 8 (keep // 8), or all there are."""
    seen, at = tokens(60), stage(keep=keep)
    values = signals(dart(), seen, at)
    found = dart().select(seen, values, at)
    assert found.counts is None
    check_selection(found, (keep,), (60,), "dart", at.site)
    pruner = dart(count="quota")
    assert (pruner.adaptive, dart().adaptive) == (True, False)
    found = pruner.select(seen, values, at)
    assert found.counts == (quota,)
    check_selection(found, (quota,), (60,), "dart", at.site)


@pytest.mark.parametrize("order", ["norm", "cpython"])
def test_fewer_than_the_pivots(order):
    """The longest keys of them, in a batch with a row that keeps more."""
    seen = tokens(30, 8)
    at, pruner = stage(keep=0.25), dart(visit_order=order)
    values = signals(pruner, seen, at)
    keep = pruner.select(seen, values, at).keep[1]
    longest = values[KEYS][1, :, :8].abs().sum((0, 2)).topk(2).indices
    assert keep[:3].tolist() == [*sorted(longest.tolist()), -1]


@pytest.mark.parametrize("count", ["exact", "quota"])
@pytest.mark.parametrize("order", ["norm", "cpython"])
def test_pivots_stay_and_rows_are_alone(count, order):
    """The visual tokens with the longest keys are kept; rows of different text do not see each other."""
    pruner, seen, at = dart(count=count, visit_order=order), tokens(40, 23, 9), stage(keep=0.5)
    values = signals(pruner, seen, at)
    found = pruner.select(seen, values, at)
    counts = found.counts or seen.keep_counts(at)
    check_selection(found, counts, seen.host_alive, "dart", at.site)
    for b, kept in enumerate(counts):
        n = seen.host_alive[b]
        longest = values[KEYS][b, :, :n].abs().sum((0, 2)).topk(4).indices.tolist()
        assert set(longest) <= set(found.keep[b, :kept].tolist())
        alone, its_values = row(b, seen, values)
        assert pruner.select(alone, its_values, at).keep[0].tolist() == found.keep[b, :kept].tolist()


def test_scale_changes_nothing():
    """Any positive scale of each state, one of all keys."""
    seen, at = tokens(40), stage(keep=0.3)
    values = signals(dart(), seen, at)
    wanted = dart().select(seen, values, at).keep
    other = dict(values)
    other[KEYS], other[TEXT_KEYS] = 3 * other[KEYS], 3 * other[TEXT_KEYS]
    other[STATES] = other[STATES] * torch.rand(1, 40, 1).add(0.1)
    other[TEXT_STATES] = other[TEXT_STATES] * torch.rand(1, 5, 1).add(0.1)
    other = Signals(other, {s: values.rows_valid(s) for s in (TEXT_KEYS, TEXT_STATES)})
    assert torch.equal(dart().select(seen, other, at).keep, wanted)


def test_order_matters():
    """Another visit order keeps other tokens, as many."""
    seen, at = tokens(60), stage(keep=20)
    values = signals(dart(), seen, at)
    kept = dart().select(seen, values, at).keep
    other = dart(visit_order="cpython").select(seen, values, at).keep
    assert not torch.equal(kept, other)
    assert kept.shape == other.shape


def test_final_norm_is_a_choice():
    """Without it the states come as they are; whichever were declared are compared."""
    raw, seen, at = dart(final_norm=False), tokens(60), stage(keep=20)
    asked = (KEYS, TEXT_KEYS, Signal("hidden", "llm.layer.2"), Signal("hidden", "llm.layer.2", "text"))
    assert dart().needs(at) == (KEYS, TEXT_KEYS, STATES, TEXT_STATES)
    assert raw.needs(at) == asked
    values = signals(raw, seen, at)
    weighed = dict(values) | {s: values[s] * torch.linspace(0, 3, 16) for s in asked[2:]}
    weighed = Signals(weighed, {s: values.rows_valid(s) for s in asked if s.rows})
    assert not torch.equal(raw.select(seen, values, at).keep, raw.select(seen, weighed, at).keep)


@pytest.mark.parametrize("count", ["exact", "quota"])
@pytest.mark.parametrize("text", [0, 1, 3])
def test_little_text(text, count):
    """Fewer text tokens than pivots, or none: the others take their share, and no padding is a pivot."""
    seen, at = tokens(30), stage(keep=16)
    values = signals(dart(), seen, at)
    few = {s: v for s, v in values.items() if s.rows is None}
    few[TEXT_KEYS], few[TEXT_STATES] = values[TEXT_KEYS][:, :, :text], values[TEXT_STATES][:, :text]
    valid = torch.ones(1, text, dtype=torch.bool)
    found = dart(count=count).select(seen, Signals(few, {TEXT_KEYS: valid, TEXT_STATES: valid}), at)
    assert (found.counts or (16,)) == ((16,) if count == "exact" else (4 + (4 + text) * 2,))
    padded = dict(values) | {TEXT_KEYS: values[TEXT_KEYS] * 100}
    valid = torch.arange(5)[None] < text
    same = dart(count=count).select(seen, Signals(padded, {TEXT_KEYS: valid, TEXT_STATES: valid}), at)
    assert torch.equal(same.keep, found.keep)


def test_text_behind_is_counted_from_all_visual_tokens():
    """cpython: places of text pivots do not change when visual tokens went before."""
    pruner = dart(image_pivots=1, text_pivots=1, visit_order="cpython")
    seen, values = shown(*WORKED)
    some = torch.tensor([[1, 2, 3, 6]])  # sequence places 2, 3, 4, 7
    fewer = replace(
        tokens(4, total=(7,)), hidden=seen.hidden[:, some[0]], position=some + 1, index=some, total=torch.tensor([7])
    )
    cut = {KEYS: values[KEYS][:, :, some[0]], STATES: values[STATES][:, some[0]]}
    cut |= {TEXT_KEYS: values[TEXT_KEYS], TEXT_STATES: values[TEXT_STATES]}
    found = pruner.select(fewer, Signals(cut, {TEXT_KEYS: values.rows_valid(TEXT_KEYS)}), stage(keep=2))
    assert found.keep.tolist() == [[1, 2]]  # 3 and, by 9 mod 8 in front of 3, 4


def test_cpython_wants_one_run():
    """Two pictures with text between them have no places in the released code."""
    pruner, seen, at = dart(visit_order="cpython"), tokens(12), stage()
    values = signals(pruner, seen, at)
    pruner.select(seen, values, at)
    apart = replace(seen, position=seen.position + 3 * (seen.index >= 6))
    dart().select(apart, values, at)
    with pytest.raises(ValueError, match=r"visit_order is cpython, .* has several. Set pruner.method.visit_order to"):
        pruner.select(apart, values, at)


@pytest.mark.parametrize("site", ["llm.input", "llm.layer.0", "vision.output", "llm.cache.3"])
def test_site_messages(site):
    """A decoder layer must come before."""
    with pytest.raises(ValueError, match=rf"schedule.0.site is {site}, but pruner 'dart' finds its pivots by the keys"):
        dart().check(Schedule.from_config([{"site": site, "keep": 0.5}]))
    dart().check(Schedule.from_config([{"site": "llm.layer.1", "keep": 0.5}, {"site": "llm.layer.3", "keep": 0}]))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_pivots", 0, "pruner.method.image_pivots is 0. Write an integer of 1 or more"),
        ("text_pivots", -1, "pruner.method.text_pivots is -1. Write an integer of 0 or more"),
        ("text_pivots", 0.5, "pruner.method.text_pivots is 0.5"),
        ("image_pivots", True, "pruner.method.image_pivots is True"),
        ("final_norm", "yes", "pruner.method.final_norm is 'yes'. Write true or false"),
        ("visit_order", "random", "pruner.method.visit_order is 'random'. Choose from: norm, cpython"),
        ("count", "about", "pruner.method.count is 'about'. Choose from: exact, quota"),
    ],
)
def test_method_messages(key, value, message):
    """Settings out of range."""
    with pytest.raises(ValueError, match=message):
        dart(**{key: value})
