"""The commands of the cost report, on the embedded model."""

import csv
import io
import json
import sys
from dataclasses import replace

import pytest
import tiny
import torch

from btp.core.schedule import Schedule
from btp.measure.architecture import architecture
from btp.runner.evaluation.cost import segments_of
from experiments.cost import breakeven, measure
from experiments.cost.arms import STAGES, all_pruners, composed, make_arm, named, planned
from experiments.cost.outline import outline

ROUNDS = ["--repeats", "1", "--warmup", "0", "--output", "2", "--words", "8", "--batch", "2", "--device", "cpu"]


def run(monkeypatch, command, *words):
    """A command's exit code."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
    return command.main()


@pytest.fixture(scope="module")
def pocket():
    """The embedded model's outline."""
    return outline(composed("model=pocket_mini")["model"], 8)


@pytest.fixture(scope="module")
def measured_file(tmp_path_factory):
    """FastV measured; VTW refused, since there is no such layer."""
    out = tmp_path_factory.mktemp("cost") / "pocket_mini"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, measure, "--model", "pocket_mini", "--pruner", "fastv", *ROUNDS, "--out", out) == 0
        refused = ["--model", "pocket_mini", "--pruner", "vtw", "--override", "pruner.layer=99"]
        assert run(patch, measure, *refused, *ROUNDS, "--out", out) == 0
    return out


def test_measured(measured_file):
    """Every convention under its name; what is computed is what was counted, for both sides."""
    first, second = json.loads(measured_file.with_suffix(".json").read_text())["cells"].values()
    assert (first["pruner"], first["batch"], first["visual"], first["words"]) == ("fastv", 2, 144, 8)
    for side in (first["costs"], first["unpruned"]):
        assert side["flops_prefill"] == side["flops_prefill_measured"]
        assert side["kv_mib"] == side["kv_mib_measured"] > 0
        assert side["peak_memory_mib"] is None
        assert side["prefill_peak_mib"] > side["kv_mib"]
        assert all(
            side[name]["p10"] <= side[name]["median"] <= side[name]["p90"] for name in ("vision_ms", "prefill_ms")
        )
    assert first["costs"]["tokens_avg"] == pytest.approx(0.22 * 144, abs=0.5)
    assert "llm.layer.99" in second["refused"]


def test_tables(measured_file):
    """CSV has a line for each method, Markdown both tables and the refusal."""
    fastv, vtw = csv.DictReader(io.StringIO(measured_file.with_suffix(".csv").read_text()))
    promised = float(fastv["unpruned_flops_prefill"]) / float(fastv["pruned_flops_prefill"])
    assert float(fastv["promised"]) == pytest.approx(promised)
    assert float(fastv["reached_of_promised"]) == pytest.approx(float(fastv["prefill_speedup"]) / promised)
    assert vtw["refused"]
    assert not vtw["pruned_tokens_avg"]
    text = measured_file.with_suffix(".md").read_text()
    assert "**pocket_mini, batch 2, budget 0.22**: 144 visual and 8 text tokens" in text
    assert text.count("| fastv |") == 2
    assert "not measured |" in text
    assert "`vtw` does not apply:" in text


def test_nothing_is_measured_twice(measured_file, monkeypatch):
    """The same command again only writes its tables; other rounds are another measurement."""
    before = measured_file.with_suffix(".json").read_text()
    monkeypatch.setattr(measure, "Turns", lambda *_, **__: pytest.fail("measured again"))
    words = ["--model", "pocket_mini", "--pruner", "fastv", *ROUNDS, "--out", measured_file]
    run(monkeypatch, measure, *words)
    assert json.loads(before)["cells"] == json.loads(measured_file.with_suffix(".json").read_text())["cells"]
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        run(monkeypatch, measure, *words, "--repeats", "2")


