"""Intervals and tests against numbers that can be checked by hand."""

from math import comb, isnan, nan, sqrt

import numpy as np
import pytest

from btp.results.stats import Interval, holm, macro_interval, mean_interval, paired_gap, paired_p


def test_one_pair_a_group_says_nothing_of_the_spread():
    """A difference, and no interval around it."""
    gap = paired_gap([([1.0], [0.0]), ([0.5], [0.5])])
    assert gap.mean == 0.5
    assert isnan(gap.low)
    assert isnan(gap.high)


def test_wilson_interval_of_eight_right_in_ten():
    z = 1.959963984540054
    middle, half = (0.8 + z**2 / 20) / (1 + z**2 / 10), z * sqrt(0.016 + z**2 / 400) / (1 + z**2 / 10)
    found = mean_interval([1] * 8 + [0] * 2)
    assert (found.mean, found.n) == (0.8, 10)
    assert (found.low, found.high) == (pytest.approx(middle - half), pytest.approx(middle + half))


def test_all_right_is_not_certainty():
    found = mean_interval([1.0] * 20)
    assert found.high == 1
    assert 0.8 < found.low < 0.85


def test_graded_scores_get_a_bootstrap_that_repeats():
    scores = np.random.default_rng(0).beta(4, 2, 400)
    found = mean_interval(scores)
    normal = 1.96 * scores.std(ddof=1) / 20
    assert found == mean_interval(scores)
    assert found.low == pytest.approx(scores.mean() - normal, abs=0.003)
    assert found.high == pytest.approx(scores.mean() + normal, abs=0.003)


def test_equal_graded_scores_say_nothing_about_their_spread():
    assert mean_interval([0.4, 0.4, 0.4]) == Interval(0.4, 0.0, 1.0, 3)


def test_no_scores_have_no_mean():
    assert isnan(mean_interval([]).mean)
    assert isnan(macro_interval([mean_interval([])]).low)


def test_macro_interval_by_hand():
    found = macro_interval([Interval(0.9, 0.6, 1.0, 10), Interval(0.5, 0.1, 0.8, 90)])
    assert found.mean == pytest.approx(0.7)  # the groups count the same
    assert found.low == pytest.approx(0.7 - sqrt(0.3**2 + 0.4**2) / 2)
    assert found.high == pytest.approx(0.7 + sqrt(0.1**2 + 0.3**2) / 2)
    assert found.n == 100


def test_macro_interval_of_one_group_is_that_group():
    one = mean_interval([1, 0, 1, 1])
    assert macro_interval([one]) == pytest.approx(one)


def test_mcnemar_by_hand():
    a = [1] * 10 + [0] * 2 + [1] * 30
    b = [0] * 10 + [1] * 2 + [1] * 30  # 10 pairs one way, 2 the other, 30 agree
    assert paired_p(a, b) == pytest.approx(2 * sum(comb(12, k) for k in range(3)) / 2**12)
    assert paired_p(a, b) == paired_p(b, a)


def test_equal_scores_are_no_difference():
    assert paired_p([1, 0, 0.5], [1, 0, 0.5]) == 1.0
    assert isnan(paired_p([], []))
    assert paired_p([0.5, 1], [0.4, 1]) == 1.0  # one pair cannot tell


def test_graded_pairs_get_an_exact_permutation_test():
    a, b = [0.9, 0.8, 0.7, 0.6, 1.0], [0.5, 0.5, 0.5, 0.5, 0.5]
    assert paired_p(a, b) == pytest.approx(2 / 2**5)


def test_small_p_of_graded_pairs_are_drawn_finer():
    """20 pairs that all differ alike: 2 of 2^20 sign patterns are as extreme, far below what 4999 draws can tell."""
    assert paired_p([0.9] * 20, [0.4] * 20) == pytest.approx(1e-5, abs=1e-5)
    a, b = np.array([0.9] * 17 + [0.1] * 3), np.array([0.4] * 17 + [0.6] * 3)
    exact = 2 * sum(comb(20, k) for k in range(4)) / 2**20
    assert paired_p(a, b) == pytest.approx(exact, rel=0.1)
    assert paired_p(a, b) == paired_p(a, b)


def test_a_paired_gap_counts_groups_the_same():
    """Two of ten better in one group, three of three in the other: (0.2 + 1) / 2."""
    found = paired_gap([([1] * 2 + [0] * 8, [0] * 10), ([1, 1, 1], [0, 0, 0]), ([], [])])
    assert (found.mean, found.n) == (pytest.approx(0.6), 13)
    assert found == paired_gap([([1] * 2 + [0] * 8, [0] * 10), ([1, 1, 1], [0, 0, 0])])
    assert 0.5 <= found.low < 0.6 < found.high <= 0.75  # only the first group spreads, and counts half


def test_the_interval_of_a_paired_gap_is_the_normal_one_for_many_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.random(400), rng.random(400)
    found = paired_gap([(a, b)])
    half = 1.96 * (a - b).std() / 20
    assert found.low == pytest.approx((a - b).mean() - half, abs=0.004)
    assert found.high == pytest.approx((a - b).mean() + half, abs=0.004)


def test_a_paired_gap_needs_pairs():
    assert isnan(paired_gap([]).mean)
    with pytest.raises(ValueError, match="paired gap needs the same samples on both sides, but has 1 and 2"):
        paired_gap([([1], [1, 0])])


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="same samples on both sides, but has 2 and 3"):
        paired_p([1, 0], [1, 0, 1])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, nan])[0] == 0.5
    assert isnan(holm([0.5, nan])[1])
