"""lmms-eval itself over drawn scenes, offline: from run.py and from its own command line."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("lmms_eval", reason="an extra: make setup-lmms, make test-lmms")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": tempfile.mkdtemp()}

from jobs import ROOT, command, job
from lmms_eval.models import get_model
from local_tasks import write_questions, write_tasks

from btp.runner.lmms_eval.task import LMMSEvalTask

LIMIT = 18
POCKET = ROOT / "btp" / "models" / "checkpoints" / "pocket_mini"
QUICK = ["cost.enabled=false", "overlays=2", "~pruner@controls.downsampled", "~pruner@controls.no_image"]
ARMS = {"unpruned", "btp", "random"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of tasks, and the samples that they hold."""
    path = tmp_path_factory.mktemp("local") / "tasks"
    return path, write_tasks(path, size=45)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Where all runs of this file go, so that they share answers."""
    return tmp_path_factory.mktemp("outputs")


def harness(output, folder, *words):
    """A run on local tasks."""
    return job(output, "task=lmms_eval", f"task.dataset.include_path={folder[0]}", *QUICK, f"limit={LIMIT}", *words)


@pytest.fixture(scope="module")
def finished(output, folder):
    """Generated answers, as a picture and a text and as chat turns, and choices, of three arms."""
    return harness(output, folder, "tasks=[scenes,scenes_chat,scenes_choice]")


@pytest.fixture(scope="module")
def frame(finished):
    return pd.read_parquet(finished / "samples.parquet")


@pytest.fixture(scope="module")
def metrics(finished):
    return {arm: found["all"] for arm, found in json.loads((finished / "run.json").read_text())["metrics"].items()}


def built(folder, *tasks, **settings):
    """Tasks without a run."""
    given = {"include_path": str(folder[0]), "num_fewshot": None, "prompts": None, "generation": None} | settings
    return LMMSEvalTask(list(tasks), **given)


def test_scores_are_those_of_our_own_task_on_the_same_questions(output, folder, frame, metrics):
    own = pd.read_parquet(job(output, *QUICK, f"limit={LIMIT}") / "samples.parquet")
    theirs = frame[frame["ability"] == "scenes"]
    assert len(own) == len(theirs) == LIMIT * len(ARMS)
    for arm in ARMS:
        one, other = (f[f["arm"] == arm].reset_index(drop=True) for f in (own, theirs))
        assert one["question"].tolist() == other["question"].tolist()
        assert one["prediction"].tolist() == other["prediction"].tolist()
        assert other["kl"].to_numpy() == pytest.approx(one["kl"].to_numpy(), abs=1e-4)
        assert other["tokens_avg"].tolist() == one["tokens_avg"].tolist()
        strict = ~one["ability"].isin(["describe", "number"])  # ours scores a list by its items, and joins digits
        assert one.loc[strict, "score"].tolist() == other.loc[strict, "score"].tolist()
        assert metrics[arm]["scenes exact_match"] == pytest.approx(other["score"].mean())


def test_pruned_answers_differ_from_unpruned_ones(frame):
    by_arm = frame.groupby("arm")
    assert set(frame["arm"]) == ARMS
    assert by_arm["tokens_avg"].mean()["unpruned"] == 144
    assert by_arm["tokens_avg"].mean()["btp"] == pytest.approx(0.22 * 144, abs=0.5)
    assert (by_arm["kl"].mean()[["btp", "random"]] > 0.01).all()
    assert by_arm["agreement"].mean()["unpruned"] == 1
    assert by_arm["agreement"].mean()["random"] < 1
    choice = frame[frame["ability"] == "scenes_choice"]
    assert set(choice["prediction"]) == {"yes", "no"}
    assert (choice[choice["arm"] != "unpruned"]["kl"] > 0).all()


def test_choices_are_scored_by_likelihood(finished, frame, metrics):
    """acc is right where the likelier choice is; the rows hold what lmms-eval was told."""
    choice = frame[frame["ability"] == "scenes_choice"]
    right = choice["prediction"] == choice["reference"]
    assert (choice["score"] == right).all()
    for arm in ARMS:
        assert metrics[arm]["scenes_choice acc"] == pytest.approx(right[choice["arm"] == arm].mean())
    rows = [json.loads(line) for file in rows_of(finished.parent) for line in file.read_text().splitlines()]
    told = [row for row in rows if row["sample"].startswith("scenes_choice")]
    assert all(len(row["responses"]) == 2 and all(loss > 0 for loss, _ in row["responses"]) for row in told)


def test_chat_turns_say_the_same_as_a_picture_and_a_text(frame):
    one, other = (frame[frame["ability"] == name].reset_index(drop=True) for name in ("scenes", "scenes_chat"))
    assert one["prediction"].tolist() == other["prediction"].tolist()


def test_the_run_folder_is_as_that_of_any_task(finished):
    state = json.loads((finished / "run.json").read_text())
    assert state["state"] == "finished"
    assert state["inert"]["identical"]
    assert len(pd.read_parquet(finished / "trace.parquet")) > 0
    page = (finished / "report.html").read_text()
    assert "scenes exact match" in page
    assert "scenes choice acc" in page
    assert len(list((finished / "pictures").glob("*.png"))) == 2


def rows_of(output):
    return sorted((output / ".store" / "answers").glob("*/rows-*.jsonl"))


def test_other_pruners_and_other_tasks_reuse_unpruned_answers(finished, output, folder):
    before = {file: file.read_text() for file in rows_of(output)}
    run = harness(output, folder, "pruner=attention", "tasks=[scenes,scenes_likely]")
    after = {file: file.read_text() for file in rows_of(output)}
    grown = [after[file][len(text) :] for file, text in before.items() if after[file] != text]
    assert all(after[file].startswith(text) for file, text in before.items())
    assert grown
    for text in grown:  # unpruned and random: only what no run had asked
        assert {json.loads(line)["sample"].rsplit("-", 1)[0] for line in text.splitlines()} == {"scenes_likely"}
    likely = pd.read_parquet(run / "samples.parquet").query("ability == 'scenes_likely'")
    assert (likely["score"] == (likely["prediction"] != "")).all()
    metrics = json.loads((run / "run.json").read_text())["metrics"]["unpruned"]["all"]
    assert metrics["scenes_likely loss"] > 0
    assert metrics["scenes_likely said"] == likely[likely["arm"] == "unpruned"]["score"].mean()


def test_a_killed_run_goes_on_and_computes_nothing_twice(finished, frame, folder, tmp_path):
    tasks = ["task=lmms_eval", "tasks=[scenes,scenes_chat,scenes_choice]", f"task.dataset.include_path={folder[0]}"]
    words = ["experiment=smoke", "logger=none", "trainer=cpu", "trainer.batch=3", f"output={tmp_path}"]
    process = command(*words, *QUICK, f"limit={LIMIT}", *tasks)
    deadline = time.time() + 150
    while process.poll() is None and time.time() < deadline:
        if sum(file.read_bytes().count(b"\n") for file in rows_of(tmp_path)) >= 50:
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.02)
    assert process.wait() == -signal.SIGKILL, process.stdout.read()
    process.stdout.close()
    saved = {file: file.read_bytes() for file in rows_of(tmp_path)}
    run = harness(tmp_path, folder, "trainer.batch=3", *tasks[1:2])
    for file, before in saved.items():
        assert file.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
        samples = [json.loads(line)["sample"] for line in file.read_text().splitlines()]
        assert len(samples) == len(set(samples))
    columns = ["arm", "sample", "prediction", "score", "tokens_avg"]
    pd.testing.assert_frame_equal(pd.read_parquet(run / "samples.parquet")[columns], frame[columns])


def test_a_group_is_its_tasks(folder):
    task = built(folder, "all_scenes")
    drawn = task.draw(3)
    assert [d.ability for d in drawn] == ["scenes"] * 3 + ["scenes_choice"] * 3
    assert drawn[0].reference == folder[1][0].reference
    assert drawn[3].reference in ("yes", "no")
    assert len(task) == 45 + len(built(folder, "scenes_choice"))


def test_wording_and_settings_can_be_chosen(folder):
    assert built(folder, "scenes_worded").draw(1)[0].question.endswith(" please")
    assert not built(folder, "scenes_worded", prompts="other").draw(1)[0].question.endswith(" please")
    assert built(folder, "scenes").draw(1)[0].until == ("\n",)
    assert built(folder, "scenes", generation={"max_new_tokens": 7}).draw(1)[0].max_new_tokens == 7
    greedy = {"do_sample": False, "temperature": 0}
    assert built(folder, "scenes_sampled", generation=greedy).draw(1)[0].max_new_tokens == 1024


def test_what_is_not_a_score_is_shown_as_agreement_with_the_target(folder):
    """A metric of counted letters is no share of right answers."""
    task = built(folder, "scenes_letters")
    drawn = task.draw(4)
    said = [drawn[0].reference, "something", drawn[2].reference, ""]
    rows = {d.id: {"prediction": text, "responses": [text]} for d, text in zip(drawn, said, strict=True)}
    judged = task.judge(rows)
    assert list(judged.scores.values()) == [1, 0, 1, 0]
    assert judged.metrics["scenes_letters letters"] == sum(map(len, said)) / 4


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("scene", "lmms-eval has no such task, nor has the folder"),
        ("scene", "Did you mean scenes"),
        ("scenes_rounds", "asks in several rounds (output_type generate_until_multi_round)"),
        ("scenes_sampled", "asks for answers by do_sample: True, temperature: 0.7"),
        ("scenes_film", "task scenes_film shows 'clip.mp4', but only pictures are passed on"),
        ("scenes_absent", "task scenes_absent cannot be loaded: Unable to find"),
        ("scenes_mutual", "without its prompt (metric acc_mutual_info)"),
        ("gqa", "task gqa cannot be loaded:"),
    ],
)
def test_what_cannot_be_asked_is_said(folder, task, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        built(folder, task).draw(2)


def test_a_metric_that_needs_all_documents_says_so(folder):
    task = built(folder, "scenes_pairs")
    drawn = task.draw(3)
    rows = {d.id: {"prediction": "x", "responses": ["x"]} for d in drawn}
    with pytest.raises(ValueError, match=r"lmms-eval cannot score these answers: pairs only\. .* set limit=null"):
        task.judge(rows)


def test_other_questions_at_the_same_path_are_another_run(output, tmp_path):
    local = (tmp_path / "tasks", write_tasks(tmp_path / "tasks", 9))
    words = ["pruner=none", "tasks=[scenes]"]
    first = harness(tmp_path, local, *words)
    assert harness(tmp_path, local, *words) == first
    write_questions(local[0], local[1][::-1])
    other = harness(tmp_path, local, *words)
    assert other != first
    frames = [pd.read_parquet(run / "samples.parquet") for run in (first, other)]
    assert frames[0]["question"].tolist() == frames[1]["question"].tolist()[::-1]


def test_the_plug_in_is_found_through_its_entry_point():
    assert get_model("btp").__name__ == "PrunedChat"
    assert get_model("btp", force_simple=True).__name__ == "Pruned"


def lmms_eval(folder, where, *words, **environment):
    """lmms-eval's own command line; returns its output, and its results where it wrote some."""
    settings = ["--include_path", str(folder[0]), "--batch_size", "4", "--device", "cpu", "--limit", str(LIMIT)]
    done = subprocess.run(
        [sys.executable, "-m", "lmms_eval", "eval", "--model", "btp", *settings, "--output_path", "out", *words],
        cwd=where,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    found = [json.loads(file.read_text()) for file in Path(where).glob("out/**/*results.json")]
    return done.stdout + done.stderr, found[0]["results"] if found else None


def test_their_command_line_scores_a_pruned_model_as_run_py_does(finished, folder, metrics, tmp_path):
    arguments = f"path={POCKET},pruner=btp,budget=0.22,model.dtype=float32"
    tasks = ["--tasks", "scenes,scenes_choice", "--force_simple"]
    out, results = lmms_eval(folder, tmp_path, "--model_args", arguments, *tasks)
    assert "of 144 visual tokens: llm.layer." in out
    assert results["scenes"]["exact_match,none"] == pytest.approx(metrics["btp"]["scenes exact_match"])
    assert results["scenes_choice"]["acc,none"] == pytest.approx(metrics["btp"]["scenes_choice acc"])


def test_their_command_line_with_chat_turns_and_no_pruner(finished, folder, metrics, tmp_path):
    arguments = f"path={POCKET},pruner=none,model.dtype=float32"
    out, results = lmms_eval(folder, tmp_path, "--model_args", arguments, "--tasks", "scenes_chat")
    assert "btp: unpruned answered 18 documents with 144.00 visual tokens" in out
    assert results["scenes_chat"]["exact_match,none"] == pytest.approx(metrics["unpruned"]["scenes_chat exact_match"])


def test_the_model_refuses_what_it_cannot_do(monkeypatch):
    model = get_model("btp", force_simple=True)
    with pytest.raises(ValueError, match="--batch_size is auto"):
        model(batch_size="auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"started as several processes.*trainer\.devices=N"):
        model()
