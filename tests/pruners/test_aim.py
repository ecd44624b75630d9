"""AIM: merging in front of the language model, pruning inside it, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from checked_selection import check_selection
from hand import LEAD, TEXT, row, stage, tokens

from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal, Signals
from btp.ops.merge import merge_sizes, merge_states
from btp.ops.pagerank import walk_scores
from btp.pruners.aim import AIM
from btp.schedules.place import place_stages

SETTINGS = {
    "metric": "vision.feature",
    "order": "raster",
    "mean": "official",
    "tau": 0.1,
    "iterations": 5,
    "damping": 0.0,
}
X = torch.tensor([[1, 0], [0.9, 0.1], [0, 1], [1, 1], [-1, 0], [0, 2]])


def aim(**changed):
    return AIM(**SETTINGS | changed)


def example():
    return replace(tokens(6), hidden=X[None])


def attended(seen, at, heads=4, kv=2, generator=1):
    """Queries and keys of all rows of the layer before: LEAD rows, the tokens, TEXT rows, of which some are padding."""
    random = torch.Generator().manual_seed(generator)
    B, N = seen.valid.shape
    declared = aim().needs(at)
    text = torch.arange(TEXT) < torch.arange(TEXT, TEXT - B, -1)[:, None]
    real = torch.cat([torch.ones(B, LEAD, dtype=torch.bool), seen.valid, text], dim=1)
    S = LEAD + N + TEXT
    values = {s: torch.randn(B, h, S, 8, generator=random) / 3 for s, h in zip(declared, (heads, kv), strict=True)}
    return Signals(values, dict.fromkeys(declared, real))


@pytest.mark.parametrize(
    ("left", "order", "keep", "rows"),
    [
        (4, "official", [4, 1, 3, 5], [[-1, 0], [0.95, 0.05], [1, 1], [0, 1.5]]),
        (4, "raster", [1, 3, 4, 5], [[0.95, 0.05], [1, 1], [-1, 0], [0, 1.5]]),
        (3, "raster", [1, 3, 5], [[0.95, 0.05], [1, 1], [-1 / 3, 1]]),
    ],
)
def test_merging_example(left, order, keep, rows):
    """The card's: tokens compared by themselves, and by keys that are the same."""
    seen, at = example(), stage("vision.output", left)
    keys = Signals({Signal("keys", "vision.feature"): X.view(1, 6, 2, 1).transpose(1, 2)})
    for metric, values in (("hidden", Signals()), ("vision.feature", keys)):
        selection = aim(metric=metric, order=order).select(seen, values, at)
        assert selection.keep.tolist() == [keep]
        assert selection.ordered == (order == "official")
        torch.testing.assert_close(merge_states(X[None], selection.keep, selection.merge)[0], torch.tensor(rows))


def test_plain_means_nest():
    """8 to 2: a token that merges alone in the second step weighs as much as a pair of the first."""
    x = torch.tensor([1.0, 1.01, 1.02, 1.03, -1, -1.01, -1.02, -1.03])
    seen = replace(tokens(8), hidden=torch.stack([x, torch.ones(8)], dim=1)[None])
    at = stage("vision.output", 3)
    selection = aim(metric="hidden").select(seen, Signals(), at)
    sizes = merge_sizes(seen.size, selection.keep, selection.merge)
    assert sizes.sum() == 8
    weights = torch.zeros(8).scatter_add_(0, selection.merge.target[0], selection.merge.weight[0])
    torch.testing.assert_close(weights[selection.keep[0]], torch.ones(3))


