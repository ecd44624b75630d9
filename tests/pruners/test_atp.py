"""ATP-LLaVA and its rule without training: worked scores, masks and losses of what others report of the paper."""

from dataclasses import replace

import pytest
import torch
from hand import grid, signals, stage, tokens

from btp.core.schedule import Stage
from btp.core.selection import Selection
from btp.core.trained import Masked
from btp.ops.redundancy import grid_scores, received_from_text, received_inside, spread_out
from btp.pruners.atp_free import ATPFree
from btp.pruners.atp_llava import ATPLLaVA, on_grid, soft_mask
from btp.pruners.redundancy import Scores

STRIDES = [2, 3, 4, 6, 8, 12]


def method(**changes):
    settings = {"inside": "open", "norm": "minmax", "strides": STRIDES, "sample": 3.0, "grid": 4, "hidden": 8}
    aims = {"start": [0.3, 0.9], "temperature": [10, 50], "target": 0.25, "average": "layers", "relative": False}
    return ATPLLaVA(**(settings | aims | {"count": "stage", "seed": 0} | changes))


class Given(ATPLLaVA):
    """Scores and thresholds of the worked example."""

    limits = (0.25, 0.6)

    def thresholds(self, scores, tokens, stage):
        enough, dense = self.limits
        return torch.full((len(tokens.valid), 1), enough), torch.full((len(tokens.valid), 1), dense)


INSIDE, TEXT = torch.tensor([[0.3, 0.1, 0.5, 0.2]]), torch.tensor([[0.1, 0.5, 0.4, 0.0]])
SPATIAL = torch.tensor([[0.8125, 0.25, 0.25, 0.0]])


def given(count="own", limits=(0.25, 0.6), **changes):
    pruner = Given(**{**vars_of(), "count": count, **changes})
    pruner.scored = lambda t, s, st: Scores(INSIDE, TEXT, (INSIDE + TEXT) / 2, SPATIAL)
    pruner.scored.needs = None
    pruner.limits = limits
    return pruner


def vars_of():
    settings = {"inside": "open", "norm": "none", "strides": STRIDES, "sample": 3.0, "grid": 4, "hidden": 8}
    aims = {"start": [0.3, 0.9], "temperature": [10, 10], "target": 0.25, "average": "layers", "relative": False}
    return settings | aims | {"seed": 0}


def test_worked_masks():
    """Two scores, two thresholds, the larger of two sigmoids; hard: tokens 0, 1 and 2."""
    redundancy = (INSIDE + TEXT) / 2
    assert redundancy[0].tolist() == pytest.approx([0.2, 0.3, 0.45, 0.1])
    found = soft_mask(redundancy, SPATIAL, torch.tensor([[0.25]]), torch.tensor([[0.6]]), 10.0)
    assert found[0].tolist() == pytest.approx([0.893309, 0.622459, 0.880797, 0.182426], abs=1e-6)
    pruner, seen = given(), tokens(4)
    soft = pruner.soften(seen, None, stage())
    assert torch.allclose(soft.weight, found)
    assert soft.stays[0].tolist() == [True, True, True, False]
    selection = pruner.select(seen, None, stage(keep=0.25))
    assert (selection.keep.tolist(), selection.counts) == ([[0, 1, 2]], (3,))


def test_exactly_the_number_of_the_stage():
    """Those on the grid first, then by redundancy: the threshold moved until the number is met."""
    pruner, seen = given("stage"), tokens(4)
    kept = [pruner.select(seen, None, stage(keep=k)).keep[0].tolist() for k in (1, 2, 3, 4)]
    assert kept == [[0], [0, 2], [0, 1, 2], [0, 1, 2, 3]]


def test_thresholds_at_their_ends():
    """At 0 all stay; at 1 the best one alone, which is the floor; higher ones keep no more."""
    seen = tokens(4)
    assert given(limits=(0.0, 1.0)).select(seen, None, stage()).counts == (4,)
    alone = given(limits=(1.0, 1.0)).select(seen, None, stage())
    assert (alone.counts, alone.keep.tolist()) == ((1,), [[2]])
    both = {tuple(given(limits=x).select(seen, None, stage()).keep[0].tolist()) for x in ((0.25, 1.0), (1.0, 0.6))}
    assert both == {(1, 2), (0,)}  # their union is what (0.25, 0.6) keeps
    counts = [given(limits=(x, 0.9)).select(seen, None, stage()).counts[0] for x in (0.05, 0.15, 0.25, 0.4, 0.9)]
    assert counts == sorted(counts, reverse=True)


