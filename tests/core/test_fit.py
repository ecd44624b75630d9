"""Budgets are met: multiples of the first fit, ladders inside a vision tower, the nearest that is in reach."""

import pytest

from btp.core.schedule import Schedule, Stage
from btp.schedules.budget import Budget, fit_each
from btp.schedules.fit import OutOfReach
from btp.schedules.ladder import ladder, shortest
from btp.schedules.solve import solve_fit


def schedule(*pairs, by=None):
    return Schedule(tuple(Stage(site, keep, settings={"by": by} if by else {}) for site, keep in pairs))


def keeps(solved):
    return {str(stage.site): stage.keep for stage in solved}


PDROP = (("llm.layer.8", "fit"), ("llm.layer.16", "fit*0.5"), ("llm.layer.24", "fit*0.25"))


def test_multiples_follow_the_first_fit():
    """PyramidDrop's published schedule is the one at its published average."""
    solved = solve_fit(schedule(*PDROP), 576, 32, 270)
    assert list(keeps(solved).values()) == [288, 144, 72]
    assert solved.tokens_avg(576, 32) == 270


@pytest.mark.parametrize("share", [0.15, 0.26, 0.3, 0.47, 0.55])
@pytest.mark.parametrize("times", [(0.66, 0.366), (0.5, 0.25), (1.0, 0.143), (0.9, 0.05)])
def test_one_knob_comes_as_near_as_any_count(share, times):
    """No other first count is nearer to the budget; the others are its multiples, rounded, nested, at least 1."""
    total, layers, firsts = 144, 8, (1, 3, 6)
    plan = schedule(
        ("llm.layer.1", "fit"), *((f"llm.layer.{n}", f"fit*{x}") for n, x in zip(firsts[1:], times, strict=True))
    )

    def counts(first):
        found = [first]
        for x in times:
            found.append(max(1, min(int(x * first + 0.5), found[-1])))
        return found

    def mean(found):
        spans = (2, 3, 2)
        return (total + sum(s * c for s, c in zip(spans, found, strict=True))) / layers

    solved = solve_fit(plan, total, layers, share * total)
    best = min(abs(mean(counts(first)) - share * total) for first in range(1, total))
    assert abs(solved.tokens_avg(total, layers) - share * total) == pytest.approx(best)
    wanted = dict(zip((f"llm.layer.{n}" for n in firsts), counts(solved[0].keep), strict=True))
    alive = [total, *wanted.values()]
    changing = {site: c for (site, c), before in zip(wanted.items(), alive, strict=False) if c < before}
    assert keeps(solved) == changing


def test_a_multiple_that_changes_nothing_is_left_out():
    """Where rounding gives a stage what is alive, there is no such stage."""
    solved = solve_fit(
        schedule(("llm.layer.1", "fit"), ("llm.layer.2", "fit*0.9"), ("llm.layer.3", "fit*0.1")), 36, 8, 6
    )
    assert list(keeps(solved)) == ["llm.layer.1", "llm.layer.3"]
    same = solve_fit(schedule(("llm.layer.1", "fit"), ("llm.layer.2", "fit*1"), ("llm.layer.3", "fit*0.5")), 36, 8, 12)
    assert list(keeps(same)) == ["llm.layer.1", "llm.layer.3"]


def test_multiples_lie_between_written_numbers():
    """A number bounds what follows from the first fit, and stays."""
    plan = schedule(("llm.layer.1", "fit"), ("llm.layer.2", "fit*0.5"), ("llm.layer.4", 10), ("llm.layer.6", 0))
    solved = solve_fit(plan, 144, 8, 30)
    first, second, third, last = (stage.keep for stage in solved)
    assert first > second > third == 10
    assert last == 0


def test_a_stage_in_front_of_the_first_fit_may_keep_more():
    """X above 1 stands before the stage that it refers to."""
    solved = solve_fit(schedule(("llm.layer.1", "fit*2"), ("llm.layer.4", "fit")), 144, 8, 50)
    assert solved[0].keep == 2 * solved[1].keep


def test_shares_of_multiples():
    """Samples of any size keep the same relation."""
    solved = fit_each(schedule(*PDROP), Budget(32, share=0.46875))
    for total in (576, 1000, 8, 80):
        assert [stage.count(total) for stage in solved] == [total // 2, total // 4, total // 8]


def test_parts_have_their_own_first_fit():
    """Composed methods scale together; each part's multiples follow that part's first fit."""
    plan = Schedule((*schedule(("vision.output", "fit"), by="a"), *schedule(*PDROP, by="b")))
    first, *rest = (stage.keep for stage in solve_fit(plan, 576, 32, 120))
    assert rest[0] == pytest.approx(first / 2, abs=3)
    assert [k / rest[0] for k in rest[1:]] == pytest.approx([0.5, 0.25], abs=0.01)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("llm.layer.1", "fit*0.5")], r"schedule\.0\.keep is fit\*0\.5, X times .* no stage says keep: fit"),
        ([("llm.layer.1", "fit"), ("llm.cache.3", "fit*0.5")], r"schedule\.1\.keep is fit\*0\.5 at llm\.cache\.3"),
        ([("llm.layer.1", 2), ("llm.layer.2", "fit"), ("llm.layer.3", "fit*0.5"), ("llm.layer.4", 1)], "no room"),
    ],
)
def test_what_cannot_be_solved_names_the_stage(pairs, message):
    """Each error says which keep, and why."""
    with pytest.raises(ValueError, match=message):
        solve_fit(schedule(*pairs), 144, 8, 40)


