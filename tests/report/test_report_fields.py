"""How the arms of several runs become the rows of one comparison."""

import pandas as pd
import pytest
from sample_run import ARMS, BLIND, SHRUNK, STAGES, method, of, set_scores, write_run

from btp.report.comparison.groups import fields, pair
from btp.report.comparison.series_names import variants
from btp.results.reader import read_costs, read_run

SMALL = {"samples": 16, "overlays": 0}


def rows(field):
    return [(e.role, e.series, e.note) for e in field.entries]


def test_one_baseline_and_each_control_once(tmp_path):
    """Three runs with the same controls: unpruned, random and no image stand once."""
    runs = [
        read_run(write_run(tmp_path / name, **SMALL, name=name, arms=of(name, SHRUNK, BLIND)))
        for name in ("btp", "dart", "fastv")
    ]
    (field,) = fields(runs)
    assert rows(field) == [
        *(("baseline", "unpruned", ""), ("method", "btp", ""), ("control", "random", "")),
        *(("control", "downsampled", ""), ("control", "no image", "")),
        *(("method", "dart", ""), ("method", "fastv", "")),
    ]
    assert field.shared == 2 * 3
    assert field.remarks == ()


def test_a_method_that_is_a_control_of_others_stands_as_a_method(tmp_path):
    """Beside BTP, read first, it is a control; its own run has fewer samples."""
    beside = method("dart", "control") | {"schedule": [{"site": site, "keep": keep} for site, keep in STAGES]}
    one = read_run(write_run(tmp_path / "one", **SMALL, arms=of("btp", beside)))
    two = write_run(tmp_path / "two", samples=9, overlays=0, name="dart", arms=of("dart"))
    (field,) = fields([one, read_run(two)])
    (own,) = [e for e in field.entries if e.arm.arm == "dart"]
    assert (own.role, own.run.path) == ("method", two)


def test_controls_that_answer_otherwise_or_stand_elsewhere_stay_apart(tmp_path):
    one = read_run(write_run(tmp_path / "one", **SMALL))
    other = write_run(tmp_path / "two", **SMALL, name="dart", arms=of("dart"))
    set_scores(other, {"random": [0] * 16})
    stages = [("llm.layer.2", 0.3)]
    third = read_run(write_run(tmp_path / "three", **SMALL, name="fastv", arms=of("fastv"), stages=stages))
    (field,) = fields([one, read_run(other), third])
    assert [row for row in rows(field) if row[1] == "random"] == [
        ("control", "random", "at llm.layer.3, 6, 9 as btp"),
        ("control", "random", "at llm.layer.3, 6, 9 as dart"),
        ("control", "random", ""),
    ]


def randoms(root, *runs):
    """Notes of random selection in runs of (name, stages), all at 36 visual tokens; each answers in its own way."""
    read = []
    for i, (name, stages) in enumerate(runs):
        arms = (ARMS[0], method("random")) if name == "random" else of(name)
        folder = write_run(root / f"run-{i}", **SMALL, name=name, arms=arms, stages=stages)
        read.append(read_run(set_scores(folder, {"random": [int(i == j) for j in range(16)]})))
    (field,) = fields(read)
    return [e.note for e in field.entries if e.series == "random"]


def test_random_is_named_by_its_sites_and_never_by_a_run(tmp_path):
    """Sites alone, then whose stages they are, then what they keep; equal ones are counted."""
    two, five = [("llm.layer.0", 0.25)], [("llm.input", 0.4), ("llm.layer.6", 0.1)]
    assert randoms(tmp_path / "a", ("btp", two), ("dart", five)) == [
        *("at llm.layer.0 as btp", "at llm.input, llm.layer.6 as dart"),
    ]
    other = [("llm.input", 0.3), ("llm.layer.6", 0.2)]
    assert randoms(tmp_path / "b", ("btp", five), ("btp", other)) == [
        "at llm.input (keeps 0.4), llm.layer.6 (keeps 0.1) as btp",
        "at llm.input (keeps 0.3), llm.layer.6 (keeps 0.2) as btp",
    ]
    assert randoms(tmp_path / "c", ("btp", two), ("btp", two)) == [
        *("at llm.layer.0 (keeps 0.25) as btp (1)", "at llm.layer.0 (keeps 0.25) as btp (2)"),
    ]
    alone = [("random", two), ("btp", five)]
    assert randoms(tmp_path / "d", *alone)[-1] == "at llm.input, llm.layer.6 as btp"