def test_break_even_of_what_was_measured(measured_file, tmp_path, monkeypatch, capsys):
    """Phases, whole answer, the interval of output tokens; what is not in the file is refused."""
    found = json.loads(measured_file.with_suffix(".json").read_text())
    cell = next(iter(found["cells"].values()))
    for side in ("costs", "unpruned"):  # a single round can make a difference of two times negative
        cell[side]["per_token_ms"] = {"median": 2}
    file = tmp_path / "positive.json"
    file.write_text(json.dumps(found))
    words = ["--model", "pocket_mini", "--costs", file, "--batch", "2"]
    assert run(monkeypatch, breakeven, *words) == 0
    said = capsys.readouterr().out
    assert "pocket_mini, fastv, measured" in said
    assert "| 20 output tokens |" in said
    assert "Faster at all: " in said
    assert run(monkeypatch, breakeven, *words, "--pruner", "dart") == 1
    assert "holds no costs of pocket_mini dart batch 2, but of: pocket_mini fastv batch 2" in capsys.readouterr().err


def test_break_even_of_a_run(tmp_path, monkeypatch, capsys):
    """A cost.json of run.py holds arms by name."""
    arm = {"prefill_ms": {"median": 10}, "per_token_ms": {"median": 2}, "tokens_avg": 5, "batch": 1}
    pruned = arm | {"prefill_ms": {"median": 5}, "per_token_ms": {"median": 3}}
    file = tmp_path / "cost.json"
    file.write_text(json.dumps({"hardware": "x", "unpruned": arm, "fastv": pruned}))
    assert run(monkeypatch, breakeven, "--costs", file, "--worth", "1") == 0
    assert "Faster at all: from 1 to 6 output tokens." in capsys.readouterr().out
    assert run(monkeypatch, breakeven, "--costs", file, "--pruner", "dart") == 1
    assert "holds no costs of dart, but of unpruned, fastv" in capsys.readouterr().err


def test_break_even_of_a_device(monkeypatch, capsys):
    """A device of one's own; a name alone is not enough."""
    words = ["--model", "pocket_mini", "--device", "toaster", "--flops", "1e9", "--bandwidth", "1e9"]
    assert run(monkeypatch, breakeven, *words) == 0
    said = capsys.readouterr().out
    assert "toaster: 0.001 TFLOP/s, 1 GB/s (the command line), 100% of it reached." in said
    assert "144 visual tokens" in said
    assert "Text tokens of the prompt: pays up to " in said
    assert "Prompts in a batch: " in said
    assert run(monkeypatch, breakeven, "--device", "toaster") == 1
    assert "--device is toaster, which devices.yaml does not have (a100, " in capsys.readouterr().err


def test_tiles_count_one_by_one():
    """Two prompts of five tiles are ten pictures to the tower; without a tower nothing is computed."""
    sizes = architecture(tiny.llava().config)
    assert segments_of(sizes, {"pixel_values": torch.ones(2, 5, 3, 42, 42)}) == [[10] * 10] * 2
    assert segments_of(sizes, {"pixel_values": torch.ones(2, 3, 42, 42)}) == [[10] * 2] * 2
    assert segments_of(replace(sizes, vision=None), {}) == ()


def test_planned_tokens(pocket):
    """Layer by layer what the schedule says, whose mean is the schedule's own."""
    schedule = Schedule.from_config([{"site": "llm.layer.2", "keep": 30}, {"site": "llm.layer.5", "keep": 0}])
    assert planned(schedule, 144, 8) == [144, 144, 30, 30, 30, 0, 0, 0]
    assert sum(planned(schedule, 144, 8)) / 8 == schedule.tokens_avg(144, 8)
    assert planned(Schedule.from_config([{"site": "vision.output", "keep": 9}]), 144, 2) == [9, 9]
    arm = make_arm(composed("model=pocket_mini", "pruner=btp"), pocket.host, pocket.visual)
    assert len(arm.schedule) == len(STAGES)
    assert arm.schedule[0].settings == {"balance": 0.6}
    assert arm.reached == pytest.approx(0.22 * 144, abs=0.5)


@pytest.mark.long
def test_every_pruner_has_stages_or_a_reason(pocket):
    """On the embedded model all apply."""
    for name in all_pruners():
        assert make_arm(composed("model=pocket_mini", f"pruner={name}"), pocket.host, pocket.visual).schedule


def test_names():
    """All of them, some, and one that is not there."""
    assert named(["fastv", "btp"]) == ["fastv", "btp"]
    assert {"fastv", "random", "fastervlm_btp"} <= set(named(["all"]))
    assert "none" not in named(["all"])
    with pytest.raises(ValueError, match=r"--pruner is fastvv, and there is no such method\. Choose from: all, aim"):
        named(["fastvv"])
