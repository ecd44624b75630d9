"""`python -m btp.explain` on a real run: the same tokens and answers again, their reasons, and what it refuses."""

import json
import shutil

import pandas as pd
import pytest
import torch
import yaml
from jobs import job
from tiny import SIDE, prompts, shared

from btp.core.pruner import ScorePruner
from btp.core.schedule import Schedule, Stage
from btp.engine.attach import attach
from btp.explain import main
from btp.pruners.tome import ToMe
from btp.results.reader import read_run
from btp.runner.evaluation.data import Collate
from btp.runner.evaluation.task_protocol import Judgement
from btp.runner.evaluation.ways.evaluation_loop import Evaluate
from btp.runner.explain.answer import explain, find_sample, method_config
from btp.runner.explain.recording_pruner import Witness
from btp.runner.explain.stages import stage_lives
from btp.tasks.sample import Sample

pytestmark = pytest.mark.long

SAMPLE = "test-0-000004"
QUICK = ("schedule=uniform", "budget.share=0.4", "limit=9", "cost.enabled=false", "overlays=0")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of BTP and its controls, without pictures of its own."""
    return job(tmp_path_factory.mktemp("out"), *QUICK)


@pytest.fixture
def copy(run, tmp_path):
    """The same run, to be spoiled."""
    return shutil.copytree(run, tmp_path / "copy")


def moved_most(run, arm):
    """The sample whose answer an arm changed most, and by how much: nats."""
    kl = read_run(run).rows(arm)["kl"]
    return kl.idxmax(), kl.max()


def refused(capsys, *arguments):
    """What the command complains of."""
    assert main([str(a) for a in arguments]) == 2
    return capsys.readouterr().err


def changed(folder, **groups):
    """Change keys of a run's config."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for key, value in groups.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_life_is_the_run_again(run):
    """Tokens, answers and layers are those that the run wrote down; the reasons are BTP's."""
    life = explain(run, SAMPLE)
    rows = read_run(run).samples.set_index(["arm", "sample"])
    assert [stage.same for stage in life.stages] == [True] * 3
    assert life.notes == ()
    assert (life.unpruned.text, life.pruned.text) == tuple(
        rows.loc[(arm, SAMPLE), "prediction"] for arm in ("unpruned", "btp")
    )
    assert life.average == pytest.approx(rows.loc[("btp", SAMPLE), "tokens_avg"])
    assert life.question == rows.loc[("btp", SAMPLE), "question"]
    assert life.rules[0] == "attention"
    assert "spatial seed" in life.rules
    assert life.views[0].grid == (12, 12)
    assert len(life.stages[0].scores["attention score"]) == life.total == 144
    assert [title for title, _, _ in life.others] == ["random", "downsampled", "no image"]


@pytest.mark.parametrize(("arm", "rules"), [("random", ["highest score"]), ("downsampled", ["kept"]), ("no_image", [])])
def test_controls_have_lives_too(run, arm, rules):
    """Also what is asked with a picture of fewer pixels."""
    sample, kl = moved_most(run, arm)
    life = explain(run, sample, arm)
    assert kl > 0.1
    assert life.kl == pytest.approx(kl, rel=1e-2)
    assert all(stage.same for stage in life.stages)
    assert life.pruned.same
    assert life.rules == rules
    assert any(stage.scores for stage in life.stages) == (arm == "random")


def test_the_command_prints_and_writes(run, tmp_path, capsys):
    page = tmp_path / "new" / "life.html"
    assert main([str(run), SAMPLE, "--page", str(page)]) == 0
    said = capsys.readouterr().out
    assert "✓ Every stage kept the same tokens as in the run." in said
    assert "A  attention" in said
    assert str(page) in said.replace("\n", "")
    assert "spatial seed" in page.read_text()


