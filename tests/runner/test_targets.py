"""Which code a config may run: classes that are what is asked for, and from files of others only this project's."""

import ast
from pathlib import Path

import pytest
from jobs import ROOT, composed

from btp.cli.check_config import check_config
from btp.core.pruner import Pruner, ScorePruner
from btp.runner.arms import build_method
from btp.runner.calibration.search_artifact import found_settings, found_stages
from btp.runner.calibration.vflowopt import with_strategy
from btp.runner.datasets import make_dataset
from btp.runner.targets import chooses_code, foreign, make
from btp.sweep import main as sweep

CALLED = []


def called(*given, **named):
    """Stands for whatever an attacker would like to see called."""
    CALLED.append((given, named))
    return Mine()


class Harmful:
    """A class that does something when it is made."""

    def __init__(self, **named):
        CALLED.append(named)


class Part:
    """Of a pruner of one's own."""

    def __init__(self, weights):
        self.weights = weights


class Mine(ScorePruner):
    """A pruner outside of btp, in a module on its user's path."""

    def __init__(self, *, part=None, inner=None):
        self.part, self.inner = part, inner

    def score(self, tokens, signals, stage):
        return tokens.hidden.norm(dim=-1)


def here(thing):
    return f"{__name__}.{thing.__name__}"


ORACLE = "btp.pruners.oracle.Oracle"
REFUSED = {
    "a function": ({"_target_": here(called)}, "which is no class. Nothing was called"),
    "a class that is no pruner": ({"_target_": here(Harmful)}, "not a subclass of btp.core.pruner.Pruner"),
    "a function inside": ({"_target_": ORACLE, "inner": {"_target_": here(called)}}, "inner._target_ is"),
    "a class inside": ({"_target_": ORACLE, "inner": {"_target_": here(Harmful)}}, "nor of the package btp"),
    "in a list": (
        {"_target_": here(Mine), "part": [{"_target_": "subprocess.Popen"}]},
        "part.0._target_ is subprocess",
    ),
    "through a module of btp": ({"_target_": "btp.runner.run.os.system"}, "but there is no such class"),
    "a key of Hydra": ({"_target_": here(Mine), "_args_": [1]}, "_args_ has no effect"),
}


@pytest.mark.parametrize(("node", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_pruner_is_refused_before_anything_is_called(node, message):
    CALLED.clear()
    with pytest.raises(ValueError, match=r"pruner 'x' cannot be built from its yaml: pruner\.method") as error:
        build_method("x", node)
    assert message in str(error.value)
    assert not CALLED


def test_a_pruner_of_ones_own_is_built_with_its_parts():
    """From any module, with classes of its own package and pruners of btp inside, and values as they stand."""
    inner = {"_target_": "btp.pruners.random.Random", "seed": 0, "salt": "content"}
    node = {"_target_": here(Mine), "part": {"_target_": here(Part), "weights": [1, {"a": "${x}"}]}, "inner": inner}
    made = build_method("mine", node)
    assert made.part.weights == [1, {"a": "${x}"}]
    assert type(made.part.weights) is list
    assert isinstance(made.inner, Pruner)


def test_a_dataset_holds_samples():
    CALLED.clear()
    for thing in (called, Harmful):
        with pytest.raises(ValueError, match=r"task\.dataset\._target_ is"):
            make_dataset({"_target_": here(thing)})
    assert not CALLED


def test_nothing_else_builds_from_a_config():
    """No module of btp calls Hydra's instantiate."""
    for file in (ROOT / "btp").rglob("*.py"):
        names = {
            alias.name
            for node in ast.walk(ast.parse(file.read_text()))
            for alias in getattr(node, "names", ())
            if isinstance(node, ast.ImportFrom)
        }
        assert "instantiate" not in names, file


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"pruner": {"method": {"_target_": here(Mine)}}}, f"pruner.method._target_ is {here(Mine)}"),
        ({"controls": {"a": {"method": {"x": [{"_target_": "os.system"}]}}}}, "controls.a.method.x.0._target_ is os"),
        ({"task": {"dataset": {"_target_": "btp.tasks.vqa.Path"}}}, "task.dataset._target_ is btp.tasks.vqa.Path"),
        ({"task": {"_target_": "btp.runner.lmms_eval.task.LMMSEvalTask"}}, "_target_ is btp.runner.lmms_eval"),
        ({"model": {"adapter": "mine.Adapter"}}, "model.adapter is mine.Adapter"),
        ({"model": {"adapter": "btp.models.lvlm.LVLM", "trust_remote_code": True}}, "model.trust_remote_code is true"),
    ],
)
def test_a_config_of_somebody_else_names_code_of_btp_only(config, said):
    assert said in foreign(config)


def test_what_the_users_own_yamls_name_is_trusted(tmp_path):
    """A run of a pruner of one's own is explained without a word."""
    config = {"pruner": {"method": {"_target_": here(Mine)}}, "model": {"adapter": "mine.Adapter"}}
    (tmp_path / "pruner").mkdir()
    (tmp_path / "pruner" / "mine.yaml").write_text(f"method:\n  _target_: {here(Mine)}\nsaid: adapter\n")
    assert foreign(config, tmp_path) == "model.adapter is mine.Adapter"
    (tmp_path / "model.yaml").write_text("name: mine\nadapter: mine.Adapter\n")
    assert foreign(config, tmp_path) is None
    assert foreign({"pruner": {"method": {"_target_": here(Harmful)}}}, tmp_path) is not None


