"""Every experiment composes, sweeps what it says, and ends in the study that it promises."""

import re
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from jobs import ROOT, typed
from omegaconf import OmegaConf

import btp.study
from btp.cli.check_config import check_config
from btp.cli.experiments import study_of
from btp.cli.overrides import check_overrides, experiment_of, find_fault
from btp.report.studies.study import Study
from btp.report.studies.write import BEGIN, END, KINDS

CONF = ROOT / "conf"
NAMES = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
STUDIES = [name for name in NAMES if name != "smoke"]
PAGES = sorted((ROOT / "experiments").glob("*/README.md"))
QUICK = ["model=pocket_mini", "limit=9", "trainer=cpu", "logger=none"]


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_composes_with_the_first_value_of_all_that_it_sweeps(name, tmp_path):
    words = [f"experiment={name}"]
    experiment = experiment_of(CONF, words)
    assert bool(experiment.sweeps) == (name in STUDIES)
    assert find_fault(CONF, [*experiment.words(), *words]) is None
    first = [word.split(",")[0] for word in experiment.words() if not set(word) & set("[({")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", [*words, *first, f"output={tmp_path}"]), resolve=True)
    check_config(config)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_says_its_question_its_command_and_a_figure_that_there_is(name):
    study = Study.of(study_of(CONF, name))
    assert study.figure in KINDS
    assert study.question.endswith("?")
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[2].startswith(f"# python run.py -m experiment={name}")


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_its_result_on_a_page(name):
    """What stands there is what the command wrote, to the letter."""
    (page,) = [p for p in PAGES if BEGIN.format(name=name) in p.read_text()]
    text = page.read_text()
    assert text.splitlines().count(f"python run.py -m experiment={name}") == 1
    shown = text.split(BEGIN.format(name=name) + "\n")[1].split(END.format(name=name))[0]
    assert shown == (page.parent / f"{name}.md").read_text()
    assert (page.parent / f"{name}.png").stat().st_size > 5000
    assert len(pd.read_csv(page.parent / f"{name}.csv"))
    assert f"`{name}`" in (ROOT / "experiments" / "README.md").read_text()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "experiments" / "README.md"], ids=lambda p: p.parent.name)
def test_links_of_the_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", ["fired", "inertness"])
def test_controls_of_everything_are_run_for_every_method(name):
    """All of conf/pruner: but for compositions, what keeps no selection, withdrawal, which the depth sweep runs, and
    those of models without a language model, of text models, or of the cache, which have a budget of their own; and
    what is trained, since such a sweep would first train its modules (docs/training.md).
    """
    others = ("tower: vision", "site: llm.cache", "# python run.py model=", "\nweights:")
    texts = {file.stem: file.read_text() for file in (CONF / "pruner").glob("*.yaml")}
    here = {name for name, text in texts.items() if not any(mark in text for mark in others)}
    swept = experiment_of(CONF, [f"experiment={name}"]).sweeps["pruner"].replace(" ", "").split(",")
    kept = {"none", "no_image", "downsampled", "withdraw", "fastervlm_btp"}
    assert here - set(swept) == kept


def test_the_budget_sweep_reaches_the_paper_s_budget_and_half_of_it():
    table = pd.read_csv(ROOT / "experiments" / "budget_sweep" / "budget_sweep.csv")
    shares = table[table["pruner.name"].eq("btp")]["tokens_share"].round(2).tolist()
    assert shares == [0.75, 0.5, 0.35, 0.22, 0.11]
    swept = experiment_of(CONF, ["experiment=budget_sweep"]).sweeps["budget.share"]
    assert swept.endswith("0.35,0.22,0.11")


def test_an_experiment_that_sweeps_is_refused_without_m(capsys):
    with pytest.raises(SystemExit):
        check_overrides(CONF, ["experiment=depth_sweep"])
    said = capsys.readouterr().err
    assert "experiment=depth_sweep is a sweep over pruner, pruner.layer, but -m is missing" in said
    assert "python run.py -m experiment=depth_sweep" in said
    check_overrides(CONF, ["experiment=depth_sweep", "pruner=withdraw", "pruner.layer=3"])  # a cell of it alone
    check_overrides(CONF, ["experiment=depth_sweep", "--cfg", "job"])