def test_other_tokens_are_said(copy, capsys):
    """A trace that another code wrote: the command says which tokens, and ends in 1."""
    trace = pd.read_parquet(copy / "trace.parquet")
    mine = (trace["sample"] == SAMPLE) & (trace["arm"] == "btp") & (trace["order"] == 0)
    (at,) = trace.index[mine]
    kept = trace.at[at, "kept"].tolist()
    other = next(i for i in range(144) if i not in kept)
    trace.at[at, "kept"] = sorted([*kept[1:], other])
    trace.to_parquet(copy / "trace.parquet")
    life = explain(copy, SAMPLE)
    assert [stage.same for stage in life.stages] == [False, True, True]
    assert life.stages[0].against_run() == f"other tokens than in the run: {kept[0]} here, {other} there"
    assert "Not all stages kept the tokens" in life.notes[0]
    assert "rounding may decide" in life.notes[1]
    assert main([str(copy), SAMPLE]) == 1
    assert "other tokens than in the run" in " ".join(capsys.readouterr().out.split())


def test_other_answers_and_other_code_are_said(copy):
    rows = pd.read_parquet(copy / "samples.parquet")
    rows.loc[(rows["sample"] == SAMPLE) & (rows["arm"] == "btp"), ["prediction", "question"]] = ["nonsense", "why ?"]
    rows.to_parquet(copy / "samples.parquet")
    state = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(state | {"identity": "0" * 16}))
    trace = copy / "trace.parquet"
    pd.read_parquet(trace).iloc[:0].to_parquet(trace)
    life = explain(copy, SAMPLE)
    assert life.pruned.recorded == "nonsense"
    assert {stage.against_run() for stage in life.stages} == {"the run's trace has no such stage"}
    assert [note.split(" ")[:3] for note in life.notes] == [
        ["The", "task", "asks"],
        ["Not", "all", "stages"],
        ["An", "answer", "is"],
        ["Code,", "checkpoint", "or"],
    ]


def test_no_such_run(tmp_path, capsys):
    assert "is no run folder: there is no such folder" in refused(capsys, tmp_path / "nowhere", SAMPLE)


def test_no_such_sample(run, capsys):
    said = refused(capsys, run, "test-0-00004")
    assert "holds no sample 'test-0-00004'. The nearest of its 9: test-0-000004" in said
    assert "test-0-000000" in refused(capsys, run, "?")


@pytest.mark.parametrize("number", ["4", "000004"])
def test_a_sample_goes_by_its_number_too(run, number):
    assert explain(run, number).sample == SAMPLE


def test_no_such_arm(run, capsys):
    assert "--arm is 'btpp', which is no arm of" in refused(capsys, run, SAMPLE, "--arm", "btpp")
    said = refused(capsys, run, SAMPLE, "--arm", "unpruned")
    assert "has no stage, so there is nothing to explain. Choose from: btp, random, downsampled, no_image." in said


def test_a_run_without_stages(copy, capsys):
    state = json.loads((copy / "run.json").read_text())
    state["arms"] = [entry | {"schedule": []} for entry in state["arms"]]
    (copy / "run.json").write_text(json.dumps(state))
    assert "has a stage, so there is nothing to explain. Run a pruner" in refused(capsys, copy, SAMPLE)


def test_a_run_without_answers(copy, capsys):
    """What random weights leave: costs."""
    (copy / "samples.parquet").unlink()
    (copy / "cost.json").write_text("{}")
    assert "its model has no weights" in refused(capsys, copy, SAMPLE)


def test_a_checkpoint_that_is_gone(copy, capsys):
    said = refused(capsys, changed(copy, model={"path": "checkpoints/pockett"}), SAMPLE)
    assert "but there is no such folder." in said
    assert "Set model.path to a checkpoint" in said


def test_a_sample_that_is_gone(copy, capsys):
    said = refused(capsys, changed(copy, limit=2), SAMPLE)
    assert f"sample '{SAMPLE}' is in {copy}, but its task does not have it any more" in said


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"pruner": {"method": {"_target_": "os.system", "command": "true"}}}, "pruner.method._target_ is os.system"),
        ({"task": {"dataset": {"_target_": "os.system", "command": "true"}}}, "task.dataset._target_ is os.system"),
        ({"model": {"adapter": "somewhere.Adapter"}}, "model.adapter is somewhere.Adapter"),
        ({"model": {"trust_remote_code": True}}, "model.trust_remote_code is true"),
    ],
)
def test_a_run_of_somebody_else_executes_nothing(copy, capsys, groups, said):
    """Unless it is trusted, and then the class still has to be what is asked for."""
    folder = changed(copy, **groups)
    error = refused(capsys, folder, SAMPLE)
    assert f"config.yaml {said}, which is code from outside btp" in error
    assert "add --trust" in error
    if "os.system" in said:
        assert "os.system, which is no class. Nothing was called" in refused(capsys, folder, SAMPLE, "--trust")


