"""The main job from end to end on the embedded model: results, resumption, identity."""

import json
import math
import os
import re
import signal
import time

import pandas as pd
import pytest
import yaml
from hydra.utils import instantiate
from jobs import ROOT, Noted, composed, job, typed

from btp.runner.evaluation.answer_store import Answers
from btp.runner.run import handle

SHORT = "calibration.samples=16"
ARMS = ["unpruned", "btp", "random", "downsampled", "no_image"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the default job, small."""
    output = tmp_path_factory.mktemp("outputs")
    return output, job(output, SHORT)


def test_the_folder_holds_what_design_promises(finished):
    _, run = finished
    state = json.loads((run / "run.json").read_text())
    assert state["state"] == "finished"
    assert [a["arm"] for a in state["arms"]] == ARMS
    assert state["versions"]["torch"]
    for name in ("config.yaml", "samples.parquet", "trace.parquet", "layers.json", "cost.json", "calibration.yaml"):
        assert (run / name).stat().st_size > 0
    assert len(list((run / "overlays").glob("*.png"))) >= 4
    assert len(list((run / "figures").glob("*.png"))) >= 3
    assert (run / "report.html").read_text().count("data:image/png") > 3


QUICK = ["model=pocket_mini", "cost.enabled=false", "overlays=0", "limit=9", "pruner=none"]


@pytest.mark.long
def test_a_report_that_is_missing_or_cut_is_drawn_from_what_is_there(tmp_path, monkeypatch, capsys):
    """Nothing is loaded for it, and nothing computed."""
    run = job(tmp_path, *QUICK)
    report = run / "report.html"
    before = report.read_text()
    assert 'class="state finished"' in before
    monkeypatch.setattr("btp.runner.run.load", None)
    for rest in (None, len(before) // 2):
        report.unlink() if rest is None else report.write_text(before[:rest])
        capsys.readouterr()
        assert job(tmp_path, *QUICK) == run
        assert "finished but for its report" in capsys.readouterr().out
        assert report.read_text() == before


@pytest.mark.long
def test_a_run_is_finished_once_its_report_is_there(tmp_path, monkeypatch):
    """A kill or a full disk while the report is written costs the report alone; the state comes last."""
    seen = []

    def full(folder, facts=None):
        seen.append(json.loads((folder / "run.json").read_text())["state"])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("btp.runner.run.write_report", full)
    request = tmp_path / "request.json"
    quick = ["experiment=smoke", "trainer=cpu", "logger=none", f"output={tmp_path / 'out'}"]
    request.write_text(json.dumps(composed(*quick, *QUICK)))
    outcome = handle(request)
    assert seen == ["running"]
    assert outcome.code == 1
    assert re.search(r"the disk is full, and \S+ has [\d,]+ bytes free", outcome.reason)
    monkeypatch.undo()
    run = job(tmp_path / "out", *QUICK)
    assert json.loads((run / "run.json").read_text())["state"] == "finished"


def test_the_notebook_reads_it(finished, monkeypatch):
    output, _ = finished
    monkeypatch.chdir(output.parent)
    (output.parent / "outputs").symlink_to(output)
    cells = json.loads((ROOT / "notebooks" / "01_first_look.ipynb").read_text())["cells"]
    space = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), space)
    assert set(space["run"].samples["arm"]) == set(ARMS)
    assert (space["broken"]["score"] < 1).all()


def test_every_arm_answers_every_sample_once_and_meets_the_budget(finished):
    _, run = finished
    frame = pd.read_parquet(run / "samples.parquet")
    assert frame.groupby("arm")["sample"].nunique().to_dict() == dict.fromkeys(ARMS, 18)
    tokens = frame.groupby("arm")["tokens_avg"].mean()
    assert tokens["unpruned"] == 144
    assert tokens["no_image"] == 0
    for arm in ("btp", "random", "downsampled"):
        assert tokens[arm] == pytest.approx(0.22 * 144, abs=0.5)
    unpruned = frame[frame["arm"] == "unpruned"]
    assert unpruned["agreement"].all()
    assert (unpruned["kl"] == 0).all()
    assert (frame[frame["arm"] == "no_image"]["kl"] > 0).any()


def test_the_engine_did_what_was_planned(finished):
    _, run = finished
    trace = pd.read_parquet(run / "trace.parquet")
    arms = {a["arm"]: a for a in json.loads((run / "run.json").read_text())["arms"]}
    for arm in ("btp", "random"):
        for stage in arms[arm]["schedule"]:
            ran = trace[(trace["arm"] == arm) & (trace["site"] == stage["site"])]
            assert (ran["after"] == stage["keep"]).all()
            assert (ran["kept"].map(len) == ran["after"]).all()
    assert len(arms["btp"]["schedule"]) == 3
    state = json.loads((run / "run.json").read_text())
    assert state["inert"]["identical"]
    assert state["inert"]["max_logit_difference"] == 0


def test_costs_are_measured_beside_the_formula(finished):
    _, run = finished
    costs = json.loads((run / "cost.json").read_text())
    for arm in ("unpruned", "btp"):
        assert costs[arm]["flops_prefill"] == pytest.approx(costs[arm]["flops_prefill_measured"], rel=0.01)
    assert costs["btp"]["kv_mib"] == pytest.approx(costs["btp"]["kv_mib_measured"])
    assert costs["btp"]["kv_mib"] < costs["unpruned"]["kv_mib"]
    assert costs["btp"]["selection_ms"]["median"] > 0
    assert costs["btp"]["prefill_ratio"]["median"] > 0


@pytest.mark.long
def test_the_calibration_is_found_again_and_says_where_it_comes_from(finished, tmp_path):
    output, run = finished
    artifact = yaml.safe_load((run / "calibration.yaml").read_text())
    assert artifact["curves"]["samples"] == 16
    assert len(artifact["curves"]["changed"]) == artifact["model"]["layers"]
    assert [s["keep"] for s in artifact["stages"]] == sorted((s["keep"] for s in artifact["stages"]), reverse=True)
    (store,) = (output / ".store" / "calibration").glob("*.yaml")
    before = store.stat().st_mtime_ns
    alone = ["cost.enabled=false", "overlays=0", "limit=9", "~pruner@controls.random", "~pruner@controls.downsampled"]
    other = job(output, SHORT, "stages=2", *alone)
    assert store.stat().st_mtime_ns == before
    assert len(yaml.safe_load((other / "calibration.yaml").read_text())["stages"]) == 2
    named = job(tmp_path, f"calibration.artifact={run / 'calibration.yaml'}", *alone)
    sites = [s["site"] for s in yaml.safe_load((named / "calibration.yaml").read_text())["stages"]]
    assert sites == [s["site"] for s in artifact["stages"]]


def test_a_finished_run_is_recognised(finished, capsys):
    output, run = finished
    before = (run / "samples.parquet").stat().st_mtime_ns
    assert job(output, SHORT) == run
    assert "this run is finished" in capsys.readouterr().out
    assert (run / "samples.parquet").stat().st_mtime_ns == before


def stamps(folder):
    """When each file below a folder was written."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"}


