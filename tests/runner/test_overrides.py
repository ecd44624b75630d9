"""What the command line gets wrong is said in one message, with the nearest right word."""

import shlex
from datetime import datetime
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from btp.cli.command_words import hydra_words, stray_word
from btp.cli.overrides import check_overrides, find_fault, planned_cells, sweep_folder, with_sweep
from btp.runner.pruner_lists import as_typed, name_lists

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stage=2"], "unknown key stage. Did you mean stages?"),
        (["model.pth=x"], "unknown key model.pth. Did you mean model.path?"),
        (["share=0.3"], "unknown key share. Did you mean budget.share?"),
        (["pruner.method.scores=probs"], "Did you mean pruner.method.score?"),
        (["pruner=bpt"], "pruner=bpt is not there. Did you mean pruner=btp? Options: a2sf, a2sf_online, aim"),
        (["model=llava2"], "model=llava2 is not there. Did you mean model=llava15?"),
        (["pruner=btp,divesity"], "Did you mean pruner=diversity?"),
        (["stages=[1"], "cannot read the command line"),
        (["pruner=[fastervlm"], "cannot read the command line"),
        (["pruner=[fastvlm,btp]"], "pruner=fastvlm is not there. Did you mean pruner=fastervlm?"),
        (["pruner=fastv,[fastervlm,bpt]"], "pruner=bpt is not there. Did you mean pruner=btp?"),
        (["hydra.foo=1"], "unknown key hydra.foo. "),
        (["hydra.swep.dir=x"], "unknown key hydra.swep.dir. Did you mean hydra.sweep.dir? `python run.py --cfg hydra`"),
        (["hydra/launcher=slurm", "hydra.launcher.partion=gpu"], "Did you mean hydra.launcher.partition?"),
        (["hydra.launcher.n_jobs=2"], "hydra.launcher.n_jobs. It is a key of hydra/launcher=joblib."),
        (["hydra.sweeper.n_trials=2"], "It is a key of hydra/sweeper=optuna."),
        (["hydra/sweeper=optuna", "hydra.sweeper.n_trails=2"], "Did you mean hydra.sweeper.n_trials?"),
        (["task.path=x"], "unknown key task.path. It is a key of task=boxes_folder, task=chartqa"),
        (["pruner.layer=3"], "unknown key pruner.layer. It is a key of pruner=vtw, pruner=withdraw."),
        (["calibration.path=x"], "It is a key of calibration=folder, calibration=llava_instruct."),
        (["controls=[random]"], "controls is ['random']. Set controls to keys with values"),
        (["controls.oracle=null"], "controls.oracle is None. ~controls.NAME does without a control."),
        (
            ["seed=${nope}"],
            "seed is '${nope}', which cannot be resolved: Interpolation key 'nope' not found. Set seed to",
        ),
        (["~pruner.method"], "~pruner.method takes pruner.method away, which runs read. Set pruner.method=null"),
        (["controls={}"], "has no effect: keys in braces join those that are there. controls=null does without"),
        (["experiment=null"], "experiment=null is no option. Leave the word out. Options: action_sweep"),
        (["hydra.mode=MULTIRUN"], "hydra.mode=MULTIRUN has no effect: -m says that this is a sweep"),
        (["hydra.run.dir=/x"], "hydra.run.dir=/x has no effect: output is where runs go"),
        (["budget=[]"], "budget is [], but holds keys of its own"),
        (["task.dataset=[1]"], "task.dataset is [1]. Set task.dataset to keys with values"),
        (["model.processor=3"], "model.processor is 3. Set model.processor to keys with values"),
        (["model.processor=[]"], "model.processor is []. Set model.processor to keys with values"),
    ],
)
def test_a_wrong_word_is_named_with_the_nearest_right_one(words, message):
    assert message in find_fault(CONF, hydra_words(CONF, name_lists(words)))


@pytest.mark.parametrize("argv", [["fastv"], ["seed=1", "fastv", "-m"], ["=3"], ["--cfg", "job", "fastv"]])
def test_a_word_without_a_key_is_named(argv, capsys):
    with pytest.raises(SystemExit):
        check_overrides(CONF, hydra_words(CONF, argv))
    word = next(word for word in argv if word in ("fastv", "=3"))
    assert f"error: {word} is neither a flag nor key=value, which a run takes" in capsys.readouterr().err
    assert stray_word(["--config-dir", "/x", "-m", "seed=1", "~pruner", "--info", "all"]) is None


@pytest.mark.parametrize("path", ["/data/a=b/q.json", "/data/a(1)/q.json", "/data/{x}/q.json", "/data/it's/q.json"])
def test_a_path_that_must_be_quoted_is_named_with_its_quotes(path):
    """As it is typed in a shell; what it proposes passes."""
    said = find_fault(CONF, ["task=vqa_folder", "limit=3", f"task.path={path}"])
    assert said.startswith(f"cannot read task.path={path}: a value with =, commas, quotes or brackets in it is quoted")
    (typed,) = shlex.split(said.rpartition("for the shell: ")[2])
    assert find_fault(CONF, ["task=vqa_folder", typed]) is None
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("config", overrides=["task=vqa_folder", typed]).task.path == path


def test_a_path_with_a_comma_is_quoted_too(capsys):
    with pytest.raises(SystemExit):
        check_overrides(CONF, ["task=vqa_folder", "task.path=/data/a,b.json"])
    assert """one with a comma in it is quoted: 'task.path="/data/a,b.json"'""" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["pruner=btp,fastv", "stages=range(1,3)", "budget.share=0.2,0.4"])
