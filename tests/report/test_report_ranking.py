"""The comparison's numbers, against ones computed by hand."""

from math import isnan, nan

import numpy as np
import pytest
from sample_run import BLIND, SHRUNK, of, set_scores, write_run

from btp.report.comparison.groups import budget_groups, fields
from btp.report.comparison.pareto import pareto_front
from btp.report.comparison.table import ranking
from btp.report.tables.run_table import run_table
from btp.results.reader import read_costs, read_run
from btp.results.stats import holm

ONE = ("presence",)
SMALL = {"samples": 20, "overlays": 0, "abilities": ONE}
NONE = {"budget": {"tokens": None, "share": None}}


def table(*runs):
    return ranking(fields([read_run(run) for run in runs]))


def by_series(*runs):
    return table(*runs).frame.set_index("series")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """20 samples: random 8 right, btp 14, dart 19, fastv 11; each better in some and worse in others."""
    root = tmp_path_factory.mktemp("three")
    random = [1] * 8 + [0] * 12
    scores = {
        "btp": [1] * 4 + [0] * 4 + [1] * 10 + [0] * 2,  # against random: 10 better, 4 worse
        "dart": [1] * 8 + [1] * 11 + [0],  # 11 better, none worse
        "fastv": [1] * 8 + [1] * 3 + [0] * 9,  # 3 better, none worse
    }
    runs = []
    for name, mine in scores.items():
        folder = write_run(root / name, **SMALL, name=name, arms=of(name, BLIND))
        runs.append(set_scores(folder, {"unpruned": [1] * 20, "random": random, name: mine, "no_image": [0] * 20}))
    return runs


def test_against_random_by_hand(three):
    """McNemar's exact test by the binomial, Holm's correction over the three methods."""
    rows = by_series(*three)
    p = {"btp": 2 * sum([1, 14, 91, 364, 1001]) / 2**14, "dart": 2 / 2**11, "fastv": 2 / 2**3}
    assert {k: rows.loc[k, "p_random"] for k in p} == pytest.approx(p)
    assert [rows.loc[k, "p_random_holm"] for k in p] == pytest.approx([2 * p["btp"], 3 * p["dart"], 2 * p["btp"]])
    assert [rows.loc[k, "p_random_holm"] for k in p] == pytest.approx(holm(list(p.values())))
    gaps = [rows.loc[k, "gap_random"] for k in p]
    assert gaps == pytest.approx([6 / 20, 11 / 20, 3 / 20])
    assert (rows.loc[list(p), "pairs_random"] == 20).all()


def test_against_btp_by_hand(three):
    """dart is right where btp is and in 5 more; fastv is better in 4 and worse in 7."""
    rows = by_series(*three)
    assert rows.loc["dart", "p_btp"] == pytest.approx(2 / 2**5)
    assert rows.loc["fastv", "p_btp"] == pytest.approx(2 * sum([1, 11, 55, 165, 330]) / 2**11)
    assert rows.loc["dart", "p_btp_holm"] == pytest.approx(4 / 2**5)
    assert rows.loc["dart", "gap_btp"] == pytest.approx(5 / 20)
    assert rows.loc["fastv", "gap_btp"] == pytest.approx(-3 / 20)
    assert rows.loc["dart", "reference_btp"] == "btp"


def test_nothing_is_held_against_itself_or_another_budget(three):
    rows = by_series(*three)
    assert isnan(rows.loc["btp", "gap_btp"])
    assert isnan(rows.loc["random", "gap_random"])
    assert isnan(rows.loc["random", "gap_btp"])  # btp's row has that test
    assert rows.loc["no image", ["gap_random", "gap_btp"]].isna().all()
    assert rows.loc["unpruned", ["gap_unpruned", "gap_random", "gap_btp"]].isna().all()
    assert rows.loc["no image", "gap_unpruned"] == -1


def test_against_the_downsampled_picture_by_hand(tmp_path):
    """McNemar by the binomial, within 5% of the tokens; not of random selection, whose row says nothing of methods."""
    runs = []
    for name, right in (("btp", 14), ("dart", 9)):
        arms, stages = of(name, SHRUNK), [("llm.layer.0", 0.444)]
        folder = write_run(tmp_path / name, **SMALL, name=name, arms=arms, stages=stages)
        scores = {"unpruned": 20, "random": 5, "downsampled": 8, name: right}
        runs.append(set_scores(folder, {arm: [1] * n + [0] * (20 - n) for arm, n in scores.items()}))
    rows = by_series(*runs)
    assert rows.loc["btp", "gap_downsampled"] == pytest.approx(6 / 20)
    assert rows.loc["btp", "p_downsampled"] == pytest.approx(2 / 2**6)
    assert rows.loc["btp", "p_downsampled_holm"] == pytest.approx(4 / 2**6)
    assert rows.loc["dart", "p_downsampled"] == 1.0
    assert rows.loc["random", ["gap_downsampled", "gap_btp"]].isna().all()
    assert rows.loc["downsampled", ["gap_downsampled", "gap_btp"]].isna().all()
    keys = [c.key for c in table(*runs).columns]
    assert {"gap_downsampled", "p_downsampled_holm"} <= set(keys)
    assert "p_downsampled" in [c.key for c in run_table(read_run(runs[0])).columns]


def test_the_distance_has_a_bootstrap_interval(three):
    rows = by_series(*three)
    sure = rows.loc["dart"]
    assert sure["gap_random_low"] < sure["gap_random"] < sure["gap_random_high"]
    normal = 1.96 * np.std([1] * 11 + [0] * 9) / np.sqrt(20)
    assert sure["gap_random_high"] - sure["gap_random_low"] == pytest.approx(2 * normal, rel=0.12)