@pytest.mark.long
def test_what_runs_share_is_computed_once(finished):
    """Unpruned answers, controls and their costs, the calibration, pictures behind the tower: for every pruner."""
    output, first = finished
    before = stamps(output / ".store")
    run = job(output, SHORT, "pruner=attention")
    frame = pd.read_parquet(run / "samples.parquet")
    assert set(frame["arm"]) == {"unpruned", "attention", "random", "downsampled", "no_image"}
    after = stamps(output / ".store")
    assert {p: after[p] for p in before} == before
    new = {p.relative_to(output / ".store").parts[0] for p in after.keys() - before.keys()}
    assert new == {"answers"}
    assert sum(p.name == "rows-0.jsonl" for p in after.keys() - before.keys()) == 1
    costs = [json.loads((r / "cost.json").read_text()) for r in (first, run)]
    assert costs[0]["random"] == costs[1]["random"]
    assert costs[0]["btp"]["prefill_ms"] != costs[1]["attention"]["prefill_ms"]


@pytest.mark.slow
def test_a_control_is_measured_again_where_asked(finished):
    """resume=false takes nothing from the store."""
    output, first = finished
    again = ["resume=false", "limit=9", "overlays=3", SHORT, "~pruner@controls.downsampled"]
    run = job(output, "pruner=attention", *again)
    costs = [json.loads((r / "cost.json").read_text()) for r in (first, run)]
    assert costs[0]["no_image"]["prefill_ms"] != costs[1]["no_image"]["prefill_ms"]


@pytest.mark.slow
def test_answers_do_not_depend_on_kept_pictures(finished, tmp_path):
    """Pictures behind tower and projector are the same from the store as from the model: every word, every nat."""
    output, run = finished
    (features,) = (output / ".store" / "features").iterdir()
    assert len(list(features.glob("*.npy"))) == 18
    found = f"calibration.artifact={run / 'calibration.yaml'}"
    plain = job(tmp_path, "cache=false", "cost.enabled=false", "overlays=0", found, "~pruner@controls.downsampled")
    assert not (tmp_path / ".store" / "features").exists()
    columns = ["arm", "sample", "prediction", "score", "kl", "tokens_avg"]
    frames = [pd.read_parquet(r / "samples.parquet")[columns] for r in (run, plain)]
    there = frames[0][frames[0]["arm"] != "downsampled"].reset_index(drop=True)
    pd.testing.assert_frame_equal(there, frames[1])


