"""LVPruning: the worked decisions and losses of its paper's equations, and what the text decides."""

from dataclasses import replace

import pytest
import torch
from hand import signals, stage, tokens

from btp.core.schedule import Schedule, Stage
from btp.core.trained import Masked
from btp.pruners.lvpruning import Decision, LVPruning, logistic

GAMMA = torch.tensor([[1.0, 0.0], [0.2, 0.9], [-0.5, 1.5], [2.0, -1.0], [0.3, 0.3]])


def method(**changes):
    return LVPruning(**({"width": None, "blocks": 2, "heads": 4, "tau": 1.0, "noise": 0.0, "seed": 0} | changes))


class Given(LVPruning):
    """Its modules say what is given."""

    def decide(self, tokens, signals, stage):
        return GAMMA[None].expand(len(tokens.valid), -1, -1)


def test_worked_decisions():
    """Keep probabilities, their order, and the two that stay."""
    pruner = Given(width=None, blocks=2, heads=4, tau=1.0, noise=0.0, seed=0)
    seen, at = tokens(5), stage(keep=2)
    found = pruner.explain(seen, signals(pruner, seen, at), at)["score"][0]
    assert found.tolist() == pytest.approx([0.731059, 0.331812, 0.119203, 0.952574, 0.5], abs=1e-6)
    assert found.argsort(descending=True).tolist() == [3, 0, 4, 1, 2]
    assert pruner.select(seen, signals(pruner, seen, at), at).keep.tolist() == [[0, 3]]


def masked(weights, target):
    weight = torch.tensor([weights])
    return Masked(Stage("llm.layer.2", 0.5, settings={"target": target}), weight, weight > 0, weight >= 0)


def test_worked_ratio_loss():
    """Two stages of five tokens; what the first dropped stays dropped."""
    stages = [masked([1.0, 0, 0, 1, 1], 0.5), masked([1.0, 0, 0, 1, 0], 0.3)]
    assert method().losses(stages, 8)["ratio"].item() == pytest.approx(0.01)
    exact = [masked([1.0, 0, 0, 1], 0.5), masked([1.0, 0, 0, 0], 0.25)]
    assert method().losses(exact, 8)["ratio"].item() == 0


def test_sampled_decisions_are_hard_and_follow_their_probabilities():
    """The share of samples in which a token stays, and a gradient in each of them."""
    pruner = Given(width=None, blocks=2, heads=4, tau=1.0, noise=0.0, seed=0)
    seen, at = tokens(5), stage(keep=2)
    values, times = signals(pruner, seen, at), 4000
    torch.manual_seed(0)
    total = sum(pruner.soften(seen, values, at).weight[0] for _ in range(times)) / times
    assert torch.allclose(total, GAMMA.softmax(-1)[:, 0], atol=0.03)
    soft = pruner.soften(seen, values, at)
    assert set(soft.weight.flatten().tolist()) <= {0.0, 1.0}
    assert torch.equal(soft.stays, soft.weight > 0.5)


def test_noise_at_inference_is_that_of_the_sampled_decisions():
    """Over numbers spread evenly, a token's noisy log-odds are above 0 as often as it is sampled in training."""
    noise = logistic(torch.arange(0, 2**31, 2**17))
    shares = [float((odds + noise > 0).double().mean()) for odds in (GAMMA[:, 0] - GAMMA[:, 1]).tolist()]
    assert shares == pytest.approx(GAMMA.softmax(-1)[:, 0].tolist(), abs=1e-4)
    assert logistic(torch.tensor([0, 2**31 - 1])).tolist() == pytest.approx([-22.18, 22.18], abs=0.01)