def test_soft_masks_end_in_hard_ones():
    redundancy = (INSIDE + TEXT) / 2
    steep = soft_mask(redundancy, SPATIAL, torch.tensor([[0.25]]), torch.tensor([[0.6]]), 1e4)
    assert torch.allclose(steep, torch.tensor([[1.0, 1, 1, 0]]), atol=1e-6)


def stages(counts, sites, total=576):
    found = []
    for count, site in zip(counts, sites, strict=True):
        weight = torch.zeros(1, total)
        weight[0, :count] = 1
        found.append(Masked(Stage(f"llm.layer.{site}", 0.5), weight, weight > 0, weight >= 0))
    return found


def test_worked_losses():
    """Counts 300, 120 and 40 behind layers 4, 14 and 24 of 32."""
    left = stages((300, 120, 40), (4, 14, 24))
    found = method().losses(left, 32)
    assert found["depth"].item() == pytest.approx(6.666667, abs=1e-5)
    assert found["target"].item() == pytest.approx(213.25 - 144)
    assert method(average="stages").losses(left, 32)["target"].item() == pytest.approx(460 / 3 - 144, abs=1e-4)
    assert method(relative=True).losses(left, 32)["target"].item() == pytest.approx((213.25 - 144) / 576)


def test_scaffolds_of_a_picture_of_24_by_24():
    """Tokens on each grid, nested where strides divide, and the coarsest grid's score."""
    coord = grid(576, 24)[None]
    for stride, count in zip(STRIDES, (144, 64, 36, 16, 9, 4), strict=True):
        assert (grid_scores(coord, [stride], 3.0) > 0).sum() == count
    on = {stride: grid_scores(coord, [stride], 3.0) > 0 for stride in STRIDES}
    assert all(not (on[b] & ~on[a]).any() for a, b in ((2, 4), (4, 8), (3, 6), (6, 12), (2, 6)))
    scores = grid_scores(coord, STRIDES, 3.0)[0]
    assert scores.unique().tolist() == pytest.approx(
        [0, 0.25, 0.666667, 0.8125, 0.916667, 0.953125, 0.979167], abs=1e-5
    )
    assert scores[0] == scores.max()
    assert (scores >= 0.25).sum() == 144 + 64 - 16
    assert grid_scores(torch.full((1, 3, 3), -1), STRIDES, 3.0).abs().max() == 0


def test_attention_received_by_hand():
    """One head, two tokens that are there and one that is not."""
    queries = torch.tensor([[[[1.0], [0.0], [9.0]]]])
    keys = torch.tensor([[[[0.0], [1.0], [9.0]]]])
    valid = torch.tensor([[True, True, False]])
    near, far = 1 / (1 + torch.e), torch.e / (1 + torch.e)
    opened = received_inside(queries, keys, valid, "open")[0, :2]
    assert opened.tolist() == pytest.approx([(near + 0.5) / 2, (far + 0.5) / 2])
    causal = received_inside(queries, keys, valid, "causal")[0, :2]
    assert causal.tolist() == pytest.approx([(1 + 0.5) / 2, 0.5 / 2])
    logits = received_inside(queries, keys, valid, "logits")[0, :2]
    assert logits.tolist() == pytest.approx([0, 0.5])
    attention = torch.tensor([[[[0.2, 0.4], [0.6, 0.0], [9.0, 9.0]]]])
    assert received_from_text(attention, torch.tensor([[True, True, False]]))[0].tolist() == pytest.approx([0.4, 0.2])


def test_scores_between_the_lowest_and_the_highest():
    """Constant attention to all changes nothing; tokens that are gone count for nothing."""
    scores, valid = torch.tensor([[3.0, 1.0, 2.0, 99.0]]), torch.tensor([[True, True, True, False]])
    assert spread_out(scores, valid).tolist() == [[1.0, 0.0, 0.5, 0.0]]
    assert torch.allclose(spread_out(scores + 5, valid), spread_out(scores, valid))
    assert spread_out(torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool)).tolist() == [[0.0, 0.0, 0.0]]


def test_maps_are_means_of_cells():
    coord = torch.tensor([[[0, 0, 0], [0, 0, 1], [0, 2, 0], [0, 1, 1], [-1, -1, -1]]])
    values = torch.tensor([[[1.0, 2.0, 5.0, 7.0, 9.0]]])
    valid = torch.tensor([[True, True, True, False, True]])
    assert on_grid(values, coord, valid, 2).tolist() == [[[[3.0, 2.0], [0.0, 0.0]]]]  # row 2 wraps around to row 0