def test_the_budget_is_on_record(finished):
    """For the method and for every arm: what was asked, and what happened."""
    _, run = finished
    state = json.loads((run / "run.json").read_text())
    frame = pd.read_parquet(run / "samples.parquet")
    assert state["budget"]["asked"] == pytest.approx(0.22 * 144)
    for arm in state["arms"]:
        happened = frame[frame["arm"] == arm["arm"]]["tokens_avg"].mean()
        assert arm["budget"]["reached"] == pytest.approx(happened, abs=1e-3)
    asked = {arm["arm"]: arm["budget"]["asked"] for arm in state["arms"]}
    assert asked["unpruned"] is asked["no_image"] is None
    assert asked["random"] == asked["downsampled"] == state["budget"]["reached"]


@pytest.mark.slow
def test_answers_do_not_depend_on_the_batch(finished, tmp_path):
    _, run = finished
    found = f"calibration.artifact={run / 'calibration.yaml'}"
    alone = job(tmp_path, "trainer.batch=1", "cost.enabled=false", "overlays=0", "limit=9", found)
    both = [pd.read_parquet(r / "samples.parquet").set_index(["arm", "sample"]) for r in (run, alone)]
    shared = both[1].index
    assert (both[0].loc[shared, "prediction"] == both[1]["prediction"]).all()


@pytest.mark.slow
def test_the_oracle_is_told_what_matters(finished):
    output, _ = finished
    run = job(output, SHORT, "pruner=oracle", "budget.share=0.5", "cost.enabled=false", "overlays=0")
    trace = pd.read_parquet(run / "trace.parquet")
    task = instantiate(composed()["task"]["dataset"])
    digits = [s for s in (task[i] for i in range(18)) if s.ability == "digit"]
    assert digits
    for sample in digits:
        stages = trace[(trace["arm"] == "oracle") & (trace["sample"] == sample.id)]
        assert len(stages) == 3
        ((x0, y0, x1, y1),) = sample.targets
        rows = range(int(y0 * 12), math.ceil(y1 * 12))
        target = {row * 12 + column for row in rows for column in range(int(x0 * 12), math.ceil(x1 * 12))}
        assert (stages["after"] >= len(target)).any()
        for kept in stages["kept"]:
            assert target <= set(kept) if len(kept) >= len(target) else set(kept) <= target