def test_only_shared_samples_are_paired(tmp_path):
    many = write_run(tmp_path / "many", **SMALL)
    few = write_run(tmp_path / "few", **{**SMALL, "samples": 8}, name="dart", arms=of("dart")[:2])
    rows = by_series(many, few)
    assert (rows.loc["dart", "pairs_random"], rows.loc["dart", "pairs_btp"]) == (8, 8)
    assert rows.loc["btp", "pairs_random"] == 20


def test_the_reference_has_the_same_stages_where_there_is_one(tmp_path):
    """Two random controls at nearly one budget: each method is held against the one that cuts where it does."""
    deep, flat = [("llm.layer.6", 0.16)], [("llm.layer.0", 0.58)]
    one = write_run(tmp_path / "one", **SMALL, stages=deep)
    two = write_run(tmp_path / "two", **SMALL, name="dart", arms=of("dart"), stages=flat)
    rows = by_series(one, two)
    assert rows.loc["btp", "reference_random"] == "one"
    assert rows.loc["dart", "reference_random"] == "two"
    assert rows.loc["dart", "reference_btp"] == "one"


def test_no_reference_at_another_budget(tmp_path):
    one = write_run(tmp_path / "one", **SMALL)
    two = write_run(tmp_path / "two", **SMALL, name="dart", arms=of("dart"), stages=[("llm.layer.1", 0.2)])
    rows = by_series(one, two)
    assert isnan(rows.loc["dart", "p_btp"])
    assert not isnan(rows.loc["dart", "p_random"])


def test_rows_stand_by_budget_and_then_score(tmp_path):
    runs = [
        write_run(tmp_path / f"{name}{i}", **SMALL, name=name, arms=of(name), stages=[("llm.layer.0", keep)])
        for name in ("btp", "dart")
        for i, keep in enumerate((0.25, 0.5))
    ]
    set_scores(runs[0], {"btp": [1] * 5 + [0] * 15})
    set_scores(runs[1], {"btp": [1] * 15 + [0] * 5})
    set_scores(runs[2], {"dart": [1] * 9 + [0] * 11})
    set_scores(runs[3], {"dart": [1] * 12 + [0] * 8})
    frame = table(*runs).frame
    methods = frame[frame["role"] == "method"]
    assert [(m, t) for m, t in zip(methods["method"], methods["tokens_avg"], strict=True)] == [
        *(("btp", 72.0), ("dart", 72.0), ("dart", 36.0), ("btp", 36.0)),
    ]
    assert frame["method"].iloc[0] == "unpruned"


def test_budgets_within_five_percent_are_one():
    """Most tokens first; rows of which no tokens are known come last."""
    assert budget_groups([144, 32, 31.6, 0, 58, 57.6, nan]) == [0, 2, 2, 3, 1, 1, 4]


@pytest.mark.parametrize(
    ("cost", "score", "on"),
    [
        ([1, 2, 3, 4], [10, 9, 12, 12], [True, False, True, False]),
        ([1, 1, 2], [5, 6, 6], [False, True, False]),  # as dear: the better; as good: the cheaper
        ([2, 2, 1], [7, 7, 3], [True, True, True]),  # equal in both stand together
        ([1, nan, 3], [nan, 9, 1], [False, False, True]),
        ([], [], []),
    ],
)
def test_the_front_by_hand(cost, score, on):
    assert pareto_front(cost, score).tolist() == on


def test_every_price_has_its_front(three):
    """Of equal prices only the best is on it; the unpruned model's time is 1."""
    rows = by_series(*three)
    for key in ("tokens_avg", "flops_visual_pdrop", "flops_prefill", "prefill_ratio"):
        on = rows.index[rows[f"front_{key}"]].tolist()
        assert on == ["unpruned", "dart", "no image"], key


@pytest.mark.parametrize(
    ("budget", "config", "asked", "note"),
    [
        ({"asked": 60.0, "reached": 63.0}, NONE, 60.0, ""),
        ({"asked": 60.0, "reached": 63.0, "moved": 2}, NONE, 60.0, "stages moved by 2 layers"),
        ({"asked": 60.0, "missed": True}, NONE, 60.0, "not at the 60 visual tokens asked for"),
        (None, {"budget": {"tokens": 40, "share": None}}, 40.0, ""),
        (None, {"budget": {"tokens": None, "share": 0.5}}, 72.0, ""),
        (None, NONE, nan, ""),
    ],
)
def test_the_budget_asked_for_is_said(tmp_path, budget, config, asked, note):
    arms = [dict(arm) for arm in of("btp")]
    if budget:
        arms[1]["budget"] = budget
    row = by_series(write_run(tmp_path / "run", **SMALL, arms=arms, config=config)).loc["btp"]
    assert row["budget_asked"] == pytest.approx(asked, nan_ok=True)
    assert row["budget_note"] == note
    assert row["tokens_avg"] == 63.0


def test_rows_of_costs_only_have_costs(tmp_path):
    one = read_run(write_run(tmp_path / "one", **SMALL))
    costs = read_costs(write_run(tmp_path / "two", **SMALL, name="dart", arms=of("dart"), drop=["samples.parquet"]))
    rows = ranking(fields([one, costs])).frame.set_index("series")
    assert (rows.loc["dart", "tokens_avg"], rows.loc["dart", "samples"]) == (63.0, 0)
    assert isnan(rows.loc["dart", "macro"])
    alone = ranking(fields([costs]))
    assert "macro" not in [c.key for c in alone.columns]
    assert "flops_prefill" in [c.key for c in alone.columns]
