"""Budgets of a model without a language model: patches averaged over the layers of its tower."""

from itertools import pairwise

import pytest

from btp.core.schedule import Schedule
from btp.schedules.budget import Budget, fit_each
from btp.schedules.fit import OutOfReach
from btp.schedules.meet import Facts, Planned, meet
from btp.schedules.serialize import described, restored
from btp.schedules.solve import solve_fit


def stages(*sites, keep="fit"):
    return Schedule.from_config([{"site": site, "keep": keep} for site in sites])


def facts(total=64, layers=6, **more):
    return Facts(layers, total, layers, tower="vision", **more)


def test_one_cut_counts_for_the_layers_behind_it():
    solved = solve_fit(stages("vision.layer.2"), 60, 6, 30, tower="vision")
    assert solved[0].keep == 15  # (60 + 60 + 4 * 15) / 6
    assert solved.tokens_avg(60, 6, "vision") == 30
    assert solved.tokens_per_layer(60, 6, "vision") == [60, 60, 15, 15, 15, 15]


def test_a_cut_inside_a_layer_counts_from_the_next_one_on():
    solved = solve_fit(stages("vision.mlp.1"), 60, 6, 40, tower="vision")
    assert solved.tokens_per_layer(60, 6, "vision") == [60, 60, 30, 30, 30, 30]


def test_a_ladder_drops_as_many_in_each_layer_and_meets_the_mean():
    solved = solve_fit(stages(*(f"vision.mlp.{i}" for i in range(12))), 196, 12, 130, tower="vision")
    counts = [196, *(stage.keep for stage in solved)]
    drops = {a - b for a, b in pairwise(counts)}
    assert max(drops) - min(drops) <= 1
    assert solved.tokens_avg(196, 12, "vision") == pytest.approx(130, abs=0.5)


def test_stages_apart_each_leave_the_same_share():
    solved = solve_fit(stages("vision.layer.2", "vision.layer.3", "vision.layer.5"), 512, 6, 256, tower="vision")
    a, b, c = (stage.keep for stage in solved)
    assert a / 512 == pytest.approx(b / a, abs=0.01) == pytest.approx(c / b, abs=0.03)
    assert solved.tokens_avg(512, 6, "vision") == pytest.approx(256, abs=0.2)


def test_multiples_of_the_first_stage():
    config = [{"site": "vision.layer.2", "keep": "fit"}, {"site": "vision.layer.4", "keep": "fit*0.5"}]
    solved = solve_fit(Schedule.from_config(config), 96, 6, 56, tower="vision")
    assert [stage.keep for stage in solved] == [48, 24]


def test_a_number_in_the_schedule_bounds_what_is_free():
    config = [{"site": "vision.layer.1", "keep": 40}, {"site": "vision.layer.3", "keep": "fit"}]
    solved = solve_fit(Schedule.from_config(config), 60, 6, 30, tower="vision")
    assert [stage.keep for stage in solved] == [40, 13]  # (60 + 40 + 40 + 3 * 13) / 6 = 29.8


def test_a_budget_out_of_reach_says_what_is_in_reach():
    with pytest.raises(OutOfReach, match=r"with 60 tokens in 6 layers the schedule reaches 30.50 to 59.50.*nearest"):
        solve_fit(stages("vision.layer.3"), 60, 6, 10, tower="vision")
    assert solve_fit(stages("vision.layer.3"), 60, 6, 10, nearest=True, tower="vision")[0].keep == 1
    two = solve_fit(stages("vision.layer.3", "vision.layer.4"), 60, 6, 10, nearest=True, tower="vision")
    assert [(str(stage.site), stage.keep) for stage in two] == [("vision.layer.3", 1)]  # nothing is left for the other


def test_a_run_meets_its_share_of_the_patches():
    met = meet(
        Planned(stages("vision.layer.0")), facts(), Budget(6, share=0.5, tower="vision"), None, move=True, nearest=False
    )
    assert met.schedule[0].keep == 32
    assert met.reached == met.asked == 32


def test_stages_move_towards_the_pixels_where_counts_do_not_reach_a_share():
    """With the first cut in front of layer 4 of 6, two thirds of the patches stay at least."""
    planned = Planned(stages("vision.layer.4", "vision.layer.5"), movable=lambda stage: True)
    budget = Budget(6, share=0.5, tower="vision")
    met = meet(planned, facts(), budget, None, move=True, nearest=False)
    assert [str(stage.site) for stage in met.schedule] == ["vision.layer.2", "vision.layer.3"]
    assert (met.moved, met.missed, met.reached) == (2, False, pytest.approx(32, abs=0.2))
    with pytest.raises(OutOfReach, match="the schedule reaches"):
        meet(planned, facts(), budget, None, move=False, nearest=False)


def test_pictures_of_unequal_size_are_solved_one_by_one():
    schedule = fit_each(stages("vision.layer.2"), Budget(6, share=0.5, tower="vision"))
    assert (schedule[0].count(60), schedule[0].count(120)) == (15, 30)
    assert restored(described(schedule))[0].count(120) == 30
    each = facts(90, totals=(60, 120), unequal=True)
    met = meet(
        Planned(stages("vision.layer.2")), each, Budget(6, share=0.5, tower="vision"), None, move=True, nearest=False
    )
    assert met.reached == 45


@pytest.mark.parametrize("site", ["llm.layer.2", "vision.output"])
def test_a_stage_outside_of_the_tower_is_refused(site):
    with pytest.raises(ValueError, match=rf"schedule.0.site is {site}, but this model has no language model"):
        meet(Planned(stages(site, keep=3)), facts(), None, None, move=False, nearest=False)


def test_a_layer_that_the_tower_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"schedule.0.site is vision.layer.9, but the vision tower has 6 layers"):
        meet(
            Planned(stages("vision.layer.9")),
            facts(),
            Budget(6, share=0.5, tower="vision"),
            None,
            move=False,
            nearest=False,
        )


@pytest.mark.parametrize("before", [[], [{"site": "vision.layer.1", "keep": 0.5}]])
def test_multiples_of_nothing_are_refused(before):
    config = [*before, {"site": "vision.layer.2", "keep": "fit*0.5"}]
    with pytest.raises(ValueError, match=rf"schedule\.{len(before)}\.keep is fit\*0\.5, .* no stage says keep: fit"):
        solve_fit(Schedule.from_config(config), 96, 6, 56, tower="vision")


def test_multiples_in_front_of_what_they_multiply_are_refused():
    config = [{"site": "vision.layer.2", "keep": "fit*2"}, {"site": "vision.layer.4", "keep": "fit"}]
    with pytest.raises(
        ValueError, match=r"schedule\.0\.keep is fit\*2, but the stage with keep: fit .* lies behind it"
    ):
        solve_fit(Schedule.from_config(config), 96, 6, 56, tower="vision")