def test_what_an_experiment_sweeps_is_checked_too(tmp_path, capsys):
    """A wrong option in a yaml is named like one on the command line."""
    for part in CONF.rglob("*.yaml"):
        copy = tmp_path / part.relative_to(CONF)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(part.read_text())
    file = tmp_path / "experiment" / "oracle.yaml"
    file.write_text(file.read_text().replace("pruner: btp,oracle", "pruner: btp,oracel"))
    with pytest.raises(SystemExit):
        check_overrides(tmp_path, ["-m", "experiment=oracle"])
    assert "pruner=oracel is not there. Did you mean pruner=oracle?" in capsys.readouterr().err
    check_overrides(tmp_path, ["-m", "experiment=oracle", "pruner=btp"])  # which takes its place


def test_no_key_of_a_study_is_proposed_for_a_wrong_word():
    message = find_fault(CONF, ["experiment=btp_calibration", "calibration.samplse=3"])
    assert "Did you mean calibration.samples?" in message


def test_a_name_that_is_no_study_is_answered_with_those_there_are(tmp_path, capsys):
    assert btp.study.main([str(tmp_path), "--name", "smoke"]) == 2
    assert f"'smoke' is no study. Studies are: {', '.join(STUDIES)}." in capsys.readouterr().err
    assert btp.study.main([str(tmp_path)]) == 2
    assert "is not the folder of a study's sweep. Name the study" in capsys.readouterr().err


def run(home: Path, *words):
    code, printed = typed("-m", *words, *QUICK, f"output={home / 'out'}", f"hydra.sweep.dir={home / 'sweep'}")
    assert code == 0, printed
    return printed


@pytest.mark.long
def test_a_depth_sweep_in_miniature_ends_in_its_figure_and_table(tmp_path):
    """From the one command to the page; a word behind it takes the place of what the yaml sweeps."""
    printed = run(tmp_path, "experiment=depth_sweep", "pruner.layer=1/8,7/8")
    for ending in ("png", "csv", "md"):
        assert f"depth_sweep.{ending}" in printed
    said = printed.split("How deep does the model still need its picture?\n")[-1]
    answer, paths = said.split("\n\n", 1)
    assert [line.startswith("pocket_mini, pocketvqa: the knee of") for line in answer.splitlines()] == [True] * 3
    assert all(str(tmp_path) in line for line in paths.split("\n\n")[0].split())
    opened = (tmp_path / "sweep" / "comparison.html").read_text().split("<main>")[1].split('id="summary"')[0]
    assert "<h2>How deep does the model still need its picture?</h2>" in opened
    assert all(part in opened for part in ("the knee of macro lies", "data:image/png;base64", "knee, of depth"))
    table = pd.read_csv(tmp_path / "sweep" / "depth_sweep.csv").set_index("score")
    assert table.loc["macro", "samples"] == 9
    assert table.loc["macro", "at_1"] < table.loc["macro", "at_7"]
    assert 1 < table.loc["macro", "knee"] < 7
    marks = "\n".join(mark.format(name="depth_sweep") for mark in (BEGIN, END))
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "README.md").write_text(marks)
    assert btp.study.main([str(tmp_path / "sweep"), "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "README.md").read_text()
    assert (
        page.split("```")[1]
        == "\npython run.py -m experiment=depth_sweep pruner.layer=1/8,7/8 "
        + " ".join(word for word in QUICK if not word.startswith("logger"))
        + "\n"
    )
    assert (tmp_path / "sweep" / "depth_sweep.md").read_text() == (tmp_path / "page" / "depth_sweep.md").read_text()
    assert str(tmp_path) not in page


@pytest.mark.slow
def test_coverage_in_miniature_knows_that_the_oracle_keeps_what_is_needed(tmp_path):
    run(tmp_path, "experiment=coverage", "pruner=oracle,diversity", "budget.share=0.7")
    table = pd.read_csv(tmp_path / "sweep" / "coverage.csv").set_index("method")
    assert table.loc["oracle", "target"] > 0.9
    assert table.loc["diversity", "target"] < 0.9
    assert table.loc["oracle", "needed"] >= 5


@pytest.mark.slow
def test_late_questions_in_miniature(tmp_path):
    """A method that is blind to the text keeps the same tokens and says the same."""
    run(tmp_path, "experiment=multi_turn", "pruner=fastv,divprune")
    table = pd.read_csv(tmp_path / "sweep" / "multi_turn.csv").set_index("method")
    assert table.loc["divprune", ["lost", "same"]].tolist() == [0.0, 1.0]
    assert 0 < table.loc["fastv", "same"] < 1


def test_a_word_for_the_sweeper_takes_the_place_of_an_experiments():
    """As a key of the config does."""
    words = ["experiment=fired", "hydra.sweeper.params.pruner='random,dart'"]
    assert experiment_of(CONF, words).sweeps["pruner"] == "random,dart"
