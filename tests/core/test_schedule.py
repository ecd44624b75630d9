"""Schedules count, refuse and solve."""

import pytest
import torch

from btp.core.keep import keep_count
from btp.core.schedule import Schedule, Stage
from btp.schedules.solve import solve_fit


def schedule(*pairs, **more):
    return Schedule(tuple(Stage(site, keep, **more) for site, keep in pairs))


@pytest.mark.parametrize(
    ("keep", "total", "count"),
    [
        (1, 576, 1),
        (1.0, 576, 576),
        (0, 9, 0),
        (0.0, 9, 0),
        (700, 576, 576),
        (0.5, 9, 4),
        (0.29, 100, 29),
        (0.1, 4, 0),
    ],
)
def test_keep_count(keep, total, count):
    """Ints are tokens, floats are shares rounded down; tensors agree with ints."""
    assert keep_count(keep, total) == count
    assert keep_count(keep, torch.tensor([total, total])).tolist() == [count, count]


@pytest.mark.parametrize("keep", [-1, 1.5, True, "all", None])
def test_bad_keep(keep):
    """What is neither count, share nor fit is refused."""
    with pytest.raises(ValueError, match="Write an int >= 0"):
        Stage("llm.layer.2", keep)


@pytest.mark.parametrize("keep", ["fit*", "fit*0", "fit*-1", "fit*x", "fit/2", "fitting"])
def test_bad_fit(keep):
    """What starts like a fit and is none is told how one is written."""
    with pytest.raises(ValueError, match=r"Write fit, or fit\*X with a number X above 0"):
        Stage("llm.layer.2", keep)


@pytest.mark.parametrize("keep", ["fit", "fit*0.5"])
def test_fit_has_no_count(keep):
    """An unsolved fit says how to solve it."""
    with pytest.raises(ValueError, match=r"solve\.solve_fit"):
        Stage("llm.layer.2", keep).count(576)


def test_config_round_trip():
    """Config in, config out; unknown keys are the method's settings."""
    config = [
        {"site": "llm.layer.3", "keep": 288, "balance": 0.6},
        {"site": "llm.layer.6", "keep": 144, "positions": "renumber"},
        {"site": "llm.layer.8", "keep": "fit"},
        {"site": "llm.layer.9", "keep": "fit*0.5"},
    ]
    read = Schedule.from_config(config)
    assert read[0].settings == {"balance": 0.6}
    assert Schedule.from_config(read.to_config()) == read


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"keep": 1}, r"schedule\.0\.site is missing"),
        ({"site": "llm.layer.2", "kep": 1}, r"schedule\.0\.keep is missing. Did you mean it by 'kep'"),
        ({"site": "llm.2", "keep": 1}, r"schedule\.0\.site: 'llm.2' is not a site"),
        ({"site": "llm.layer.2", "keep": -1}, r"schedule\.0\.keep: keep is -1"),
        (
            {"site": "llm.layer.2", "keep": 1, "positions": "new"},
            r"schedule\.0\.positions is 'new'. Choose from",
        ),
        ({"site": "llm.layer.2", "keep": 1, "phase": "x"}, r"schedule\.0\.phase is 'x'"),
        ("llm.layer.2", r"schedule\.0 is 'llm.layer.2'. Write a mapping"),
    ],
)
def test_config_messages(entry, message):
    """Errors name the config key."""
    with pytest.raises(ValueError, match=message):
        Schedule.from_config([entry])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("llm.layer.3", 9), ("llm.layer.3", 4)], r"schedule\.1\.site is llm\.layer\.3, but"),
        (
            [("llm.layer.3", 4), ("llm.layer.5", 9)],
            r"schedule\.1\.keep is 9 at llm\.layer\.5, more than are alive",
        ),
        ([("llm.layer.3", 0.2), ("llm.layer.5", 0.3)], "more than are alive"),
        ([("llm.layer.3", 4), ("llm.layer.5", 4)], "the stage changes nothing"),
        ([("llm.layer.3", 0), ("llm.layer.5", 0.0)], "the stage changes nothing"),
    ],
)
def test_stages_must_shrink(pairs, message):
    """Sites increase, counts do not, and each stage changes something."""
    with pytest.raises(ValueError, match=message):
        schedule(*pairs)


def test_keeping_all_everywhere_is_a_control():
    """1.0 at several stages is the inertness control; a share against a count is held where total is
    known.
    """
    schedule(("llm.layer.3", 1.0), ("llm.layer.5", 1.0))
    mixed = schedule(("llm.layer.3", 0.5), ("llm.layer.5", 60))
    assert mixed.tokens_avg(128, 8) == (3 * 128 + 2 * 64 + 3 * 60) / 8
    with pytest.raises(ValueError, match="more than are alive"):
        mixed.tokens_avg(100, 8)


