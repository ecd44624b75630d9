"""Answers survive a kill at any moment, and nothing is written twice."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from btp.results.atomic import write_json
from btp.results.shapes import keys, number
from btp.runner.arms import Arm
from btp.runner.calibration.artifact import find_or_make
from btp.runner.evaluation.answer_store import ANSWER, Answers
from btp.runner.evaluation.cost import Costs
from btp.runner.identity import checkpoint, digest


def row(sample, text="yes"):
    return {"sample": sample, "prediction": text}


def test_rows_come_back(tmp_path):
    answers = Answers(tmp_path / "a")
    answers.add([row("1"), row("2")])
    answers.add([row("3")])
    assert list(Answers(tmp_path / "a").rows()) == ["1", "2", "3"]


def test_a_torn_last_line_does_not_count_and_does_not_spoil_the_next(tmp_path):
    answers = Answers(tmp_path / "a")
    answers.add([row("1")])
    with (tmp_path / "a" / "rows-0.jsonl").open("a") as f:
        f.write('{"sample": "2", "predic')
    assert list(answers.rows()) == ["1"]
    answers.add([row("2", "no")])
    assert answers.rows()["2"]["prediction"] == "no"
    assert all(json.loads(line) for line in (tmp_path / "a" / "rows-0.jsonl").read_text().splitlines())


def test_a_broken_line_does_not_count_and_the_rest_does(tmp_path):
    """As a full disk or a power cut leaves it: the sample is answered again, the others are not."""
    answers = Answers(tmp_path / "a")
    answers.add([row("1"), row("2"), row("3")])
    file = tmp_path / "a" / "rows-0.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:9], "", lines[2]]) + "\n")
    assert list(answers.rows()) == ["1", "3"]
    answers.add([row("2", "no")])
    assert answers.rows()["2"]["prediction"] == "no"


NO_ANSWERS = ["[]", "3", "null", '{"prediction": "a"}', '{"sample": 4}', '{"sample": "2"}', "[" * 9999]


@pytest.mark.parametrize("line", [*NO_ANSWERS, '{"sample": "2", "prediction": "a", "total": "x"}'])
def test_a_line_that_is_no_answer_does_not_count(tmp_path, line):
    answers = Answers(tmp_path / "a", shape=ANSWER)
    whole = row("1") | {"kl": 0.5, "total": 4, "visual": [4, 2], "tokens": [9, 7], "stages": []}
    answers.add([whole])
    with (tmp_path / "a" / "rows-0.jsonl").open("a") as f:
        f.write(f"{line}\n")
    answers.add([whole | {"sample": "3", "kl": float("inf")}])
    assert list(answers.rows()) == ["1", "3"]


@pytest.mark.parametrize("content", [b"", b"torn", b"PK\x03\x04", None])
def test_a_broken_first_distribution_names_its_file(tmp_path, content):
    answers = Answers(tmp_path / "a")
    answers.add_logits(["x"], np.zeros((1, 3)))
    file = tmp_path / "a" / "first" / "x.npy"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(ValueError, match=r"first/x\.npy .* Set resume=false once"):
        answers.logits("x")


HEAD = {"identity": "a", "model": {"name": "pocket", "checkpoint": "b"}}


@pytest.mark.parametrize("content", ["", "{", "- a", "made: 1", yaml.safe_dump(HEAD | {"made": "one"}), None])
def test_a_broken_artifact_in_the_store_is_made_again(tmp_path, content):
    """And a whole one is not."""
    path, machine = tmp_path / "found.yaml", SimpleNamespace(leads=True, sync=lambda: None)
    if content is not None:
        path.write_text(content)
    find_or_make(path, lambda: HEAD | {"made": 1}, keys(made=number()), "it", machine, resume=True)
    assert yaml.safe_load(path.read_text()) == HEAD | {"made": 1}
    find_or_make(path, lambda: HEAD | {"made": 2}, keys(made=number()), "it", machine, resume=True)
    assert yaml.safe_load(path.read_text()) == HEAD | {"made": 1}


def test_ranks_write_apart_and_read_together(tmp_path):
    Answers(tmp_path / "a", 0).add([row("1")])
    Answers(tmp_path / "a", 1).add([row("2"), row("1", "late")])
    rows = Answers(tmp_path / "a").rows()
    assert set(rows) == {"1", "2"}
    assert rows["1"]["prediction"] == "yes"


def test_first_distributions_come_back(tmp_path):
    answers = Answers(tmp_path / "a")
    answers.add_logits(["x", "y"], np.arange(6.0).reshape(2, 3))
    assert answers.logits("y").tolist() == [3, 4, 5]


def test_identity_ignores_key_order_and_sees_every_value():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_a_checkpoint_is_its_content_and_not_its_place(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(bytes(10 + (name == "c")))
    one, same, other = (checkpoint(tmp_path / n) for n in "abc")
    assert one == same
    assert one != other


def test_json_is_replaced_whole(tmp_path):
    write_json(tmp_path / "run.json", {"state": "running"})
    write_json(tmp_path / "run.json", {"state": "finished"})
    assert json.loads((tmp_path / "run.json").read_text()) == {"state": "finished"}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_costs_of_a_control_are_found_unless_all_is_computed_anew(tmp_path):
    """resume=false measures it again; another machine does as well."""
    arm, kept = Arm.unpruned(), {"control": {"kv_mib": 1.0}, "unpruned": {"kv_mib": 2.0}}
    path = Costs(tmp_path, "shared", reuse=True).path(arm, "here")
    assert Costs(tmp_path, "shared", reuse=True).find(path) is None
    write_json(path, kept)
    assert Costs(tmp_path, "shared", reuse=True).find(path) == kept
    assert Costs(tmp_path, "shared", reuse=False).find(path) is None
    assert Costs(tmp_path, "shared", reuse=True).path(arm, "there") != path