def test_several_values_need_m(word, capsys):
    """Hydra's own words for it name a variable of the environment."""
    with pytest.raises(SystemExit):
        check_overrides(CONF, [word])
    assert f"error: {word} is a sweep over 2 values, but -m is missing. Write" in capsys.readouterr().err
    check_overrides(CONF, ["-m", word])
    check_overrides(CONF, ["task.dataset.abilities=[digit,number]"])


@pytest.mark.parametrize(
    "words",
    [
        ["model=pocket", "pruner=btp", "stages=3"],
        ["pruner=btp,random", "budget.share=0.22,0.4"],
        ["schedule=uniform", "budget.tokens=40"],
        ["+pruner@controls.diversity=diversity"],
        ["~pruner@controls.random"],
        ["task.dataset.abilities=[digit,number]"],
        ["experiment=smoke"],
        ["hydra.sweep.dir=elsewhere"],
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"],
        ["pruner=[fastervlm,btp]", "pruner.parts.btp.method.over=2"],
        ["pruner=btp,[fastervlm,btp],[divprune,pdrop]", "budget.share=0.22,0.4"],
        ["pruner=[btp]"],
        ["pruner=glob(visionz*)"],
    ],
)
def test_a_right_command_line_passes(words):
    assert find_fault(CONF, name_lists(words)) is None


def test_a_list_of_pruners_is_the_yaml_that_composes_them():
    """On the command line as in conf/pruner/fastervlm_btp.yaml: the parts' own yamls, nothing copied."""
    (word,) = name_lists(["pruner=[fastervlm,btp]"])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        typed = compose("config", overrides=[word]).pruner
        written = compose("config", overrides=["pruner=fastervlm_btp"]).pruner
        alone = compose("config", overrides=["pruner=btp"]).pruner
    assert typed == written
    assert typed.parts.btp == alone


@pytest.mark.parametrize("word", ["pruner=[fastervlm,btp]", "pruner=btp", "pruner.schedule=[]", "budget.share=0.2"])
def test_the_command_is_kept_as_it_was_typed(word):
    """A run's command can be given again."""
    assert [as_typed(w) for w in name_lists([word])] == [word]


def planned(*words):
    """The cells of a sweep, but for what its experiment sets."""
    return planned_cells(CONF, name_lists(["-m", *words]))


@pytest.mark.long
def test_the_cells_of_a_sweep_are_known_before_it_begins():
    """In Hydra's order and as they are typed; those of an experiment's own sweep too, and of a search their number."""
    found = planned("limit=9", "pruner=btp,[fastervlm,btp]", "budget.share=0.3,0.4", "hydra.sweep.dir=x")
    pairs = [(pruner, share) for pruner in ("btp", "[fastervlm,btp]") for share in (0.3, 0.4)]
    assert found == [f"limit=9 pruner={pruner} budget.share={share}" for pruner, share in pairs]
    assert len(planned("stages=range(1,4)", "pruner=glob(visionz*)")) == 3
    everything, some = planned("experiment=budget_sweep"), planned("experiment=budget_sweep", "pruner=dart")
    assert len({words.split()[0] for words in everything}) * len(some) == len(set(everything)) > len(some)
    assert all("pruner=dart" in words for words in some)
    assert planned("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "stages=1,2") == [""] * 3


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["pruner=fastvid,holitom", "pruner.method.salience=none"], "pruner.method.salience=choice(none)"),
        (["pruner.method.k=[1,2]", "pruner=random,dart", "limit=3"], "pruner.method.k=choice([1,2])"),
        (["pruner=fastvid,holitom", "pruner.method.salience=none,received"], "pruner.method.salience=none,received"),
        (["pruner=btp,attention", "stages=2"], "stages=2"),
        (["pruner=btp", "pruner.method.over=2", "stages=2,3"], "pruner.method.over=2"),
        (["experiment=budget_sweep", "pruner.method=null"], "pruner.method=choice(null)"),
    ],
)
def test_a_setting_of_a_swept_group_is_part_of_its_sweep(words, written):
    """Hydra composes once without what is swept, where the default's pruner has no such key."""
    assert written in with_sweep(CONF, ["-m", *words])
    assert with_sweep(CONF, ["-m", *words])[0] == "-m"


def test_a_setting_that_the_default_has_not_reaches_every_cell():
    line = "pruner=fastvid,holitom pruner.method.salience=none budget.share=0.4"
    assert planned(*line.split()) == [line.replace("fastvid,holitom", name) for name in ("fastvid", "holitom")]


@pytest.mark.long
def test_sweeps_that_begin_in_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    """Unless the user names one, in which an earlier sweep goes on."""

    class Noon(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2024, 1, 1, 12)

    monkeypatch.setattr("hydra.core.utils.datetime", Noon)
    words = ["-m", "pruner=btp,random", f"output={tmp_path}"]
    folders = [sweep_folder(CONF, words) for _ in range(3)]
    name = "2024-01-01_12-00-00"
    assert folders == [tmp_path / "multirun" / end for end in (name, f"{name}-2", f"{name}-3")]
    assert all(folder.is_dir() for folder in folders)
    mine = [*words, f"hydra.sweep.dir={tmp_path / 'mine'}"]
    assert sweep_folder(CONF, mine) == sweep_folder(CONF, mine) == tmp_path / "mine"


@pytest.mark.parametrize("word", ["pruner=[btp,btp]", "pruner=[]", "pruner=btp,[1,2]"])
def test_lists_that_compose_nothing_are_refused(word):
    """Each pruner once, by its name."""
    with pytest.raises(ValueError, match=r"is no composition\. Name each pruner once"):
        name_lists([word])
