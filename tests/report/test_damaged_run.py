"""Run folders that were edited, cut off or mixed up: one message that names file and key, exit code 2, no traceback."""

import json
import os
import re
import shutil

import pandas as pd
import pytest
import yaml
from sample_run import ARMS, write_run

from btp.explain import main as explain
from btp.report.__main__ import main
from btp.results.find import find_runs
from btp.results.reader import read_run
from btp.results.status import is_finished, read_state

SMALL = {"samples": 4, "overlays": 1, "arms": ARMS[:2]}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("good") / "run", **SMALL)


@pytest.fixture
def copied(good, tmp_path):
    return shutil.copytree(good, tmp_path / "run")


def edited(path, key, value):
    """Write a value under a dotted key of a JSON or YAML file; the whole file where the key is empty."""
    form = yaml if path.suffix == ".yaml" else json
    whole = (yaml.safe_load if form is yaml else json.loads)(path.read_text())
    if not key:
        whole = value
    else:
        *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        node = whole
        for part in parents:
            node = node[part]
        node[last] = value
    path.write_text(yaml.safe_dump(whole) if form is yaml else json.dumps(whole))


PICTURE = "test-0-000000"
EDITS = [
    ("run.json", "", [1], r"it holds \[1\], not keys with values"),
    ("run.json", "", 3, "it holds 3, not keys with values"),
    ("run.json", "arms", None, "arms is None, not a list of 1 or more"),
    ("run.json", "arms", ["btp"], r"arms\.0 is 'btp', not keys with values"),
    ("run.json", "arms.1", {"role": "method"}, r"arms\.1\.arm is missing; it takes a text"),
    ("run.json", "arms.1.arm", 7, r"arms\.1\.arm is 7, not a text"),
    ("run.json", "arms.1.role", "mehtod", r"arms\.1\.role is 'mehtod', not one of baseline, method, control"),
    ("run.json", "arms.1.schedule", "fit", r"arms\.1\.schedule is 'fit', not a list or null"),
    ("run.json", "arms.1.schedule.0.keep", [1], r"arms\.1\.schedule\.0\.keep is \[1\], not tokens, a share or fit"),
    ("run.json", "arms.1.budget", {"asked": "9"}, r"arms\.1\.budget\.asked is '9', not a number of 0 or more or null"),
    ("run.json", "started", "yesterday", "started is 'yesterday', not a time such as"),
    ("run.json", "seconds", "94", "seconds is '94', not a number"),
    ("run.json", "versions", ["torch"], "versions is .*, not keys with values"),
    ("run.json", "phases", {"load": None}, r"phases\.load is None, not a number"),
    ("run.json", "chance", {"digit": "low"}, r"chance\.digit is 'low', not a number"),
    ("run.json", "inert", "yes", "inert is 'yes', not keys with values or null"),
    ("run.json", "metrics", {"btp": {"all": {"f1": "high"}}}, r"metrics\.btp\.all\.f1 is 'high', not a number"),
    ("run.json", "prompt", {"sample": "a"}, r"prompt\.text is missing; it takes a text"),
    ("run.json", "calibration", {"own": False}, r"calibration\.name is missing"),
    ("config.yaml", "", None, "it holds None, not keys with values"),
    ("config.yaml", "pruner", "btp", "pruner is 'btp', not keys with values or null"),
    ("config.yaml", "model.name", ["pocket"], r"model\.name is \['pocket'\], not a text or null"),
    ("config.yaml", "task.reading", "digit", r"task\.reading is 'digit', not a list or null"),
    ("cost.json", "btp", 5, "btp is 5, not costs of an arm"),
    ("cost.json", "btp.kv_mib", "much", r"btp\.kv_mib is 'much', not a number"),
    ("cost.json", "btp.kv_mib", 1e999, r"btp\.kv_mib is inf, not a number"),
    ("cost.json", "btp.prefill_ms.median", [3], r"btp\.prefill_ms\.median is \[3\], not a number"),
    ("layers.json", "btp", [1, 2], r"btp is \[1, 2\], not keys with values"),
    ("layers.json", "btp.visual", [144, "few"], r"btp\.visual\.1 is 'few', not a number"),
    ("calibration.yaml", "stages", 3, "stages is 3, not a list or null"),
    ("calibration.yaml", "stages.0.layer", "first", r"stages\.0\.layer is 'first', not a whole number"),
    ("calibration.yaml", "curves.changed", ["a"], r"curves\.changed\.0 is 'a', not a number"),
    ("pictures/index.json", "", ["a"], r"it holds \['a'\], not keys with values"),
    ("pictures/index.json", PICTURE, {}, rf"{PICTURE}\.grid is missing; it takes a list of 2"),
    ("pictures/index.json", f"{PICTURE}.grid", [12], rf"{PICTURE}\.grid is \[12\], not a list of 2"),
    (
        "pictures/index.json",
        f"{PICTURE}.grid",
        [12, 9999],
        r"grid\.1 is 9999, not a whole number from 1 to 4096",
    ),
    ("pictures/index.json", f"{PICTURE}.boxes.0", [0, 1], r"boxes\.0 is \[0, 1\], not a list of 4"),
    ("pictures/index.json", f"{PICTURE}.labels", [3], r"labels\.0 is 3, not a text"),
    ("pictures/index.json", f"{PICTURE}.tokens", [1], r"has 1 tokens on a grid of 12 x 12"),
    ("pictures/index.json", f"{PICTURE}.views", [3], r"views\.0 is 3, not keys with values"),
]


