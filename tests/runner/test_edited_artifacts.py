"""Artifacts of a calibration or a search that were edited by hand: every message names the file and the key."""

import pytest
import yaml

from btp.runner.calibration import calibrate, vflowopt
from btp.runner.calibration.artifact import read_artifact

HEAD = {"identity": "a1", "model": {"name": "pocket", "checkpoint": "c0", "layers": 3}}
CALIBRATION = HEAD | {
    "curves": {"changed": [9, 5.5, 1], "attention": [0.5, 0.25, 0.1], "tau": 0.93, "samples": 8, "tokens": 144.0},
    "stages": [
        {"layer": 1, "site": "llm.layer.1", "keep": 40, "positions": "original", "phase": "prefill", "balance": 0.6},
        {"layer": 2, "site": "llm.layer.2", "keep": 0, "positions": "original", "phase": "prefill", "balance": 0.6},
    ],
}
SEARCH = HEAD | {
    "kind": "vflowopt",
    "method": {"t": 3.5, "m": 6, "alpha": -0.5},
    "schedule": [{"site": "llm.input", "keep": 0.3, "positions": "renumber"}, {"site": "llm.layer.2", "keep": "fit"}],
    "budget_tokens": 36.0,
    "total": 144,
}


def edited(whole, key, value):
    """A copy with another value under a dotted key; without it where the value is `...`."""
    whole = yaml.safe_load(yaml.safe_dump(whole))
    *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    node = whole
    for part in parents:
        node = node[part]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return whole


def use_calibration(path):
    return calibrate.named_stages(path, calibrate.read_artifact(path, "c0", 3), 3)


def use_search(path):
    found = read_artifact(path, "search", "pruner.search.artifact", vflowopt.SHAPE, "c0", "Search anew.")
    return vflowopt.checked(found, path, 3)


CALIBRATIONS = [
    ("identity", ..., "identity is missing; it takes a text"),
    ("model", "pocket", "model is 'pocket', not keys with values"),
    ("model.checkpoint", ..., r"model\.checkpoint is missing"),
    ("curves", [1, 2], r"curves is \[1, 2\], not keys with values"),
    ("curves.changed", "many", r"curves\.changed is 'many', not a list"),
    ("curves.changed.1", "many", r"curves\.changed\.1 is 'many', not a number of 0 or more"),
    ("curves.changed.1", float("nan"), r"curves\.changed\.1 is nan, not a number"),
    ("curves.attention.0", -1, r"curves\.attention\.0 is -1, not a number of 0 or more"),
    ("curves.attention", [0.5], r"curves\.attention has 1 layers, the model 3"),
    ("curves.tau", "0,93", r"curves\.tau is '0,93', not a number"),
    ("curves.samples", 0, r"curves\.samples is 0, not a whole number of 1 or more"),
    ("stages", None, "stages is null, as in the store"),
    ("stages", [], r"stages is \[\], not a list of stages"),
    ("stages", {"site": "llm.layer.1"}, "stages is .*, not a list of stages, or null"),
    ("stages.0", "llm.layer.1", r"stages\.0 is 'llm\.layer\.1', not keys with values"),
    ("stages.0.site", ..., r"stages\.0\.site is missing"),
    ("stages.0.site", "layer 1", r"schedule\.0\.site: 'layer 1' is not a site"),
    ("stages.0.site", "llm.layer.9", r"is llm\.layer\.9, but the llm tower has 3 layers|Sites must strictly increase"),
    ("stages.0.keep", [40], r"stages\.0\.keep is \[40\], not tokens, a share or fit"),
    ("stages.0.keep", "half", r"schedule\.0\.keep"),
    ("stages.0.positions", "kept", "positions is 'kept'"),
    ("stages.0.balance", "much", r"stages\.0\.balance is 'much', not a number"),
]


@pytest.mark.parametrize(("key", "value", "message"), CALIBRATIONS)
def test_an_edited_calibration_is_refused_by_file_and_key(tmp_path, key, value, message):
    path = tmp_path / "calibration.yaml"
    path.write_text(yaml.safe_dump(edited(CALIBRATION, key, value)))
    with pytest.raises(ValueError, match=rf"calibration\.yaml is broken: .*{message}"):
        use_calibration(path)


def test_a_whole_calibration_is_read(tmp_path):
    path = tmp_path / "calibration.yaml"
    path.write_text(yaml.safe_dump(CALIBRATION))
    assert [(stage["site"], stage["keep"]) for stage in use_calibration(path)] == [
        ("llm.layer.1", "fit"),
        ("llm.layer.2", 0),
    ]


SEARCHES = [
    ("method", ..., "method is missing"),
    ("method.t", ..., r"method\.t is missing"),
    ("method.t", "high", r"method\.t is 'high', not a number"),
    ("method.alpha", {"_target_": "pandas.read_pickle"}, r"method\.alpha is .*, not a number"),
    ("method._target_", "pandas.read_pickle", r"method\._target_ is .*, not one of its keys t, m, alpha"),
    ("schedule", [], r"schedule is \[\], not a list of 1 or more"),
    ("schedule.0.keep", 1.5, r"schedule\.0\.keep is 1\.5, not a share or fit"),
    ("schedule.0.site", "vision", r"schedule\.0\.site: 'vision' is not a site"),
    ("schedule.1.site", "llm.layer.7", r"schedule\.1\.site is llm\.layer\.7, but the llm tower has 3 layers"),
    ("budget_tokens", "36", "budget_tokens is '36', not a number"),
    ("total", 0, "total is 0, not a whole number of 1 or more"),
]


@pytest.mark.parametrize(("key", "value", "message"), SEARCHES)
def test_an_edited_search_is_refused_by_file_and_key(tmp_path, key, value, message):
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(edited(SEARCH, key, value)))
    with pytest.raises(ValueError, match=rf"the search artifact .*search\.yaml is broken: .*{message}"):
        use_search(path)


@pytest.mark.parametrize("text", ["", "[" * 5000, "a: [", "3", "a: &a [*a]", "identity: 2026-99-99"])
def test_what_is_no_artifact_names_the_file_and_what_to_do(tmp_path, text):
    path = tmp_path / "calibration.yaml"
    path.write_text(text)
    message = r"the calibration artifact .*/calibration\.yaml .*Set calibration\.artifact=null"
    with pytest.raises(ValueError, match=message):
        use_calibration(path)