@pytest.mark.parametrize("order", ["raster", "official"])
def test_frames_merge_apart(order):
    """At llm.input each frame merges as alone, by the same share; the newline behind a video stays, and counts."""
    seen = tokens(25, 17)
    index = torch.arange(25).expand(2, 25)
    coord = torch.stack([index // 8, index % 8 // 4, index % 4], dim=-1)
    coord = coord.masked_fill(((index >= torch.tensor([[24], [16]])) | ~seen.valid)[..., None], -1)
    seen, at = replace(seen, coord=coord), Stage("llm.input", 0.53, "renumber")
    selection = aim(metric="hidden", order=order).select(seen, Signals(), at)
    check_selection(selection, (13, 9), seen.host_alive, "aim", at.site)
    merged = merge_states(seen.hidden, selection.keep, selection.merge)
    for b, frames in enumerate((3, 2)):
        expected = []
        for f in range(frames):
            one = replace(tokens(8), hidden=seen.hidden[b : b + 1, 8 * f : 8 * f + 8])
            alone = aim(metric="hidden", order=order).select(one, Signals(), stage("vision.output", 4))
            expected.append(merge_states(one.hidden, alone.keep, alone.merge)[0])
            at_f = selection.keep[b, 4 * f : 4 * f + 4]
            assert at_f.tolist() == (alone.keep[0] + 8 * f).tolist()
        expected.append(seen.hidden[b, 8 * frames][None])
        torch.testing.assert_close(merged[b, : 4 * frames + 1], torch.cat(expected))


def test_frames_of_unequal_shares():
    """What does not divide goes to the first frames; counts are met in every row."""
    seen = tokens(16, 9)
    index = torch.arange(16).expand(2, 16)
    coord = torch.stack([index // 8, index % 8 // 4, index % 4], dim=-1).masked_fill(~seen.valid[..., None], -1)
    seen = replace(seen, coord=coord)
    for keep in range(1, 17):
        for order in ("raster", "official"):
            at = Stage("llm.input", keep, "renumber")
            selection = aim(metric="hidden", order=order).select(seen, Signals(), at)
            check_selection(selection, (keep, min(keep, 9)), seen.host_alive, "aim", at.site)
            if keep < 16:
                target = selection.merge.target[0]
                assert (target[target >= 0] // 8 == index[0][target >= 0] // 8).all()


def test_newlines_go_last_of_all():
    """A count too small for them keeps the first ones; tokens off every grid alone are a prompt too."""
    seen = tokens(6)
    off = replace(seen, coord=torch.full_like(seen.coord, -1))
    for count in (4, 1):
        selection = aim(metric="hidden").select(off, Signals(), stage("llm.input", count))
        assert selection.keep.tolist() == [list(range(count))]


def test_means_by_size():
    """With sizes, as ToMe: the sum over members does not move in however many steps; the plain mean moves it."""
    seen, at = tokens(16, 11), stage("vision.output", 3)
    real = seen.hidden.double() * seen.valid[..., None]
    for mean, conserved in (("size", True), ("official", False)):
        selection = aim(metric="hidden", mean=mean).select(seen, Signals(), at)
        states = merge_states(seen.hidden.double(), selection.keep, selection.merge)
        sizes = merge_sizes(seen.size, selection.keep, selection.merge)
        assert torch.allclose((states * sizes[..., None]).sum(1), real.sum(1)) == conserved


def test_pictures_do_not_see_each_other():
    """A picture merges as alone."""
    seen, at = tokens(16, 11, 4), stage("vision.output", 0.4)
    whole = aim(metric="hidden").select(seen, Signals(), at)
    check_selection(whole, (6, 4, 1), seen.host_alive, "aim", at.site)
    for b, count in enumerate((6, 4, 1)):
        alone, _ = row(b, seen, Signals())
        assert aim(metric="hidden").select(alone, Signals(), at).keep[0].tolist() == whole.keep[b, :count].tolist()


@pytest.mark.parametrize(("heads", "kv"), [(4, 2), (2, 2)])
def test_pruning_keeps_what_the_walk_stands_at(heads, kv):
    """Scores of all rows of the layer before; the tokens' rows are picked, text and padding are not."""
    seen, at = tokens(16, 11, 4), stage("llm.layer.3", 0.5)
    values = attended(seen, at, heads, kv)
    queries, keys = aim().needs(at)
    scores = walk_scores(
        values[queries], values[keys], tau=0.1, iterations=5, damping=0.0, rows=values.rows_valid(queries)
    )
    selection = aim().select(seen, values, at)
    check_selection(selection, (8, 5, 2), seen.host_alive, "aim", at.site)
    for b, count in enumerate((8, 5, 2)):
        own = scores[b, LEAD : LEAD + seen.host_alive[b]]
        assert selection.keep[b, :count].tolist() == own.topk(count).indices.sort().values.tolist()
        alone, its_values = row(b, seen, values)
        assert aim().select(alone, its_values, at).keep[0].tolist() == selection.keep[b, :count].tolist()


def test_rows_that_went_since_are_left_out():
    """Tokens cut after the layer ran have no row any more; the others find theirs."""
    seen, at = tokens(8), stage("llm.layer.3", 2)
    values = attended(seen, at)
    queries, keys = aim().needs(at)
    scores = walk_scores(values[queries], values[keys], tau=0.1, iterations=5, damping=0.0)[0, LEAD : LEAD + 8]
    left = torch.tensor([1, 2, 5, 7])
    fewer = replace(tokens(4, total=(8,)), row=left[None] + LEAD)
    expected = scores[left].topk(2).indices.sort().values.tolist()
    assert aim().select(fewer, values, at).keep[0].tolist() == expected


def test_settings_of_the_walk_reach_it():
    """Other temperature, steps or damping, other tokens somewhere."""
    at = stage("llm.layer.3", 0.3)
    for changed in ({"tau": 2.0}, {"iterations": 1}, {"damping": 0.9}):
        seen = tokens(60)
        values = attended(seen, at)
        assert aim(**changed).select(seen, values, at).keep.tolist() != aim().select(seen, values, at).keep.tolist()


def test_signals():
    """Keys of the named block, or none; inside the model queries and keys of all rows of the layer before."""
    at = stage("vision.output")
    assert aim().needs(at) == (Signal("keys", "vision.feature"),)
    assert aim(metric="vision.layer.23").needs(at) == (Signal("keys", "vision.layer.23"),)
    assert aim(metric="hidden").needs(at) == ()
    before = "llm.layer.13"
    assert aim().needs(stage("llm.layer.14")) == (Signal("queries", before, "all"), Signal("keys", before, "all"))
    assert aim().needs(stage("llm.layer.21", 0)) == ()


def test_nothing_merges_where_everything_stays():
    """No plan, so that states stay bit for bit."""
    assert aim(metric="hidden").select(tokens(9, 6), Signals(), stage("vision.output", 1.0)).merge is None


def test_published_schedule():
    """l1 = 13, l2 = 21 on 252 tokens: the retention of layer i acts from layer i + 1 on, steps of an eighth."""
    stages = [{"site": "vision.output", "keep": 252, "positions": "renumber"}]
    for i in range(13, 20):
        rate = 1 - (i - 13 + 1) / (21 - 13)
        stages.append({"site": f"llm.layer.{i + 1}/32", "keep": int(252 * rate)})
    stages.append({"site": "llm.layer.21/32", "keep": 0})
    schedule = Schedule.from_config(place_stages(stages, 32))
    aim().check(schedule)
    assert [s.keep for s in schedule] == [252, 220, 189, 157, 126, 94, 63, 31, 0]


@pytest.mark.parametrize("site", ["llm.layer.0", "vision.mlp.3", "vision.layer.3", "llm.cache.3"])
def test_sites(site):
    """Merging behind the tower, pruning behind a decoder layer; withdrawing anywhere."""
    with pytest.raises(ValueError, match=rf"schedule.0.site is {site}, .* vision.output, or to llm.layer.1 or later"):
        aim().check(Schedule.from_config([{"site": site, "keep": 0.5}]))
    aim().check(Schedule.from_config([{"site": site, "keep": 0}]))


def test_pooled_tokens_are_compared_by_the_keys_of_their_patches():
    """At the decoder's input states pair 0 with 1, and the tower's keys 2 with 3."""
    seen = replace(tokens(4), hidden=torch.tensor([[[1.0, 0], [1, 0.1], [0, 1], [-1, 0]]]))
    keys = torch.tensor([[1.0, 0], [0, 1], [-1, -1], [-1, -0.9]]).view(1, 1, 4, 2)
    at, asked = stage("llm.input", 3), Signal("keys", "vision.feature")
    by_keys = aim().select(seen, Signals({asked: keys}), at)
    assert by_keys.merge.target[0, 2] == by_keys.merge.target[0, 3]
    assert aim(metric="hidden").needs(at) == ()
    by_state = aim(metric="hidden").select(seen, Signals(), at)
    assert by_state.merge.target[0, 0] == by_state.merge.target[0, 1]


def test_official_order_needs_new_positions():
    """Where it merges; pruning keeps order."""
    stages = [{"site": "vision.output", "keep": 0.5}, {"site": "llm.layer.3", "keep": 0.2}]
    with pytest.raises(ValueError, match=r"schedule.0.positions is original, .* to renumber"):
        aim(order="official").check(Schedule.from_config(stages))
    stages[0]["positions"] = "renumber"
    aim(order="official").check(Schedule.from_config(stages))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("metric", "llm.layer.3", "pruner.method.metric is 'llm.layer.3'. Write hidden, vision.feature or"),
        ("metric", "vision.output", "pruner.method.metric is 'vision.output'"),
        ("metric", "keys", "pruner.method.metric is 'keys'"),
        ("order", "best", "pruner.method.order is 'best'. Choose from: raster, official"),
        ("mean", "plain", "pruner.method.mean is 'plain'. Choose from: official, size"),
        ("tau", 0, "pruner.method.tau is 0. Write a number above 0"),
        ("tau", "low", "pruner.method.tau is 'low'"),
        ("iterations", 0, "pruner.method.iterations is 0. Write an integer of 1 or more"),
        ("iterations", 2.5, "pruner.method.iterations is 2.5"),
        ("damping", 1, r"pruner.method.damping is 1. Write a number in \[0, 1\)"),
    ],
)
def test_method_messages(key, value, message):
    """Settings out of range are named."""
    with pytest.raises(ValueError, match=message):
        aim(**{key: value})