class Few(list):
    """A task of these samples."""


class Foreign(Few):
    """One of another harness."""

    collate, evaluate = Collate, Evaluate

    def draw(self, limit):
        return list(self)

    def judge(self, rows):
        return Judgement({}, {})


def test_samples_that_have_no_life(run):
    text = Sample("text", (), "what ?", "that", "all")
    with pytest.raises(ValueError, match="sample 'text' shows no picture, so that no stage has a visual token"):
        find_sample(Few([text]), None, "text", run)
    with pytest.raises(ValueError, match="was answered through lmms-eval or lm-eval, whose prompts are their own"):
        find_sample(Foreign([text]), None, "text", run)


def test_a_search_is_read_from_the_run(copy):
    """What it found is part of the method; without it, the method is not known."""
    folder = changed(copy, pruner={"strategy": "search"})
    with pytest.raises(ValueError, match=r"search.yaml is missing, with what the search of this run found"):
        method_config(read_run(folder), "btp", "method")
    (folder / "search.yaml").write_text(yaml.safe_dump({"method": {"over": 2.0}}))
    assert method_config(read_run(folder), "btp", "method")["over"] == 2.0


class Longest(ScorePruner):
    """Ranks by the length of the states."""

    def score(self, tokens, signals, stage):
        return tokens.hidden.norm(dim=-1)


def lives(pruner, *stages, row=(2, "i", 3, "i", 2)):
    """What the stages did to one prompt of a tiny model."""
    host = shared("llava")
    inputs = prompts(host, [list(row)])
    schedule, witness = Schedule(tuple(Stage(*stage) for stage in stages)), Witness(pruner)
    with torch.no_grad(), attach(host, witness, schedule) as trace:
        host(**inputs)
    return stage_lives(host, inputs, trace[0], schedule, witness, {}), witness


def test_tokens_of_the_vision_tower_are_the_prompts():
    """Two pictures of nine tokens: the second one's are 9 to 17, and what ranks highest is what stays."""
    found, _ = lives(Longest(), ("vision.layer.1", 6), ("vision.output", 4), ("llm.layer.2", 3))
    assert [len(stage.kept) for stage in found] == [12, 8, 3]
    for stage, before in zip(found, [range(2 * SIDE**2), found[0].kept, found[1].kept], strict=True):
        assert list(stage.alive) == list(before)
        assert set(stage.scores["score"]) == set(before)
        assert stage.rules == {"highest score": stage.kept}
    for part in (range(9), range(9, 18)):
        scores = found[0].scores["score"]
        best = sorted(part, key=lambda token: -scores[token])[:6]
        assert sorted(best) == [token for token in found[0].kept if token in part]


class Contrary(Longest):
    """Tells of a score that it does not go by."""

    def explain(self, tokens, signals, stage):
        return {"score": -self.score(tokens, signals, stage)}


def test_a_score_is_a_reason_only_where_it_is_one():
    """What stays under a score that others beat is kept, and no more is said."""
    (stage,), _ = lives(Contrary(), ("llm.layer.2", 3))
    assert stage.rules == {"kept": stage.kept}
    assert set(stage.scores["score"]) == set(stage.alive)


def test_where_tokens_flow():
    """Every token that ToMe takes is in one that stays, and that one says so."""
    (stage,), _ = lives(ToMe(class_token=True, order="raster", proportional_attention=True), ("vision.mlp.0", 6))
    gone = set(stage.alive) - set(stage.kept)
    assert set(stage.flowed) == gone
    assert set(stage.flowed.values()) == set(stage.merged)
    assert {token // 9 == into // 9 for token, into in stage.flowed.items()} == {True}