@pytest.mark.parametrize(
    "pairs",
    [
        [("llm.layer.1", "fit"), ("llm.layer.2", "fit*1.5")],
        [("llm.layer.1", "fit*0.5"), ("llm.layer.2", "fit")],
        [("llm.layer.1", "fit"), ("llm.layer.2", "fit*0.2"), ("llm.layer.3", "fit*0.3")],
    ],
)
def test_multiples_may_not_grow(pairs):
    """A later stage cannot keep more than an earlier one leaves."""
    with pytest.raises(ValueError, match=r"more than are alive: schedule\.\d\.keep"):
        schedule(*pairs)


def test_out_of_reach_knows_the_nearest():
    """The error carries what can be had; nearest takes it, from below and from above."""
    plan = schedule(("llm.layer.2", "fit"))
    with pytest.raises(OutOfReach) as caught:
        solve_fit(plan, 144, 8, 10)
    assert caught.value.nearest == solve_fit(plan, 144, 8, 10, nearest=True).tokens_avg(144, 8) == 36.75
    capped = schedule(("llm.layer.2", "fit"), ("llm.layer.4", 0))
    assert solve_fit(capped, 144, 8, 100, nearest=True).tokens_avg(144, 8) == (2 * 144 + 2 * 143) / 8


def tower(layers, *more):
    return schedule(*((f"vision.mlp.{n}", "fit") for n in range(layers)), *more)


def test_a_ladder_ends_at_the_budget():
    """Only the last count in the tower is the decoder's; every block drops the same number, within a token."""
    solved = solve_fit(tower(23, ("vision.output", "fit")), 576, 32, 192)
    counts = list(keeps(solved).values())
    assert counts[-1] == 192 == solved.tokens_avg(576, 32)
    steps = [a - b for a, b in zip([576, *counts], counts, strict=False)]
    assert len(counts) == 23
    assert set(steps) == {16, 17}


@pytest.mark.parametrize("budget", [10, 32, 36, 50, 100, 140])
@pytest.mark.parametrize("output", [True, False])
def test_no_block_drops_more_than_half(budget, output):
    """Merging in pairs halves at most; vision.output gets the rest, and without it the budget is out of reach."""
    plan = tower(2, ("vision.output", "fit")) if output else tower(2)
    if not output and budget < 36:
        with pytest.raises(OutOfReach, match=r"The nearest is 36\.00"):
            solve_fit(plan, 144, 8, budget)
        return
    solved = solve_fit(plan, 144, 8, budget)
    assert solved.tokens_avg(144, 8) == budget
    alive = 144
    for stage in solved:
        assert stage.keep < alive
        if stage.site.kind == "mlp":
            assert alive - stage.keep <= alive // 2
        alive = stage.keep


def test_a_rung_that_changes_nothing_is_left_out():
    """Five tokens fewer over 23 blocks are five stages, and vision.output has nothing left to do."""
    solved = solve_fit(tower(23, ("vision.output", "fit")), 576, 32, 571)
    assert len(solved) == 5
    assert all(stage.site.kind == "mlp" for stage in solved)


def test_blocks_that_prune_need_not_halve():
    """Where tokens are dropped and not merged, a single layer may take as many as it likes."""
    assert solve_fit(schedule(("vision.layer.1", "fit")), 144, 8, 10)[0].keep == 10


def test_a_ladder_and_the_decoder_share_the_budget():
    """The tower's last count is one knob among those of the decoder."""
    solved = solve_fit(tower(2, ("llm.layer.4", "fit")), 144, 8, 60)
    assert solved.tokens_avg(144, 8) == pytest.approx(60, abs=0.5)
    last, decoder = solved[-2].keep, solved[-1].keep
    assert decoder == pytest.approx(last * max(last / 144, 0.5), abs=3)


def test_ladders_by_hand():
    """Constant steps; where halving holds them back either the next stage has the rest, or earlier ones drop more."""
    assert ladder(100, 40, 3, halving=True, exact=True) == [80, 60, 40]
    assert ladder(144, 31, 2, halving=True, exact=False) == [87, 44]
    assert ladder(144, 20, 3, halving=True, exact=True) == [80, 40, 20]
    assert ladder(144, 20, 3, halving=False, exact=True) == [103, 61, 20]
    assert shortest(145, 2) == 37