@pytest.mark.parametrize("pruner", ["btp", "oracle", "vflowopt", "none"])
def test_every_config_of_ours_is_of_btp_only(pruner):
    assert foreign(composed(f"pruner={pruner}")) is None


@pytest.mark.parametrize(
    "word",
    [
        "pruner.method._target_=os.system",
        "pruner.method._target_=btp.pruners.btp.BTP,mine.Pruner",
        "+controls.a={_target_: mine.Pruner}",
        "model.adapter=mine.Adapter",
        "model.trust_remote_code=true",
        "task.dataset.include_path=there",
        "--config-dir",
        "hydra.searchpath=[file:///there]",
        "+hydra.callbacks.a._target_=mine.Callback",
        "hydra.launcher.setup=[touch there]",
        "hydra.launcher.python=/there/python",
    ],
)
def test_a_command_of_somebody_else_names_no_code(word):
    """A sweep's folder says how it is resumed."""
    assert chooses_code(["-m", "pruner=btp", word]) == word


def test_resuming_a_sweep_of_somebody_else(tmp_path, capsys):
    (tmp_path / "sweep.json").write_text('{"words": ["-m", "pruner.method._target_=os.system"]}')
    assert sweep(["resume", str(tmp_path)]) == 2
    assert "has the word pruner.method._target_=os.system, which can choose code" in capsys.readouterr().err


def test_a_plain_command_is_resumed():
    words = "-m pruner=btp,fastv hydra/launcher=slurm hydra.launcher.partition=gpu hydra.sweeper.n_trials=9 seed=0"
    assert chooses_code([*words.split(), "pruner.method._target_=btp.pruners.btp.BTP", "pruner=[btp,dart]"]) is None


METHOD = {"_target_": "btp.pruners.vflowopt.VFlowOpt", "t": 1.0, "m": 2.0, "alpha": 0.4}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"_target_": "pandas.read_pickle"}, "its method holds _target_, which is no setting of btp.pruners.vflowopt"),
        ({"other": 1.0}, "its method holds other, which is no setting of"),
        ({"t": {"_target_": "os.system"}}, "its method.t is {'_target_': 'os.system'}, which is no number"),
        ({"t": float("nan")}, "its method.t is nan, which is no number"),
        ({"t": "1"}, "its method.t is '1', which is no number"),
        ({"t": True}, "its method.t is True, which is no number"),
        (["t"], "its method is ['t'], not settings with numbers"),
    ],
)
def test_a_search_holds_numbers_for_settings(found, message):
    pruner = {"method": METHOD, "search": {"artifact": "there.yaml"}, "schedule": []}
    with pytest.raises(ValueError, match=r"the search artifact there\.yaml cannot be used: ") as error:
        with_strategy(pruner, {"method": found, "schedule": []})
    assert message in str(error.value)
    assert found_settings({"method": {"t": 3, "m": 0.5}}, METHOD, "x") == {"t": 3, "m": 0.5}


@pytest.mark.parametrize("stages", ["all", ["llm.input"], [{"site": "llm.input", "keep": {"_target_": "os.system"}}]])
def test_a_search_holds_plain_stages(stages):
    with pytest.raises(ValueError, match=r"the search artifact x cannot be used: its schedule"):
        found_stages({"schedule": stages}, "x")
    plain = [{"site": "llm.input", "keep": 0.5, "positions": "original"}]
    assert found_stages({"schedule": plain}, "x") == plain


@pytest.fixture(scope="module")
def default():
    """What `python run.py model=pocket_mini` comes to."""
    return composed("model=pocket_mini")


@pytest.mark.parametrize("name", ["../../there", "a/b", "..", ".hidden", "-m", "a b", "x" * 101])
@pytest.mark.parametrize("group", ["task", "model", "pruner", "calibration"])
def test_names_are_names(default, tmp_path, group, name):
    """Run folders are called by them."""
    config = {**default, "output": str(tmp_path / "out"), group: {**default[group], "name": name}}
    with pytest.raises(ValueError, match=rf"{group}\.name is .*, but a name has letters, digits, _, - and \. only"):
        check_config(config)
    assert not Path(tmp_path / "out").exists()


def test_names_of_other_scripts_are_names(default, tmp_path):
    check_config({**default, "output": str(tmp_path), "model": {**default["model"], "name": "Größe-7.5_b"}})


def test_make_looks_at_everything_first():
    """A class that may be made is not made where another one beside it may not."""
    CALLED.clear()
    node = {"_target_": here(Mine), "part": {"_target_": here(Harmful)}, "inner": {"_target_": "os.system"}}
    with pytest.raises(ValueError, match=r"inner\._target_ is os\.system"):
        make(node, Pruner, "pruner.method")
    assert not CALLED
