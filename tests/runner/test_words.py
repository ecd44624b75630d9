"""What people type is read as they meant it: flags behind words, letters of any script, keys of one's own."""

import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from btp.cli.command_words import hydra_words, overrides_of, quoted
from btp.cli.overrides import find_fault, planned_cells, sweep_folder
from btp.cli.run import check_mode
from btp.results.command_line import as_line, words_of
from btp.runner.pruner_lists import name_lists
from btp.runner.targets import chooses_code

pytestmark = pytest.mark.long

CONF = Path(__file__).resolve().parents[2] / "conf"


def composed(*argv):
    """The config of a command line, as run.py reads it."""
    words = overrides_of(hydra_words(CONF, argv))
    assert find_fault(CONF, words) is None
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=words)


def test_flags_may_stand_behind_words():
    assert hydra_words(CONF, ["limit=4", "-m", "stages=1,2"]) == ["-m", "limit=4", "stages=1,2"]
    assert hydra_words(CONF, ["~pruner@controls.random", "--multirun"]) == ["--multirun", "~pruner@controls.random"]
    assert hydra_words(CONF, ["limit=4", "--cfg", "job", "+a=1"]) == ["--cfg", "job", "limit=4", "+a=1"]


NAMES = ("größe", "a b", "a[1]", "a,b", "a=b", "it's", 'say "x"', "日本", "a(1)", "{x}", "${seed}", "a\\b", "a#b", "~a")


def test_a_sweep_goes_into_a_folder_of_any_name():
    folder = Path("/nowhere", *NAMES, "".join(NAMES))
    assert sweep_folder(CONF, ["-m", quoted("hydra.sweep.dir", folder)]) == folder
    for name in NAMES:
        override = OverridesParser.create().parse_override(quoted("a.b", name))
        assert not override.is_sweep_override()
        assert OmegaConf.create({"seed": 1, "value": override.value()}).value == name


def test_letters_of_other_scripts_need_no_quotes():
    names = ["/data/größe", "/data/日本/q 1.json", "/data/é#1"]
    task = composed(
        "task=vqa_folder", *(f"task.{key}={n}" for key, n in zip(("path", "name"), names, strict=False))
    ).task
    assert (task.path, task.name) == tuple(names[:2])
    assert hydra_words(CONF, [f"output={names[2]}"]) == [f'output="{names[2]}"']


def test_quotes_that_stand_there_are_kept():
    assert hydra_words(CONF, ["task.path='/größe'"]) == ["task.path='/größe'"]


def test_what_may_mean_something_else_is_left_as_it_is():
    """Two paths of a sweep, for one."""
    assert hydra_words(CONF, ["-m", "task.path=/ä,/ö"]) == ["-m", "task.path=/ä,/ö"]


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("task.dataset.reader.columns={question: text, answer: label}", "question"),
        ("task.dataset.reader.columns.question=text", "question"),
        ("+task.dataset.reader.columns={question: text}", "question"),
    ],
)
def test_columns_are_named_as_documented(word, key):
    """docs/benchmarks.md has no plus in front of it."""
    assert composed("task=vqa_folder", word).task.dataset.reader.columns[key] == "text"


def test_a_processor_takes_its_own_arguments():
    size = composed("model=smolvlm", "model.processor={size: {longest_edge: 768}}").model.processor.size
    assert size == {"longest_edge": 768}
    words = hydra_words(CONF, ["model=qwen2vl,qwen25vl", "model.processor.max_pixels=9", "-m"])
    assert words == ["-m", "model=qwen2vl,qwen25vl", "+model.processor.max_pixels=9"]


def test_a_task_without_columns_says_so():
    words = hydra_words(CONF, ["task=pope", "task.dataset.reader.columns.question=text"])
    assert find_fault(CONF, words).startswith("unknown key task.dataset.reader.columns.question.")


def test_a_command_can_be_given_again():
    """As a shell reads it; what needs no quotes has none."""
    words = ["python", "run.py", "pruner=[fastervlm,btp]", "limit=4", "task=größe", *(f"a={name}" for name in NAMES)]
    line = as_line(words)
    assert line.startswith("python run.py pruner=[fastervlm,btp] limit=4 task=größe a=größe 'a=a b' a=a[1] a=a,b a=a=b")
    assert shlex.split(line) == words_of(line) == words
    assert words_of("an older command that isn't whole") == ["an", "older", "command", "that", "isn't", "whole"]


@pytest.mark.parametrize("words", [["-m", "--cfg", "job"], ["--info", "--cfg=job"], ["--run", "seed=1", "--multirun"]])
def test_two_things_at_once_are_refused_and_both_flags_named(words):
    flags = [word.partition("=")[0] for word in words if word.startswith("-")]
    with pytest.raises(ValueError, match=f"{flags[0]}.* asks to .*, {flags[1]}.* to .*: only one") as caught:
        check_mode(words)
    assert "Drop one of them" in str(caught.value)


def test_one_thing_is_taken():
    check_mode(["-m", "--multirun", "seed=1,2"])
    check_mode(["--cfg", "job", "pruner=fastv"])


@pytest.fixture
def mine(tmp_path):
    """A config directory of one's own, with a pruner."""
    folder = tmp_path / "größe [a], b=c"
    (folder / "pruner").mkdir(parents=True)
    text = (CONF / "pruner" / "random.yaml").read_text().replace("name: random", "name: mine")
    (folder / "pruner" / "mine.yaml").write_text(text)
    return folder


def test_a_config_directory_of_ones_own_brings_options(mine):
    """Alone, in a sweep and in a composition, with the flag in front or behind; a misspelt one is named like ours."""
    assert composed("--config-dir", str(mine), "pruner=mine").pruner.name == "mine"
    words = hydra_words(CONF, ["-m", "pruner=fastv,mine", f"--config-dir={mine}"])
    assert find_fault(CONF, overrides_of(words)) is None
    assert len(planned_cells(CONF, words)) == 2
    words = hydra_words(CONF, name_lists(["pruner=[fastervlm,mine]", "-cd", str(mine)]))
    assert find_fault(CONF, overrides_of(words)) is None
    words = hydra_words(CONF, ["pruner=mien", "--config-dir", str(mine)])
    assert "Did you mean pruner=mine?" in find_fault(CONF, overrides_of(words))
    assert chooses_code(overrides_of(words)).startswith("hydra.searchpath=")


def test_a_config_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--config-dir is .*none, but there is no such folder"):
        hydra_words(CONF, ["--config-dir", str(tmp_path / "none"), "pruner=mine"])