def test_noise_draws_for_each_picture_and_repeats():
    """Without noise all five keep the best; with it the choice is the picture's and the seed's, whatever the batch."""
    seen, at = tokens(16, 16, 11), stage(keep=4)
    plain, drawn, other = method(), method(noise=1.0), method(noise=1.0, seed=1)
    other.modules, other.width = drawn.modules, drawn.width
    values = signals(plain, seen, at)
    kept = [pruner.select(seen, values, at).keep for pruner in (plain, drawn, drawn, other)]
    assert torch.equal(kept[1], kept[2])
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[1], kept[3])
    alone = replace(
        seen,
        **{k: getattr(seen, k)[1:2] for k in ("hidden", "index", "valid", "total")},
        host_alive=(16,),
        host_total=(16,),
    )
    (text,) = plain.needs(at)
    one = type(values)({text: values[text][1:2]}, {text: values.rows_valid(text)[1:2]})
    assert torch.equal(drawn.select(alone, one, at).keep, kept[1][1:2])


def test_a_training_begins_near_keeping_all():
    pruner = method()
    seen, at = tokens(16, 11), stage()
    scores = pruner.ranking(seen, signals(pruner, seen, at), at)
    assert 3 < scores[seen.valid].min() < scores[seen.valid].max() < 5
    assert scores[seen.valid].std() > 0.01


def test_the_size_is_the_papers():
    """2 blocks of 8 d^2 each, beside norms and biases; a bottleneck is smaller."""
    count = sum(p.numel() for p in Decision(64, 64, 2, 8).parameters())
    assert count == pytest.approx(16 * 64**2, rel=0.02)
    assert sum(p.numel() for p in Decision(64, 16, 2, 8).parameters()) < count / 5


def test_padded_text_is_not_looked_at():
    pruner, at = method(), stage()
    seen = tokens(6, 6)
    values = signals(pruner, seen, at)
    (text,) = pruner.needs(at)
    spoilt = values[text].clone()
    spoilt[~values.rows_valid(text)] = 7.0
    changed = type(values)({text: spoilt}, {text: values.rows_valid(text)})
    assert torch.equal(pruner.ranking(seen, values, at), pruner.ranking(seen, changed, at))
    assert not torch.equal(pruner.ranking(seen, values, at)[0], pruner.ranking(seen, values, at)[1])


def test_kept_sets_are_nested_where_shares_fall():
    pruner = method()
    seen = tokens(16)
    values = signals(pruner, seen, stage())
    kept = [set(pruner.select(seen, values, stage(keep=k)).keep[0].tolist()) for k in (0.5, 0.3, 0.1)]
    assert [len(k) for k in kept] == [8, 4, 1]
    assert kept[0] > kept[1] > kept[2]


def test_the_aim_is_the_target():
    """As many as the target says, whatever the keep, and never one that is gone."""
    pruner, at = method(), stage(keep=1.0, target=0.25)
    seen = tokens(16)
    gone = replace(seen, valid=torch.arange(16)[None] % 2 == 0, host_alive=None)
    for shown in (seen, gone):
        stays = pruner.aim(shown, signals(pruner, shown, at), at)
        assert stays.sum() == 4
        assert not (stays & ~shown.valid).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": 0}, "pruner.method.blocks is 0. Write an int of 1 or more"),
        ({"heads": 1.5}, "pruner.method.heads is 1.5"),
        ({"width": -4}, "pruner.method.width is -4"),
        ({"noise": -0.5}, "pruner.method.noise is -0.5. Write a number from 0 on; the paper has 0"),
        ({"tau": 0}, "pruner.method.tau is 0. Write a number above 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        method(**changes)


def test_heads_that_do_not_divide_the_width_are_refused():
    pruner, seen, at = method(heads=3), tokens(4), stage()
    values = signals(pruner, seen, at)
    with pytest.raises(
        ValueError, match=r"pruner.method.heads is 3, which does not divide the width of the modules, 16"
    ):
        pruner.select(seen, values, at)


def test_targets_are_shares():
    with pytest.raises(ValueError, match=r"schedule.0.target is 3. Write the share"):
        method().check(Schedule((stage(target=3),)))
    with pytest.raises(ValueError, match=r"the stage at llm.layer.2 has no target"):
        method().losses([replace(masked([1.0], 0.5), stage=stage())], 8)