def test_of_two_that_are_the_same_the_one_with_more_samples_stays(tmp_path):
    few = read_run(write_run(tmp_path / "few", samples=8, overlays=0))
    many = read_run(write_run(tmp_path / "many", samples=16, overlays=0, name="dart", arms=of("dart")))
    (field,) = fields([few, many])
    kept = {e.series: len(e.rows) for e in field.entries}
    assert kept == {"unpruned": 16, "btp": 8, "random": 16, "dart": 16}
    assert "answered 8 and 16 samples" in field.remarks[0].text


def test_models_and_tasks_are_fields_of_their_own(tmp_path):
    one = read_run(write_run(tmp_path / "one", **SMALL))
    other = read_run(write_run(tmp_path / "two", **SMALL, config={"model": {"name": "llava15"}}))
    third = read_run(write_run(tmp_path / "three", **SMALL, config={"task": {"name": "pope"}}))
    assert [f.name for f in fields([one, other, third])] == ["pocket, pocketvqa", "llava15, pocketvqa", "pocket, pope"]


def test_namesakes_with_other_answers_are_not_one_model(tmp_path):
    """A model whose unpruned answers differ in many samples has other weights: nothing is compared across."""
    one = read_run(write_run(tmp_path / "one", **SMALL))
    two = set_scores(write_run(tmp_path / "two", **SMALL), {"unpruned": [0, 1] * 8})
    found = fields([one, read_run(two)])
    assert [f.model for f in found] == ["pocket (1)", "pocket (2)"]
    assert found[0].remarks[0].kind == "bad"
    assert "compared apart" in found[0].remarks[0].text


def test_a_few_other_answers_are_noted(tmp_path):
    one = read_run(write_run(tmp_path / "one", samples=60, overlays=0))
    folder = write_run(tmp_path / "two", samples=60, overlays=0, name="dart", arms=of("dart"))
    samples = pd.read_parquet(folder / "samples.parquet")
    samples.loc[samples.index[samples["arm"] == "unpruned"][:2], "prediction"] = "else"
    samples.to_parquet(folder / "samples.parquet")
    (field,) = fields([one, read_run(folder)])
    assert "a few differ in two (2 of 60)" in field.remarks[0].text


def test_selection_by_lot_is_a_control_wherever_it_ran(tmp_path):
    one = read_run(write_run(tmp_path / "one", **SMALL))
    alone = read_run(write_run(tmp_path / "two", **SMALL, name="random", arms=(ARMS[0], method("random"))))
    (field,) = fields([one, alone])
    assert [row for row in rows(field) if row[1] == "random"] == [("control", "random", "")]


def test_budgets_are_one_series_and_settings_are_not(tmp_path):
    """Counts and budgets do not change a method's name; any other setting does, and only where it differs."""
    configs = [
        {"pruner": {"name": "btp", "method": {"score": "logits", "over": 1}}, "budget": {"share": 0.2}, "seed": 0},
        {"pruner": {"name": "btp", "method": {"score": "logits", "over": 1}}, "budget": {"share": 0.4}, "seed": 0},
        {"pruner": {"name": "btp", "method": {"score": "probs", "over": 1}}, "budget": {"share": 0.4}, "seed": 0},
    ]
    runs = [read_run(write_run(tmp_path / str(i), **SMALL, config=c)) for i, c in enumerate(configs)]
    assert [v["btp"] for v in variants(runs)] == [
        *("btp (score=logits)", "btp (score=logits)"),
        "btp (score=probs)",
    ]
    assert variants(runs[:2]) == [{"btp": "btp"}, {"btp": "btp"}]


@pytest.mark.parametrize(
    ("configs", "labels"),
    [
        ([{"stages": 2}, {"stages": 3}], ["btp (stages=2)", "btp (stages=3)"]),
        (
            [{"schedule": {"kind": "auto", "tau": 0.9}}, {"schedule": {"kind": "uniform", "balance": 1}}],
            ["btp (schedule=auto)", "btp (schedule=uniform)"],
        ),
        (
            [{"schedule": {"stages": [{"site": "llm.layer.2", "keep": k}]}} for k in (64, 128)],
            ["btp", "btp"],
        ),
        ([{"model": {"name": "pocket", "path": p}} for p in ("a", "b")], ["btp", "btp"]),
    ],
)
def test_what_a_variant_is_called(tmp_path, configs, labels):
    runs = [read_run(write_run(tmp_path / str(i), **SMALL, config=c)) for i, c in enumerate(configs)]
    assert [v["btp"] for v in variants(runs)] == labels


