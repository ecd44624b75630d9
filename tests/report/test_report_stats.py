"""Intervals and tests against numbers that can be checked by hand."""

from math import comb, isnan, nan, sqrt

import numpy as np
import pytest

from btp.report.stats import Interval, holm, macro_interval, mean_interval, paired_p


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


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="same samples on both sides, but has 2 and 3"):
        paired_p([1, 0], [1, 0, 1])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, nan])[0] == 0.5
    assert isnan(holm([0.5, nan])[1])
