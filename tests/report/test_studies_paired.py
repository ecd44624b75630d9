"""What a study may conclude: intervals that do not collapse, and verdicts that too few samples forbid."""

from math import isinf, isnan

import numpy as np
import pandas as pd
import pytest
from sample_run import of, set_scores, write_run
from scipy import stats
from studying import ALL, SAMPLES, answer, config, write_depths, write_settings

from btp.report.figures.style import LIGHT
from btp.report.studies import paired_suites as page
from btp.report.studies.depth_sweep import depth_sweep
from btp.report.studies.grid import grid
from btp.report.studies.paired import apart, difference, p_of, retained
from btp.report.studies.paired_suites import suites
from btp.report.studies.reproduce import published
from btp.results.stats import Interval, mean_interval

KNOBS = ["pruner.method.over", "pruner.method.seed"]
TOLD = (
    "Cannot be told in 4 of 4 settings: candidates a token 2, spatial seed 0.25; candidates a token 2, spatial seed 0; "
    "candidates a token 1, spatial seed 0.25; candidates a token 1, spatial seed 0."
)


def ones(n, right):
    return np.array([1.0] * right + [0.0] * (n - right))


def test_the_difference_of_paired_shares_is_newcombe_s():
    """Worked by hand from the score intervals of 36/50 and 24/50 with 22 right on both sides."""
    a, b = np.zeros(50), np.zeros(50)
    a[:36], b[:22], b[36:38] = 1, 1, 1
    (la, ua), (lb, ub) = (stats.binomtest(k, 50).proportion_ci(method="wilson") for k in (36, 24))
    r = np.corrcoef(a, b)[0, 1]
    low = 0.24 - np.sqrt((0.72 - la) ** 2 + (ub - 0.48) ** 2 - 2 * r * (0.72 - la) * (ub - 0.48))
    high = 0.24 + np.sqrt((ua - 0.72) ** 2 + (0.48 - lb) ** 2 - 2 * r * (ua - 0.72) * (0.48 - lb))
    found = difference([(a, b)])
    assert (found.mean, found.low, found.high) == pytest.approx((0.24, low, high))


@pytest.mark.parametrize(("pruned", "low", "high"), [(40, 0.7, 1.0), (0, 0.0, 0.2)])
def test_nothing_and_everything_retained_keep_an_interval(pruned, low, high):
    found = retained([(ones(40, pruned), ones(40, 40))])
    assert found.mean == pruned / 40
    assert found.high - found.low > 0.05
    assert low < found.low + 1e-9
    assert found.low < high < found.high + 0.2


