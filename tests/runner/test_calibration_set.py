"""Which pictures a run's stages come from, and how a prompt is shown."""

import pytest
import yaml
from jobs import composed

from btp.models.embedded.pocket import build_processor
from btp.runner.calibration.artifact import write_artifact
from btp.runner.calibration.calibration_set import calibration_set
from btp.runner.evaluation.prompts.shown_prompt import shown_prompt
from btp.tasks.pocketvqa.questions import words


def found(folder, task, *words, file="calibration.yaml", **more):
    """Of a run of a task whose artifact was made with the calibration group of these words."""
    made = {"calibration": composed(*words)["calibration"], **more}
    write_artifact(folder / file, made)
    return calibration_set(folder, composed(*task)["task"])


def test_the_tasks_own_set_is_called_own(tmp_path):
    said = found(tmp_path, [], curves={"samples": 64})
    assert said == {
        "name": "pocketvqa",
        "samples": 64,
        "own": True,
        "said": "Stages were calibrated on 64 samples of pocketvqa.",
    }


@pytest.mark.parametrize("task", ["vqa_folder", "gqa", "lmms_eval"])
def test_another_set_is_said_with_what_to_do(tmp_path, task):
    said = found(tmp_path, [f"task={task}", *(["tasks=[gqa]"] if task == "lmms_eval" else [])], curves={"samples": 9})
    assert said["own"] is False
    assert said["said"] == (
        f"Stages were calibrated on 9 samples of pocketvqa, not on {task}'s own pictures: "
        "calibration=folder calibration.path=FOLDER takes yours."
    )


def test_a_set_that_was_named_is_said_without_advice(tmp_path):
    said = found(tmp_path, ["task=vqa_folder"], "calibration=folder", "calibration.path=/data/mine")
    assert said["said"] == (
        "Stages were calibrated on 64 samples of folder (/data/mine), not on vqa_folder's own pictures."
    )


def test_an_artifact_counts_by_what_it_was_made_with(tmp_path):
    """A search's artifact, of another run whose calibration set had no class on record."""
    (tmp_path / "search.yaml").write_text(yaml.safe_dump({"calibration": {"name": "gqa", "samples": 30}}))
    assert calibration_set(tmp_path, composed()["task"])["said"].startswith("Stages were searched on 30 samples of gqa")
    (tmp_path / "search.yaml").write_text(yaml.safe_dump({"calibration": {"name": "pocketvqa"}}))
    assert calibration_set(tmp_path, composed()["task"])["own"]


@pytest.mark.parametrize("made", [None, {}, {"calibration": None}])
def test_without_an_artifact_nothing_is_said(tmp_path, made):
    if made is not None:
        write_artifact(tmp_path / "calibration.yaml", made)
    assert calibration_set(tmp_path, composed()["task"]) is None


def test_a_prompt_is_shown_with_its_pictures_counted():
    """Runs of one token once, with their length; all else as the tokenizer writes it."""
    tokenizer = build_processor(words(), side=48, patch=8).tokenizer
    picture = tokenizer.convert_tokens_to_ids("<image>")
    text = tokenizer("is there a red circle ?", add_special_tokens=False)["input_ids"]
    assert shown_prompt(tokenizer, [picture] * 144 + text) == "<image> x 144 is there a red circle ?"
    assert shown_prompt(tokenizer, text) == "is there a red circle ?"
    assert shown_prompt(tokenizer, [picture] * 9) == "<image> x 9"
