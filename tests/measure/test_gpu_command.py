"""python -m experiments.gpu: a start takes every step as far as it goes without a GPU, and the next one goes on."""

import json
import sys

import pytest
import torch

from experiments.gpu import __main__ as command
from experiments.gpu.document import counts, markdown
from experiments.gpu.setting import LeftOut


def start(monkeypatch, out, *words):
    """Its exit code, the JSON's content and the Markdown."""
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--tiny", "--out", str(out), *words])
    code = command.main()
    return code, json.loads((out / "gpu.json").read_text()), (out / "gpu.md").read_text()


@pytest.mark.slow
def test_every_step_without_a_gpu(tmp_path, monkeypatch):
    """Each comes to figures that hold, but for what a package is missing for."""
    code, found, text = start(monkeypatch, tmp_path)
    assert code == 0, text
    assert list(found["steps"]) == list(command.STEPS)
    for step, cells in found["steps"].items():
        outcome = counts(cells)
        assert outcome["failed"] == outcome["did not hold"] == 0
        assert outcome["held"] or step == "quantized"
        assert all("is not installed" in cell["left_out"] for cell in cells.values() if "left_out" in cell)
    oracle = found["steps"]["oracle"]["llava, sdpa, bfloat16"]
    assert 0 < oracle["error"] <= 3 * oracle["rounding"] < oracle["effect"]
    assert found["steps"]["choices"]["btp"]["same"] == 1
    assert found["steps"]["costs"]["pocket_mini, btp"]["costs"]["prefill_ms"]
    assert "| btp |" in text


def test_the_next_start_goes_on(tmp_path, monkeypatch):
    """What is known is not tried again, what was left out is."""
    _, first, _ = start(monkeypatch, tmp_path, "--step", "picks")
    monkeypatch.setattr(command, "tried", lambda measure: pytest.fail("tried again"))
    code, second, _ = start(monkeypatch, tmp_path, "--step", "picks")
    assert code == 0
    assert first["steps"] == second["steps"]
    (case,) = first["steps"]["picks"]
    first["steps"]["picks"][case] = {"left_out": "for a reason"}
    command.write(tmp_path, first)
    with pytest.raises(pytest.fail.Exception, match="tried again"):
        start(monkeypatch, tmp_path, "--step", "picks")
    with pytest.raises(pytest.fail.Exception, match="tried again"):
        start(monkeypatch, tmp_path, "--step", "picks", "--again")


def test_when_the_time_is_over(tmp_path, monkeypatch):
    """No case is begun, and the file says so."""
    code, found, text = start(monkeypatch, tmp_path, "--step", "picks", "--minutes", "-1")
    assert code == 0
    assert all("start again" in cell["left_out"] for cell in found["steps"]["picks"].values())
    assert "| picks | 0 | 0 | 0 | 1 |" in text


def test_an_error_costs_its_case(tmp_path, monkeypatch):
    """It is written down, and the next case goes on; the exit code says that something failed."""

    def refuse():
        raise LeftOut("needs\na thing")

    def cells(setting):
        yield "bad", lambda: 1 / 0
        yield "wrong", lambda: {"holds": False, "error": 0.5}
        yield "absent", refuse
        yield "good", lambda: {"holds": True, "error": 0.25, "memory": None}

    monkeypatch.setitem(command.STEPS, "oracle", cells)
    code, found, text = start(monkeypatch, tmp_path, "--step", "oracle")
    assert code == 1
    assert counts(found["steps"]["oracle"]) == {"held": 1, "did not hold": 1, "failed": 1, "left out": 1}
    assert "| bad | failed: ZeroDivisionError: division by zero | | |" in text
    assert "| wrong | did not hold | 0.5 | - |" in text
    assert "| absent | left out: needs a thing | | |" in text


def test_a_method_that_fails_does_not_take_the_others_along(tmp_path, monkeypatch):
    """The model is built anew behind it, and what an earlier start measured is not asked for."""
    from experiments.gpu import costs
    from experiments.gpu.setting import Setting

    asked = []

    def measured(args, model, device, known):
        asked.append(args.pruner)
        for pruner in args.pruner:
            if pruner == "bad":
                raise RuntimeError("out of memory")
            yield {"pruner": pruner}

    monkeypatch.setattr(costs.measure, "cells", measured)
    monkeypatch.setattr(costs, "SMALL", {"pocket_mini": ("known", "one", "bad", "two", "three")})
    setting = Setting(torch.device("cpu"), True, tmp_path)
    made = {name: command.tried(measure) for name, measure in costs.cells(setting, {"pocket_mini, known"})}
    assert [found.get("pruner") for found in made.values()] == ["one", None, "two", "three"]
    assert made["pocket_mini, bad"] == {"failed": "RuntimeError: out of memory"}
    assert asked == [["one", "bad", "two", "three"], ["two", "three"]]


def test_a_cost_that_could_not_be_measured():
    """Stands in the file with its reason, also where nothing else was measured."""
    found = {
        "command": "x",
        "seconds": 60.0,
        "machine": {"gpus": []},
        "steps": {"costs": {"m, p": {"failed": "E: no"}}},
    }
    assert "m, p: failed: E: no" in markdown(found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("words", "message"),
    [([], "--device cpu --tiny"), (["--device", "cpu"], "Add --tiny"), (["--step", "x"], "oracle")],
)
def test_messages(monkeypatch, capsys, words, message):
    """Without a GPU it says what can be done."""
    monkeypatch.setattr(sys, "argv", ["gpu", *words])
    with pytest.raises(SystemExit):
        command.main()
    assert message in capsys.readouterr().err