def test_a_retained_share_covers_what_it_should():
    """95% intervals of a ratio of 0.75 / 0.9 cover it in nearly 95% of 400 drawn samples, paired as they are."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        whole = (rng.random(60) < 0.9).astype(float)
        pruned = whole * (rng.random(60) < 0.75 / 0.9)
        found = retained([(pruned, whole)])
        hits += found.low <= 0.75 / 0.9 <= found.high
    assert hits / 400 > 0.93


def test_pairing_narrows_what_is_retained():
    """Right on the same samples, a ratio is known better than where right answers fall on others."""
    same, other = retained([(ones(40, 20), ones(40, 20))]), retained([(ones(40, 20), 1 - ones(40, 20))])
    alone = retained([(ones(40, 20), np.tile([1.0, 0.0], 20))])
    assert same.mean == alone.mean == other.mean == 1
    assert same.high - same.low < alone.high - alone.low < other.high - other.low


def test_what_was_never_right_has_nothing_to_retain():
    assert isnan(retained([(ones(9, 4), ones(9, 0))]).mean)
    assert isinf(retained([(ones(9, 4), np.array([0.5] * 9))]).high)


def test_alonewithout_correlation_adds_both_widths():
    found = apart(Interval(0.8, 0.5, 0.9, 10), Interval(0.4, 0.3, 0.8, 20))
    assert (found.low, found.high) == pytest.approx((0.4 - 0.5, 0.4 + np.sqrt(0.02)))


def test_a_test_without_samples_says_nothing():
    assert isnan(p_of([]))


@pytest.mark.parametrize(("samples", "within"), [(12, None), (400, 8)])
def test_few_samples_do_not_show_that_little_is_lost(tmp_path, samples, within):
    """With three samples an ability, none of which is wrong from layer 8 on, nobody knows that a tenth is not lost."""
    found = answer(depth_sweep, write_depths(tmp_path, samples), x="pruner.layer")
    macro = found.frame.set_index("score").loc["macro"]
    assert macro["at_8"] == 1
    assert (None if isnan(macro["within"]) else macro["within"]) == within
    column = next(column for column in found.columns if column.key == "within")
    assert column.title == "loss below 10 points from layer"
    assert "ends below 10 points" in column.help
    said = "no layer is shown" if within is None else "layers from 8 on are shown"
    assert said in found.said[0]


def _scored(root, reading, usual):
    """BTP with such shares of right answers in every run, the unpruned model with all of them."""
    write_settings(root)
    for folder in root.iterdir():
        samples = pd.read_parquet(folder / "samples.parquet")
        of_arm = samples[samples["arm"] == "btp"]
        right = of_arm.groupby("ability").cumcount() / of_arm.groupby("ability")["score"].transform("size")
        wanted = of_arm["ability"].eq("digit").map({True: reading, False: usual})
        set_scores(folder, {"unpruned": ALL, "btp": right.lt(wanted).astype(float)})
    return root


@pytest.mark.parametrize("reading", [0.0, 1.0])
def test_a_suite_without_spread_gets_an_interval_and_no_verdict(tmp_path, reading, monkeypatch):
    monkeypatch.setattr(page, "FEWEST", 10)
    found = answer(suites, _scored(tmp_path, reading, 0.5), by=KNOBS)
    row = found.frame.iloc[0]
    assert row["reading"] == reading
    assert row["reading_high"] - row["reading_low"] > 0.05
    assert set(found.frame["verdict"]) == {page.UNKNOWN}
    assert found.said == [TOLD]


def test_suites_are_told_aloneonly_where_they_have_samples(tmp_path, monkeypatch):
    """Ten samples of a suite are too few for a verdict; the interval would have given one."""
    folder = _scored(tmp_path, 0.1, 0.9)
    assert set(answer(suites, folder, by=KNOBS).frame["verdict"]) == {page.UNKNOWN}
    monkeypatch.setattr(page, "FEWEST", 10)
    found = answer(suites, folder, by=KNOBS)
    assert set(found.frame["verdict"]) == {page.LESS}
    assert found.said[0].startswith("Reading retains less in 4 of 4 settings")


def test_published_orders_come_with_their_p_and_their_budgets(tmp_path):
    """Four methods in the paper's order: a correlation of 1 that chance gives in one of twelve."""
    paper = {"unpruned": {"tokens": 576, "tflops": 4.0, "scores": [100]}}
    for i, name in enumerate(("btp", "fastv", "dart", "vtw")):
        paper[name] = {"tokens": 144, "tflops": 1.0, "scores": [90 - 10 * i]}
        folder = tmp_path / name
        more, stages = config(pruner={"name": name}), [("llm.layer.3", 0.5 - 0.1 * i)]
        write_run(folder, SAMPLES, overlays=0, name=name, arms=of(name), config=more, stages=stages)
        share = 1 - 0.2 * i
        right = [1.0 if (k // 4 + 0.5) / (SAMPLES // 4) < share else 0.0 for k in range(SAMPLES)]
        set_scores(folder, {"unpruned": ALL, name: right})
    found = answer(published, tmp_path, source="table 1", benchmarks=["A"], published=paper)
    assert "usual questions: rank correlation 1.00 over 4 methods (p = 0.083, permutations)." in found.said[1]
    assert found.said[-1] == "pocket: budgets differ by method, as in the paper: 40% to 62% of the tokens."


def test_a_panel_has_stars_of_its_own_test(tmp_path):
    """Reading is untouched where all other abilities fall: no star there, one on the average."""
    write_settings(tmp_path)
    for folder in tmp_path.iterdir():
        samples = pd.read_parquet(folder / "samples.parquet")
        mine = samples[samples["arm"] == "btp"]
        keep = mine["ability"].eq("digit") | folder.name.startswith("2")
        set_scores(folder, {"btp": keep.astype(float)})
    options = {"x": "pruner.method.over", "y": "pruner.method.seed", "metrics": ["macro", "reading"]}
    found = answer(grid, tmp_path, **options, against={"pruner.method.over": 2, "pruner.method.seed": 0})
    rows = found.frame[found.frame["role"].eq("method") & found.frame["pruner.method.over"].eq("1")]
    assert (rows["p_macro_holm"] < 0.05).all()
    assert (rows["p_reading_holm"] == 1).all()
    macro, reading = found.draw(LIGHT).axes[:2]
    starred = [[text.get_text().endswith("*") for text in axes.texts] for axes in (macro, reading)]
    assert sum(starred[0]) == 2
    assert sum(starred[1]) == 0


def test_intervals_are_those_of_the_other_pages():
    """One group of right-or-wrong scores whose other side is all right: nothing but Wilson's ends."""
    found = retained([(ones(40, 20), ones(40, 40))])
    wilson = mean_interval(ones(40, 20))
    assert found.low <= wilson.low <= 0.5 <= wilson.high <= found.high