def test_thresholds_begin_where_they_are_told():
    pruner = method(start=[0.2, 0.8])
    seen, at = tokens(16, 11), stage()
    scores = pruner.scored(seen, signals(pruner, seen, at), at)
    enough, dense = pruner.thresholds(scores, seen, at)
    assert enough[:, 0].tolist() == pytest.approx([0.2, 0.2], abs=0.03)
    assert dense[:, 0].tolist() == pytest.approx([0.8, 0.8], abs=0.03)


def test_steepness_grows_while_it_trains():
    pruner = method()
    found = []
    for pruner.progress in (0.0, 0.5, 1.0):
        found.append(pruner.steepness)
    assert found == pytest.approx([10, 500**0.5, 50])


def test_gradients_of_its_losses_reach_the_thresholds_alone():
    pruner, at = method(), stage()
    seen = tokens(16)
    values = signals(pruner, seen, at)
    hidden = seen.hidden.clone().requires_grad_(True)
    soft = pruner.soften(replace(seen, hidden=hidden), values, at)
    left = [Masked(at, soft.weight, soft.stays, seen.valid)]
    sum(pruner.losses(left, 8).values()).backward()
    assert hidden.grad is None
    assert all(p.grad.abs().sum() > 0 for p in pruner.modules["llm_layer_2"].heads.parameters())
    aimed = pruner.target * 16
    exact = [replace(left[0], weight=torch.full((1, 16), 1.0, requires_grad=True))]
    assert method(target=1.0).losses(exact, 8)["target"].item() == 0
    assert aimed == 4


def test_the_rule_without_training():
    """Mean and half a deviation; and the best of each cell of two rows and columns."""
    pruner, seen = ATPFree(inside="open", norm="none", deviations=0.5, cell=0, count="own"), tokens(4)
    redundancy = torch.tensor([[0.2, 0.3, 0.45, 0.1]])
    pruner.scored = lambda t, s, st: Scores(INSIDE, TEXT, redundancy, SPATIAL)
    selection = pruner.select(seen, None, stage())
    assert (selection.keep.tolist(), selection.counts) == ([[2]], (1,))  # 0.2625 + 0.5 * 0.1293 = 0.327
    celled = ATPFree(inside="open", norm="none", deviations=0.5, cell=2, count="own")
    celled.scored = pruner.scored
    assert celled.select(seen, None, stage()).keep.tolist() == [[1, 2]]  # columns 0, 1 and 2, 3 of one row
    exact = ATPFree(inside="open", norm="none", deviations=0.5, cell=2, count="stage")
    exact.scored = pruner.scored
    kept = [exact.select(seen, None, stage(keep=k)).keep[0].tolist() for k in (1, 2, 3)]
    assert kept == [[2], [1, 2], [0, 1, 2]]


def test_every_token_kept_has_one_reason():
    for pruner in (method(), ATPFree(inside="causal", norm="minmax", deviations=0.5, cell=2, count="stage")):
        seen, at = tokens(16, 11), stage()
        values = signals(pruner, seen, at)
        selection = pruner.select(seen, values, at)
        assert isinstance(selection, Selection)
        reasons = [x for x in pruner.explain(seen, values, at).values() if x.dtype == torch.bool]
        marked = torch.stack(reasons).sum(0)
        wanted = torch.zeros(2, 17, dtype=torch.long).scatter(1, selection.keep % 17, 1)[:, :16]
        assert torch.equal(marked * seen.valid, wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inside": "all"}, "pruner.method.inside is 'all'. Choose from: open, causal, logits"),
        ({"norm": "rank"}, "pruner.method.norm is 'rank'"),
        ({"strides": []}, r"pruner.method.strides is \[\]"),
        ({"strides": [0]}, r"pruner.method.strides is \[0\]"),
        ({"start": [0.5]}, r"pruner.method.start is \[0.5\]. Write two numbers between 0 and 1"),
        ({"temperature": [0, 1]}, r"pruner.method.temperature is \[0, 1\]"),
        ({"target": 0}, "pruner.method.target is 0"),
        ({"average": "modules"}, "pruner.method.average is 'modules'. Choose from: layers, stages"),
        ({"count": "budget"}, "pruner.method.count is 'budget'. Choose from: stage, own"),
        ({"grid": 0}, "pruner.method.grid is 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        method(**changes)


def test_settings_of_the_rule_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"pruner.method.cell is -1. Write an int of 0 or more"):
        ATPFree(inside="open", norm="none", deviations=0.5, cell=-1, count="own")
    with pytest.raises(ValueError, match=r"pruner.method.count is 'all'"):
        ATPFree(inside="open", norm="none", deviations=0.5, cell=1, count="all")
