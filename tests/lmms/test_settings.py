"""What a user is told before anything starts, with or without lmms-eval."""

import re

import pytest
from jobs import composed

from btp.cli.overrides import find_fault
from btp.cli.run import CONF
from btp.lmms_eval.arguments import composed as from_arguments
from btp.runner.harness import settings
from btp.runner.harness.settings import check_tasks, shared_part
from btp.runner.run_identity import run_identity


def test_the_command_line_takes_a_list_of_tasks():
    words = ["task=lmms_eval", "tasks=[gqa,mme,pope]"]
    assert find_fault(CONF, words) is None
    config = composed(*words)
    assert config["task"]["dataset"]["tasks"] == ["gqa", "mme", "pope"]
    assert composed("task=lmms_eval", "tasks=gqa")["task"]["dataset"]["tasks"] == "gqa"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tasks=[gqa]"], "tasks=['gqa'] has no effect with task=pocketvqa"),
        (["task=lmms_eval"], "tasks is None, but task=lmms_eval needs names"),
        (["task=lmms_eval", "tasks=[]"], "tasks is [], but"),
        (["task=lmms_eval", "tasks=[3]"], "tasks is [3], but"),
        (["task=lmms_eval", "tasks=[gqa]", "task.dataset.include_path=nowhere"], "include_path is nowhere, but"),
    ],
)
def test_tasks_that_cannot_be_asked_for(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_tasks(composed(*words))


def test_without_lmms_eval_it_says_what_to_run(monkeypatch):
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"run `make setup-lmms`, then the same command with \.venv-lmms/bin/python"):
        check_tasks(composed("task=lmms_eval", "tasks=[gqa]"))


def identities(*words):
    """(of a run, of what its arms share) for a command line."""
    config = composed("task=lmms_eval", *words)
    return run_identity(config, "checkpoint"), shared_part(config["task"])


def test_other_tasks_are_another_run_with_the_same_answers(tmp_path):
    """Answers are shared between lists of tasks, but not between contents of a folder of local ones."""
    include = f"task.dataset.include_path={tmp_path}"
    (tmp_path / "one.yaml").write_text("task: one")
    (tmp_path / "one.png").write_bytes(b"12")
    one, both = identities("tasks=[one]", include), identities("tasks=[one,two]", include)
    assert one[0] != both[0]
    assert one[1] == both[1]
    assert identities("tasks=[one]", include) == one
    (tmp_path / "one.png").write_bytes(b"123")
    grown = identities("tasks=[one]", include)
    assert grown[0] != one[0]
    assert grown[1] != one[1]
    (tmp_path / "one.yaml").write_text("task: two")
    assert identities("tasks=[one]", include)[1] != grown[1]


def test_arguments_become_words_of_ours(tmp_path, monkeypatch):
    """--model_args path=...,pruner=fastervlm+btp,budget=0.3,... is the command line of run.py."""
    monkeypatch.setattr(settings, "find_spec", lambda name: True)
    folder = CONF.parent / "btp" / "models" / "checkpoints" / "pocket_mini"
    more = {"model.dtype": "float32", "output": str(tmp_path), "stages": 2, "cache": False}
    config = from_arguments(str(folder), "fastervlm+btp", 0.3, 4, "cpu", more)
    assert config["model"]["path"] == str(folder)
    assert config["model"]["config"]["model_type"] == "llava"
    assert list(config["pruner"]["parts"]) == ["fastervlm", "btp"]
    assert config["budget"]["share"] == 0.3
    assert config["stages"] == 2
    assert config["cache"] is False
    assert (config["trainer"]["accelerator"], config["trainer"]["batch"]) == ("cpu", 4)
    tokens = from_arguments(None, "btp", 40, 1, None, {"model": "pocket", "output": str(tmp_path)})["budget"]
    assert (tokens["tokens"], tokens["share"]) == (40, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pruner": "btpp"}, "--model_args: pruner=btpp is not there. Did you mean pruner=btp?"),
        ({"more": {"stagse": 2}}, "--model_args: unknown key stagse. Did you mean stages?"),
        ({"budget": "few"}, "--model_args: budget.share is 'few'. It is the share"),
        ({"budget": float("nan")}, "--model_args: budget.share is nan"),
        ({"batch": "auto"}, "--model_args: trainer.batch is 'auto'. Set trainer.batch to a whole number from 1 on"),
        ({"device": "tpu"}, "--model_args: device is tpu. Choose from: cpu, cuda, cuda:N."),
        ({"device": "cuda:x"}, "--model_args: trainer.devices is ['x']"),
        ({"pruner": 3}, "--model_args: pruner=3 is not there. Options: "),
        ({"path": "FOLDER"}, "no yaml in conf/model is for model_type unheard_of. Add model=NAME"),
    ],
)
def test_arguments_that_cannot_be(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "find_spec", lambda name: True)
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    given = {"path": None, "pruner": "btp", "budget": 0.2, "batch": 1, "device": "cpu", "more": {}} | arguments
    given["path"] = str(tmp_path) if given["path"] else None
    with pytest.raises(ValueError, match=re.escape(message)):
        from_arguments(**given)