@pytest.mark.parametrize(("file", "key", "value", "message"), EDITS)
def test_an_edited_file_is_named_with_its_key(copied, file, key, value, message):
    edited(copied / file, key, value)
    with pytest.raises(ValueError, match=rf"{file} is broken: .*{message}.*Delete it\. Run its command again"):
        read_run(copied)


TEXTS = {
    "empty": "",
    "cut off": '{"a": [',
    "deep": "[" * 100_000,
    "deep, and closed": "[" * 200 + "]" * 200,
    "bytes": b"\xff\xfe\x00{",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize(
    "file", ["run.json", "config.yaml", "cost.json", "layers.json", "calibration.yaml", "pictures/index.json"]
)
def test_what_is_no_json_or_yaml_is_named(copied, file, text):
    (copied / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"{file} (cannot be read|is broken): .*Run its command again"):
        read_run(copied)


def set_cell(column, value):
    def change(frame):
        return frame.assign(**{column: [value, *frame[column].tolist()[1:]]})

    return change


CELLS = [
    ("samples.parquet", lambda f: f.assign(score=f["score"].map(str)), "column score, row 0 is '.*', not a number"),
    ("samples.parquet", lambda f: f.assign(ability=3), "column ability, row 0 is 3, not a text"),
    ("samples.parquet", set_cell("question", None), "column question, row 0 is None, not a text"),
    ("samples.parquet", lambda f: f.assign(agreement="yes"), "column agreement, row 0 is 'yes', not true or false"),
    ("samples.parquet", set_cell("tokens_avg", float("nan")), "column tokens_avg, row 0 is nan, not a number"),
    ("samples.parquet", set_cell("total", -1), "column total, row 0 is -1, not a whole number of 0 or more"),
    ("trace.parquet", lambda f: f.assign(kept="all"), "column kept, row 0 is 'all', not a list of whole numbers"),
    ("trace.parquet", set_cell("kept", [-3]), r"column kept, row 0 is array\(\[-3\]\), not a list of whole numbers"),
    ("trace.parquet", lambda f: f.assign(before="many"), "column before, row 0 is 'many', not a whole number"),
]


@pytest.mark.parametrize(("file", "change", "message"), CELLS)
def test_a_column_of_another_kind_is_named(copied, file, change, message):
    change(pd.read_parquet(copied / file)).to_parquet(copied / file)
    with pytest.raises(ValueError, match=rf"{file} is broken: {message}"):
        read_run(copied)


@pytest.mark.parametrize("file", ["samples.parquet", "trace.parquet"])
def test_a_corrupt_page_is_named(copied, file):
    data = bytearray((copied / file).read_bytes())
    data[20:300] = b"\xff" * 280
    (copied / file).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{file} (cannot be read|is broken): .*Run its command again"):
        read_run(copied)


def test_the_command_says_it_in_one_message(copied, capsys):
    edited(copied / "run.json", "started", 5)
    assert main([str(copied)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {copied / 'run.json'} is broken: started is 5, not a time")
    assert "Traceback" not in said


EXPLAINED = [
    ("run.json", "arms.1.schedule", 3, r"run\.json is broken: arms\.1\.schedule is 3"),
    ("config.yaml", "trainer", 3, r"config\.yaml is broken: trainer is 3, not keys with values"),
    ("config.yaml", "task", {"name": "mine"}, r"config\.yaml is broken: task\.dataset is missing"),
    ("config.yaml", "limit", "all", r"config\.yaml is broken: limit is 'all', not a whole number"),
]


@pytest.mark.parametrize(("file", "key", "value", "message"), EXPLAINED)
def test_explain_names_file_and_key(copied, capsys, file, key, value, message):
    known = yaml.safe_load((copied / "config.yaml").read_text())
    known["task"]["dataset"], known["trainer"] = {"_target_": "mine"}, {"accelerator": "cpu"}
    (copied / "config.yaml").write_text(yaml.safe_dump(known))
    edited(copied / file, key, value)
    assert explain([str(copied), PICTURE]) == 2
    said = capsys.readouterr().err
    assert re.match(rf"error: {re.escape(str(copied))}/{message}", said), said
    assert "Traceback" not in said


def test_of_many_runs_a_broken_one_is_left_out_and_said(good, tmp_path):
    shutil.copytree(good, tmp_path / "sound")
    for name, file in (("a", "cost.json"), ("b", "run.json"), ("c", "trace.parquet")):
        (shutil.copytree(good, tmp_path / name) / file).write_text("{")
    runs, left = find_runs([tmp_path])
    assert [run.path.name for run in runs] == ["sound"]
    assert [(os.path.basename(x.what), x.kind) for x in left] == [("a", "failed"), ("b", "failed"), ("c", "failed")]
    assert all(f"{x.what}/" in x.why and "cannot be read" in x.why for x in left)


@pytest.mark.parametrize("text", ["[]", "null", '{"phases": 3}', '{"state": ["finished"]}', "[" * 5000])
def test_a_broken_state_is_that_of_a_run_to_do(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    assert read_state(tmp_path) == {}
    assert not is_finished(tmp_path)