def test_depth():
    """A layer the model does not have, and an unsolved fit, are refused."""
    with pytest.raises(ValueError, match=r"schedule\.0\.site is llm\.layer\.8, but the llm tower has 8 layers"):
        schedule(("llm.layer.8", 4)).check(8)
    with pytest.raises(ValueError, match="vision tower has 2 layers"):
        schedule(("vision.layer.2", 4)).check(8, 2)
    with pytest.raises(ValueError, match=r"schedule\.0\.keep is still fit"):
        schedule(("llm.layer.2", "fit")).check(8)
    with pytest.raises(ValueError, match=r"schedule\.1\.keep is still fit\*0\.5"):
        schedule(("llm.layer.2", 9), ("llm.layer.3", "fit*0.5")).check(8)
    schedule(("llm.layer.2", "fit")).check_sites(8)


def test_tokens_avg_of_the_published_btp_schedule():
    """(3*576 + 3*288 + 8*144 + 8*48 + 10*0) / 32 = 129."""
    btp = schedule(("llm.layer.3", 288), ("llm.layer.6", 144), ("llm.layer.14", 48), ("llm.layer.22", 0))
    assert btp.tokens_avg(576, 32) == 129


@pytest.mark.parametrize(("budget", "kept"), [(192, 166), (128, 98), (64, 30)])
def test_fit_one_stage(budget, kept):
    """FastV's published budgets, one cut before layer 2 of 32."""
    solved = solve_fit(schedule(("llm.layer.2", "fit")), 576, 32, budget)
    assert solved[0].keep == kept
    assert abs(solved.tokens_avg(576, 32) - budget) <= 0.5


@pytest.mark.parametrize("budget", [64, 96, 128, 192, 300, 450])
@pytest.mark.parametrize("last", ["fit", 0])
def test_fit_several_stages(budget, last):
    """Several fits share the budget, shrink strictly, and meet it to a fraction of a token."""
    plan = schedule(("llm.layer.3", "fit"), ("llm.layer.6", "fit"), ("llm.layer.14", "fit"), ("llm.layer.22", last))
    if last == 0 and budget > 390:
        with pytest.raises(ValueError, match=r"cannot be met.*The nearest is 394\.\d+, off by 55"):
            solve_fit(plan, 576, 32, budget)
        return
    solved = solve_fit(plan, 576, 32, budget)
    keeps = [stage.keep for stage in solved]
    assert keeps == sorted(keeps, reverse=True)
    assert len(set(keeps)) == 4
    assert abs(solved.tokens_avg(576, 32) - budget) <= 1 / 32 + 1e-9


def test_fit_halves():
    """Below one half, each later fit keeps half of the one before."""
    solved = solve_fit(schedule(("llm.layer.8", "fit"), ("llm.layer.16", "fit"), ("llm.layer.24", "fit")), 576, 32, 270)
    assert [stage.keep for stage in solved] == [288, 144, 72]


def test_fit_between_numbers():
    """Written numbers bound the fits."""
    plan = schedule(("llm.layer.2", 20), ("llm.layer.3", "fit"), ("llm.layer.4", 10))
    assert 10 < solve_fit(plan, 36, 6, 21)[1].keep < 20


def test_fit_of_few_tokens():
    """Even four tokens are shared out strictly."""
    plan = schedule(("llm.layer.1", "fit"), ("llm.layer.2", "fit"), ("llm.layer.3", "fit"))
    assert [s.keep for s in solve_fit(plan, 4, 4, 2.5)] == [3, 2, 1]


def test_fit_messages():
    """Budgets out of reach say by how much; a budget without a fit, and a fit without room, are refused."""
    with pytest.raises(ValueError, match=r"cannot be met.*36\.94 to 575\.06. The nearest is 36\.94, off by 26\.94"):
        solve_fit(schedule(("llm.layer.2", "fit")), 576, 32, 10)
    with pytest.raises(ValueError, match="no stage says keep: fit, so it has no effect"):
        solve_fit(schedule(("llm.layer.2", 4)), 576, 32, 128)
    with pytest.raises(ValueError, match="fit has no room"):
        solve_fit(schedule(("llm.layer.1", 3), ("llm.layer.2", "fit"), ("llm.layer.3", 2)), 4, 4, 2)
    with pytest.raises(ValueError, match="does not change the layer-averaged tokens"):
        solve_fit(schedule(("llm.cache.1", "fit")), 4, 4, 2)
