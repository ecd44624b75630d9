"""ToMe: where it compares what, how even and odd are counted, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from hand import signals, stage, tokens

from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.ops.bipartite import merge_to
from btp.ops.merge import merge_sizes, merge_states
from btp.pruners.tome import ToMe

SETTINGS = {"class_token": True, "order": "raster", "proportional_attention": True}
KEYS = torch.tensor([[1, 0.1], [0, 1], [0.1, 1], [0.9, 0.1], [-1, 0]])  # of the card's example, class token aside
X = torch.tensor([[20.0], [30], [40], [50], [60]])


def tome(**changed):
    return ToMe(**SETTINGS | changed)


def example():
    """The card's tokens behind the class token, of sizes 1, 2, 1, 1, 3."""
    seen = tokens(5)
    return replace(seen, hidden=X[None], size=torch.tensor([[1, 2, 1, 1, 3]]))


@pytest.mark.parametrize(("order", "keep"), [("raster", [0, 2, 4]), ("official", [0, 2, 4])])
def test_example_in_a_block(order, keep):
    """Patch 3 flows into patch 0, patch 1 into patch 2: with the class token in front the first patch is odd."""
    seen, at = example(), stage("vision.mlp.3", 3)
    heads = torch.stack([KEYS + 0.5, KEYS - 0.5])[None]  # [1, 2, 5, 2], mean KEYS
    selection = tome(order=order).select(seen, Signals({Signal("keys", "vision.layer.3"): heads}), at)
    assert selection.keep.tolist() == [keep]
    assert selection.merge.target.tolist() == [[0, 2, 2, 0, 4]]
    states = merge_states(seen.hidden, selection.keep, selection.merge)
    torch.testing.assert_close(states[0], torch.tensor([[35.0], [100 / 3], [60]]))
    assert merge_sizes(seen.size, selection.keep, selection.merge).tolist() == [[2, 3, 3]]


def test_without_a_class_token_the_first_patch_is_a_source():
    """The same keys, another half of destinations: patch 0 flows into patch 3."""
    seen, at = example(), stage("vision.mlp.3", 4)
    values = Signals({Signal("keys", "vision.layer.3"): KEYS[None, None]})
    assert tome(class_token=False).select(seen, values, at).merge.target.tolist() == [[3, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("class_token", "site", "order"),
    [(True, "vision.mlp.2", "halves"), (False, "vision.mlp.2", "similar"), (True, "vision.output", "similar")],
)
def test_official_order(class_token, site, order):
    """Sources that stay come first: in their places behind a class token, else by similarity; and it says so."""
    pruner, seen, at = tome(class_token=class_token, order="official"), tokens(15), stage(site, 11)
    values = signals(pruner, seen, at)
    metric = values[Signal("keys", "vision.layer.2")].mean(1) if "mlp" in site else seen.hidden
    expected, _ = merge_to(metric, [15], [11], seen.size, order, lead=int(class_token and "mlp" in site))
    selection = pruner.select(seen, values, at)
    assert selection.keep.tolist() == expected.tolist() != expected.sort(1).values.tolist()
    assert selection.ordered
    assert not tome().select(seen, signals(tome(), seen, at), at).ordered


def test_behind_the_tower_it_repeats():
    """16 to 3 takes three steps by hidden states, and sizes that were there count."""
    seen, at = tokens(16, 9), stage("vision.output", 3)
    seen = replace(seen, size=seen.index % 3 + 1)
    selection = tome().select(seen, Signals(), at)
    states = merge_states(seen.hidden.double(), selection.keep, selection.merge)
    sizes = merge_sizes(seen.size, selection.keep, selection.merge)
    real = seen.size * seen.valid
    assert sizes.sum(1).tolist() == real.sum(1).tolist()
    torch.testing.assert_close((states * sizes[..., None]).sum(1), (seen.hidden.double() * real[..., None]).sum(1))


def test_signals():
    """In a block its own keys; behind the tower nothing."""
    assert tome().needs(stage("vision.mlp.0")) == (Signal("keys", "vision.layer.0"),)
    assert tome().needs(stage("vision.output")) == ()
    assert tome().needs(stage("vision.output", 0)) == ()


def test_nothing_merges_where_everything_stays():
    """No plan, so that states stay bit for bit."""
    seen, at = tokens(9, 6), stage("vision.output", 1.0)
    assert tome().select(seen, Signals(), at).merge is None


@pytest.mark.parametrize("value", [True, False])
def test_proportional_attention_is_for_the_engine(value):
    """It reads the pruner's attribute."""
    assert tome(proportional_attention=value).proportional_attention is value


@pytest.mark.parametrize("site", ["llm.layer.2", "vision.layer.3"])
def test_sites(site):
    """Only inside the tower's blocks and behind it."""
    with pytest.raises(ValueError, match=rf"schedule.0.site is {site}, .* vision.mlp.N, vision.output or llm"):
        tome().check(Schedule.from_config([{"site": site, "keep": 0.5}]))


def test_official_order_needs_new_positions():
    """Tokens cannot keep positions and change places."""
    stages = [{"site": "vision.mlp.1", "keep": 0.5}, {"site": "vision.output", "keep": 0}]
    with pytest.raises(ValueError, match=r"schedule.0.positions is original, .* to renumber"):
        tome(order="official").check(Schedule.from_config(stages))
    stages[0]["positions"] = "renumber"
    tome(order="official").check(Schedule.from_config(stages))
    tome().check(Schedule.from_config(stages))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("order", "best", "pruner.method.order is 'best'. Choose from: raster, official"),
        ("class_token", 1, "pruner.method.class_token is 1. Write true or false"),
        ("proportional_attention", None, "pruner.method.proportional_attention is None"),
    ],
)
def test_method_messages(key, value, message):
    """Settings out of range are named."""
    with pytest.raises(ValueError, match=message):
        tome(**{key: value})