def labels(root, configs, commands=None):
    """What runs of btp with these configs are called."""
    commands = commands or ["python run.py"] * len(configs)
    runs = [
        read_run(write_run(root / str(i), samples=4, overlays=0, config=config, run={"command": command}))
        for i, (config, command) in enumerate(zip(configs, commands, strict=True))
    ]
    return [v["btp"] for v in variants(runs)]


def pruner(**method):
    return {"pruner": {"name": "btp", "method": method}}


def test_a_label_names_what_the_commands_differ_in(tmp_path):
    """Not what follows from it; without commands, as few settings as tell the runs apart."""
    configs = [pruner(split=i, over=i, score="x" * (i + 1)) for i in range(3)]
    commands = [f"python run.py pruner=btp +pruner.method.split={i}" for i in range(3)]
    assert labels(tmp_path / "a", configs, commands) == ["btp (split=0)", "btp (split=1)", "btp (split=2)"]
    assert labels(tmp_path / "b", configs, ["python run.py 'pruner"] * 3) == [f"btp (over={i})" for i in range(3)]


def test_a_run_without_the_key_is_called_by_its_name(tmp_path):
    assert labels(tmp_path, [pruner(), pruner(look=0), pruner(look=None)]) == ["btp", "btp (look=0)", "btp (look=null)"]


def test_a_label_is_never_cut_where_runs_differ(tmp_path):
    long = ["checkpoints/of/a/long/path/to/one", "checkpoints/of/a/long/path/to/other"]
    assert labels(tmp_path / "a", [pruner(source=x) for x in long]) == ["btp (source=…one)", "btp (source=…other)"]
    first = [c * 30 for c in "ab"]
    assert labels(tmp_path / "b", [pruner(source=x) for x in first]) == [f"btp (source={c * 23}…)" for c in "ab"]
    last = ["a" * 30 + end for end in "xyz"]
    assert labels(tmp_path / "c", [pruner(source=x) for x in last]) == [f"btp (source={x})" for x in last]
    many = [pruner(**{key: int(i == at) for at, key in enumerate("abcdef")}) for i in range(6)]
    words = [
        f"python run.py {' '.join(f'pruner.method.{k}={int(i == j)}' for j, k in enumerate('abcdef'))}"
        for i in range(6)
    ]
    assert len(set(labels(tmp_path / "d", many, words))) == 6


def test_settings_of_one_last_word_are_told_apart(tmp_path):
    configs = [
        {"pruner": {"name": "btp", "first": {"over": a}, "second": {"over": b}}} for a, b in ((1, 1), (1, 2), (2, 1))
    ]
    assert labels(tmp_path, configs) == [
        "btp (first.over=1, second.over=1)",
        "btp (first.over=1, second.over=2)",
        "btp (first.over=2, second.over=1)",
    ]


def test_seeds_tell_selection_by_lot_apart(tmp_path):
    runs = [read_run(write_run(tmp_path / str(i), **SMALL, config={"seed": i})) for i in range(2)]
    assert variants(runs) == [{"btp": f"btp (seed={i})", "random": f"random (seed={i})"} for i in range(2)]


def test_a_sample_is_the_same_where_its_question_is(tmp_path):
    a = read_run(write_run(tmp_path / "one", **SMALL)).rows("btp")
    b = a.iloc[::-1].copy()
    b.loc["test-0-000003", "question"] = "another one ?"
    x, y = pair(a, b[1:])
    assert list(x.index) == list(y.index)
    assert set(a.index) - set(x.index) == {"test-0-000003", "test-0-000015"}


def test_costs_only_stand_beside_answers(tmp_path):
    one = read_run(write_run(tmp_path / "one", **SMALL))
    costs = read_costs(write_run(tmp_path / "two", **SMALL, name="dart", arms=of("dart"), drop=["samples.parquet"]))
    (field,) = fields([one, costs])
    assert {e.series: len(e.rows) for e in field.entries}["dart"] == 0
    assert field.baseline.run is one