@pytest.mark.long
def test_a_killed_run_goes_on_and_ends_in_the_same_table(finished, tmp_path):
    _, undisturbed = finished
    words = ["experiment=smoke", "logger=none", "trainer=cpu", "trainer.batch=2", f"output={tmp_path}"]
    words += ["cost.enabled=false", f"calibration.artifact={undisturbed / 'calibration.yaml'}"]
    kills = 0
    for wanted in (4, 26, 60):
        process = Noted(words)
        deadline = time.time() + 240
        while process.poll() is None and time.time() < deadline:
            if sum(f.read_bytes().count(b"\n") for f in tmp_path.glob(".store/answers/*/rows-0.jsonl")) >= wanted:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.02)
        process.wait()
    assert kills == 3
    saved = {f: f.read_bytes() for f in tmp_path.glob(".store/answers/*/rows-0.jsonl")}
    run = job(tmp_path, *words[3:])
    for file, before in saved.items():
        whole = before[: before.rfind(b"\n") + 1]
        assert file.read_bytes().startswith(whole)
        samples = [json.loads(line)["sample"] for line in file.read_text().splitlines()]
        assert len(samples) == len(set(samples)) == 18
    columns = ["arm", "sample", "prediction", "score", "tokens_avg"]
    tables = [pd.read_parquet(r / "samples.parquet")[columns] for r in (undisturbed, run)]
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.long
def test_resume_false_computes_anew(tmp_path):
    first = job(tmp_path, *QUICK)
    answers = next((tmp_path / ".store" / "answers").iterdir())
    rows = Answers(answers if answers.is_dir() else answers.with_suffix("")).rows()
    stamp = (first / "samples.parquet").stat().st_mtime_ns
    assert job(tmp_path, *QUICK, "resume=false") == first
    assert (first / "samples.parquet").stat().st_mtime_ns > stamp
    assert len(rows) == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stages=9"], "stages is 9, but 8 layers have room for"),
        (["budget.share=0.05"], "cannot be met"),
        (["model.path=nowhere"], "model.path is nowhere, but there is no such folder"),
        (["pruner=withdraw", "pruner.layer=12"], "schedule.0.site is llm.layer.12, but the llm tower has 8 layers"),
        (["schedule=paper"], "has no published schedule for model 'pocket_mini'"),
        (["pruner=pdrop", "pruner.schedule.1.keep=100", "pruner.schedule.0.keep=50"], "more than are alive"),
        (["pruner=fastv", "pruner.schedule.0.site=vision.output"], "schedule.0.site is vision.output"),
        (["pruner=withdraw", "pruner.layer=search"], "pruner 'withdraw' has no search"),
    ],
)
def test_errors_are_one_message(words, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        job(tmp_path, *words)


@pytest.mark.long
def test_the_command_line_ends_with_code_1_and_no_traceback(tmp_path):
    code, out = typed("experiment=smoke", "logger=none", "stages=9", f"output={tmp_path}")
    assert code == 1
    assert "error: stages is 9" in out
    assert "Traceback" not in out
    assert not list(tmp_path.glob("[!.]*")), "a run that was refused leaves nothing but what runs share"


@pytest.mark.long
def test_what_an_earlier_start_left_outlives_a_refusal(tmp_path, monkeypatch):
    """A finished run that is asked for anew, on a device that has become too small, is still there."""
    words = ["cost.enabled=false", "overlays=0", "limit=9", "pruner=random", SHORT]
    run = job(tmp_path, *words)

    def full(*arguments):
        raise ValueError("no room")

    monkeypatch.setattr("btp.runner.run.load", full)
    with pytest.raises(ValueError, match="no room"):
        job(tmp_path, *words, "resume=false")
    assert (run / "samples.parquet").is_file()
    with pytest.raises(ValueError, match="no room"):
        job(tmp_path, *words, "limit=8")
    assert [path.name for path in tmp_path.glob("pocket_mini-*")] == [run.name]


@pytest.mark.long
def test_a_run_that_fails_half_way_names_its_log(tmp_path, monkeypatch, capsys):
    """What was answered is kept, and the traceback is found."""

    def broken(*arguments):
        raise ValueError("broken half way")

    monkeypatch.setattr("btp.runner.evaluation.ways.generate.check_inert", broken)
    request = tmp_path / "request.json"
    quick = ["experiment=smoke", "trainer=cpu", "logger=none", "cost.enabled=false", "limit=9", "pruner=random"]
    request.write_text(json.dumps(composed(*quick, f"output={tmp_path / 'out'}")))
    assert handle(request).code == 1
    (log,) = (tmp_path / "out").glob("*/error.log")
    assert f"error: broken half way\n  ({log} says where)\n" in capsys.readouterr().err
    assert "Traceback" in log.read_text()
    assert json.loads((log.parent / "run.json").read_text())["state"] == "failed"


SMOKE = ["experiment=smoke", "logger=none", "trainer=cpu", "cost.enabled=false", "limit=9", "overlays=0", SHORT]


@pytest.mark.slow
def test_a_sweep_goes_on_behind_a_failed_cell(tmp_path):
    """One process, one comparison, and the cells are the runs that they would be alone."""
    code, out = typed("-m", *SMOKE, f"output={tmp_path}", "stages=9,1")
    assert code == 1
    assert "1 run(s) did not finish" in out
    assert "Traceback" not in out
    (run,) = tmp_path.glob("pocket_mini-*")
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    (error,) = re.findall(r"error: (stages is 9, .*)", out)
    assert out.count(error) == 1  # in full where it happened, and only its first sentence below
    assert error.split(". ")[0] in " ".join(out.split("did not finish")[1].split())
    (page,) = (tmp_path / "multirun").glob("*/*.html")
    assert "stages is 9" in page.read_text()
    assert str(page) in out
    assert job(tmp_path, *SMOKE[3:], "stages=1") == run


@pytest.mark.slow
def test_a_sweep_whose_budgets_are_out_of_reach_has_not_failed(tmp_path):
    """Compositions are cells too; a budget that a method cannot meet is a result of the sweep."""
    words = ["pruner=fastv,[fastervlm,btp]", "budget.share=0.1", "~pruner@controls.random"]
    code, out = typed("-m", *SMOKE, f"output={tmp_path}", *words)
    assert code == 0, out
    assert "The nearest is 18.88" in out
    (run,) = tmp_path.glob("pocket_mini-fastervlm_btp-*")
    state = json.loads((run / "run.json").read_text())
    assert "pruner=[fastervlm,btp]" in state["command"]
    assert state["budget"]["reached"] == pytest.approx(14.4, abs=0.5)
