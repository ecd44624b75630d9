"""A budget that each sample meets by its own number of tokens: counts depend on nothing else."""

from dataclasses import replace

import pytest
import torch

from btp.core.keep import FIT
from btp.core.schedule import Schedule, Stage
from btp.schedules.budget import Budget, fit_each
from btp.schedules.solve import solve_fit

LAYERS = 28
THREE = Schedule(tuple(Stage(f"llm.layer.{layer}", FIT) for layer in (2, 9, 15)))


def counts(schedule, total):
    return [stage.count(total) for stage in schedule]


@pytest.mark.parametrize("share", [0.15, 0.22, 0.5, 0.9])
@pytest.mark.parametrize("total", [36, 144, 577, 2928])
def test_a_share_is_met_by_every_sample(share, total):
    """As if it were the only one."""
    each = fit_each(THREE, Budget(LAYERS, share=share))
    alone = solve_fit(THREE, total, LAYERS, share * total)
    assert counts(each, total) == [stage.keep for stage in alone]
    assert each.tokens_avg(total, LAYERS) == pytest.approx(share * total, abs=0.5)


@pytest.mark.parametrize("total", [70, 100, 200, 333, 700])
def test_a_number_of_tokens_is_met_by_every_larger_sample(total):
    each = fit_each(THREE, Budget(LAYERS, tokens=64))
    assert each.tokens_avg(total, LAYERS) == pytest.approx(64, abs=0.5)


@pytest.mark.parametrize("total", [0, 1, 5, 63, 64])
def test_a_sample_with_fewer_tokens_than_the_budget_keeps_all(total):
    each = fit_each(THREE, Budget(LAYERS, tokens=64))
    assert counts(each, total) == [total] * 3
    assert each.tokens_avg(total, LAYERS) == total


def test_a_sample_out_of_reach_takes_the_nearest():
    """One token behind the first cut is all that the stages can do for 2000."""
    each = fit_each(THREE, Budget(LAYERS, tokens=64))
    assert counts(each, 2000) == [1, 1, 1]
    assert each.tokens_avg(2000, LAYERS) == pytest.approx((2000 * 2 + 26) / LAYERS)


def test_a_small_picture_keeps_a_token_at_each_stage():
    """Where one token less at every stage is more than the budget allows."""
    each = fit_each(THREE, Budget(LAYERS, share=0.22))
    assert [counts(each, total) for total in (0, 1, 2, 4)] == [[0, 0, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]]
    assert counts(each, 7) == [2, 1, 1]


@pytest.mark.parametrize("total", [0, 1, 3, 5, 6, 9, 40, 576])
@pytest.mark.parametrize("keeps", [("fit", "fit*0.5", 5), ("fit", 0.3, "fit"), (0.5, "fit", 0), ("fit", "fit", 0.1)])
def test_no_total_is_refused_and_no_stage_brings_tokens_back(keeps, total):
    """Written numbers may leave a small picture no room."""
    plan = Schedule(tuple(Stage(stage.site, keep) for stage, keep in zip(THREE, keeps, strict=True)))
    for budget in (Budget(LAYERS, share=0.3), Budget(LAYERS, tokens=20)):
        each = fit_each(plan, budget)
        fits = [stage.count(total) for stage in each if stage.solver is not None]
        assert all(0 <= b <= a <= total for a, b in zip([total, *fits], fits, strict=False))
        assert 0 <= each.reached(total, LAYERS) <= total


def test_level_with_another_schedule():
    """A control gets of each sample what the method leaves of it."""
    method = fit_each(THREE, Budget(LAYERS, tokens=64))
    control = fit_each(Schedule((Stage("llm.input", FIT),)), Budget(LAYERS, like=method))
    for total in (30, 64, 70, 200, 2000):
        assert control[0].count(total) == pytest.approx(method.tokens_avg(total, LAYERS), abs=0.51)


def test_tensors_agree_with_ints():
    stage = fit_each(THREE, Budget(LAYERS, share=0.22))[0]
    assert stage.count(torch.tensor([[36, 144]])).tolist() == [[stage.count(36), stage.count(144)]]


def test_what_is_solved_is_free_no_more():
    """And a number written over it is the number."""
    each = fit_each(THREE, Budget(LAYERS, share=0.22))
    assert THREE.has_fit
    assert not each.has_fit
    each.check(LAYERS)
    with pytest.raises(ValueError, match="keep is still fit"):
        THREE.check(LAYERS)
    assert replace(each[0], keep=1.0).count(10) == 10
    assert [stage.keep for stage in each] == [FIT] * 3


def test_multiples_give_way_where_a_sample_has_few_more_tokens_than_asked():
    """Not under a share, which all samples could meet alike or none."""
    plan = Schedule(tuple(Stage(s.site, keep) for s, keep in zip(THREE, ("fit", "fit*0.5", "fit*0.25"), strict=True)))
    for total in (65, 70, 80, 120):
        assert fit_each(plan, Budget(LAYERS, tokens=64)).tokens_avg(total, LAYERS) == pytest.approx(64, abs=0.75)
    assert counts(fit_each(plan, Budget(LAYERS, share=0.9)), 80) == [80, 40, 20]
