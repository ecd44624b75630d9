"""Every value of the wrong kind is named before anything is loaded: the key, what was given, what it takes."""

import copy
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from btp.cli.check_config import check_config, settled
from btp.cli.overrides import check_overrides, find_fault
from btp.cli.schema import KEYS, kind_of
from btp.cli.values import check_values, fault_of_size, fault_of_values, fault_of_words, resolved

CONF = Path(__file__).resolve().parents[2] / "conf"


@cache
def composed(*words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(words), return_hydra_config=True)


@cache
def config(*words):
    """Resolved, Hydra's own part as it was written; `put` changes a copy."""
    found = composed(*words)
    job = resolved(OmegaConf.masked_copy(found, [key for key in found if key != "hydra"]))
    hydra = {part: OmegaConf.to_container(found.hydra[part], resolve=False) for part in ("sweeper", "launcher")}
    return {**job, "hydra": hydra}


@cache
def parser():
    return OverridesParser.create()


def put(node, word):
    """A copy of a config with a key set as Hydra reads it from a command line."""
    override = parser().parse_override(word)
    found = copy.deepcopy(node)
    *places, last = override.key_or_group.split(".")
    inner = found
    for place in places:
        inner = inner[int(place)] if isinstance(inner, list) else inner[place]
    inner[last] = override.value()
    return found


WHOLE = "a whole number from"
WRONG = {
    (): [
        ("stages=0", f"Set stages to {WHOLE} 1 on"),
        ("stages=2.5", f"Set stages to {WHOLE} 1 on"),
        ("stages=two", "stages is 'two'"),
        ("stages=true", "stages is True"),
        ("limit=0", "limit is 0. No samples are left to run."),
        ("limit=-3", f"Set limit to {WHOLE} 1 on, or to null"),
        ("limit=1e3", "limit is 1000.0"),
        ("seed=-1", f"Set seed to {WHOLE} 0 to"),
        ("seed=null", "seed is None"),
        ("seed=99999999999999999999", "seed is 99999999999999999999"),
        ("overlays=-1", f"Set overlays to {WHOLE} 0 on"),
        ("overlays=many", "overlays is 'many'"),
        ("resume=maybe", "Set resume to true or false"),
        ("resume=1", "resume is 1."),
        ("debug=maybe", "Set debug to true or false"),
        ("cache=all", "Set cache to true or false"),
        ("cache_gib=nan", "cache_gib is nan"),
        ("cache_gib=inf", "cache_gib is inf"),
        ("cache_gib=-2", "Set cache_gib to a number of GiB above 0"),
        ("cache_gib=20GB", "cache_gib is '20GB'"),
        ("output=''", "output is ''. Set output to a folder"),
        ("output=null", "output is None"),
        ("output=3", "output is 3"),
        ("controls=3", "controls is 3"),
        ("controls.random=3", "controls.random is 3"),
        ("controls.random.schedule=x", "controls.random.schedule is 'x'"),
        ("tasks=3", "tasks is 3"),
        ("budget.share=1.5", "Set budget.share to a number above 0 and at most 1, or to null"),
        ("budget.share=true", "budget.share is True"),
        ("budget.share=nan", "budget.share is nan"),
        ("budget.tokens=-4", "Set budget.tokens to a number above 0"),
        ("budget.tokens=few", "budget.tokens is 'few'"),
        ("budget.move=2", "Set budget.move to true or false"),
        ("budget.nearest=maybe", "Set budget.nearest to true or false"),
        ("cost.enabled=maybe", "Set cost.enabled to true or false"),
        ("cost.measure=maybe", "cost.measure is 'maybe'. Choose from: auto, true, false."),
        ("cost.repeats=1", f"Set cost.repeats to {WHOLE} 2 on"),
        ("cost.warmup=-1", f"Set cost.warmup to {WHOLE} 0 on"),
        ("cost.batch=0", f"Set cost.batch to {WHOLE} 1 on"),
        ("cost.output_tokens=1.5", "cost.output_tokens is 1.5"),
        ("trainer.accelerator=tpu2", "trainer.accelerator is 'tpu2'. Choose from: auto, cpu"),
        ("trainer.accelerator=null", "trainer.accelerator is None"),
        ("trainer.devices=0", "trainer.devices is 0"),
        ("trainer.devices=[0,0]", "a list of different device indices"),
        ("trainer.devices=[true]", "trainer.devices is [True]"),
        ("trainer.devices=two", "trainer.devices is 'two'"),
        ("trainer.batch=0", f"Set trainer.batch to {WHOLE} 1 on"),
        ("trainer.threads=0", f"Set trainer.threads to {WHOLE} 1 to 1024, or to null"),
        ("trainer.threads=1000000", "trainer.threads is 1000000"),
        ("trainer.workers=-1", f"Set trainer.workers to {WHOLE} 0 to 256"),
        ("model.path=3", "model.path is 3"),
        ("model.dtype=fp8", "model.dtype is 'fp8'. Choose from: float32, bfloat16, float16, float64."),
        ("model.attention=flash", "model.attention is 'flash'"),
        ("model.quantize=3bit", "Choose from: null, 8bit, 4bit, torchao_int8."),
        ("model.weights=some", "Choose from: pretrained, random."),
        ("model.download=yes", "Set model.download to true or false"),
        ("model.device_map=3", "model.device_map is 3"),
        ("model.processor=3", "model.processor is 3"),
        ("model.example.height=0", "model.example.height is 0"),
        ("schedule.tau=nan", "schedule.tau is nan"),
        ("schedule.tau=2", "Set schedule.tau to a number from -1 to 1"),
        ("schedule.min_gap=0", f"Set schedule.min_gap to {WHOLE} 1 on"),
        ("schedule.balance=0.5", "schedule.balance is 0.5"),
        ("schedule.balance.first=2", "Set schedule.balance.first to a number from 0 to 1"),
        ("schedule.balance.first=x", "schedule.balance.first is 'x'"),
        ("schedule.balance={first:0.9,last:0.1}", "with 0 <= first <= last <= 1"),
        ("schedule.balance={first:0.5}", "Give first and last"),
        ("schedule.withdraw_last=maybe", "Set schedule.withdraw_last to true or false"),
        ("schedule.kind=best", "Choose from: auto, calibrated, uniform, paper."),
        ("calibration.samples=0", "calibration.samples is 0. There is nothing to calibrate on."),
        ("calibration.batch=x", f"Set calibration.batch to {WHOLE} 1 on"),
        ("calibration.artifact=3", "calibration.artifact is 3"),
        ("calibration.dataset=3", "calibration.dataset is 3"),
        ("calibration.dataset.seed=-1", "calibration.dataset.seed is -1"),
        ("calibration.dataset.abilities=digit", "Set calibration.dataset.abilities to a list of names, as [a,b]"),
        ("task.name=null", "task.name is None"),
        ("task.reading=digit", "task.reading is 'digit'"),
        ("task.dataset=null", "task.dataset is None"),
        ("task.dataset.size=0", "task.dataset.size is 0"),
        ("task.dataset.size=many", "task.dataset.size is 'many'"),
        ("task.dataset.seed=x", "task.dataset.seed is 'x'"),
        ("task.dataset.split=3", "task.dataset.split is 3"),
        ("task.dataset.abilities=[1,2]", "task.dataset.abilities is [1, 2]"),
        ("logger.mode=maybe", "logger.mode is 'maybe'. Choose from: offline, online."),
        ("logger.name=3", "logger.name is 3"),
        ("logger.project=null", "logger.project is None"),
        ("logger.tags=a", "logger.tags is 'a'"),
        ("logger.wait_s=-1", "Set logger.wait_s to a number of seconds above 0"),
        ("logger.upload_s=long", "logger.upload_s is 'long'"),
        ("pruner.schedule=3", "Set pruner.schedule to a list of stages"),
        ("pruner.schedule=[1]", "pruner.schedule is [1]"),
        ("pruner.method=3", "pruner.method is 3"),
        ("pruner.method.over=nan", "pruner.method.over is nan. Set pruner.method.over to a finite number."),
        ("trainer=null", "trainer is None, but holds keys of its own. Choose one of the group (trainer=NAME)"),
        ("model=3", "model is 3, but holds keys of its own"),
        ("budget=0.3", "budget is 0.3, but holds keys of its own. Set one of them: budget.tokens=..."),
        ("cost=false", "cost is False, but holds keys of its own. Set one of them: cost.enabled=..."),
        ("hydra.sweeper.max_batch_size=0", "hydra.sweeper.max_batch_size is 0"),
    ],
    ("pruner=withdraw",): [
        ("pruner.layer=-1", "Set pruner.layer to a decoder layer (a whole number from 0 on, or a share of the depth"),
        ("pruner.layer=2.5", "pruner.layer is 2.5"),
        ("pruner.layer=deep", "pruner.layer is 'deep'"),
        ("pruner.layer=true", "pruner.layer is True"),
    ],
    ("pruner=vtw",): [
        ("pruner.search.samples=0", "pruner.search.samples is 0"),
        ("pruner.search.eta=0", "Set pruner.search.eta to a number above 0"),
        ("pruner.search.direction=both", "Choose from: withdrawn, full."),
        ("pruner.search=null", "pruner.search is None"),
    ],
    ("pruner=vflowopt",): [
        ("pruner.strategy=best", "Choose from: search, given."),
        ("pruner.search.optimiser=adam", "Choose from: gp, tpe."),
        ("pruner.search.space.t=[5,1]", "Set pruner.search.space.t to two numbers, the lower first"),
    ],
    ("pruner=fastervlm_btp",): [("pruner.parts.btp=3", "pruner.parts.btp is 3")],
    ("pruner=downsampled",): [("pruner.picture=tiny", "Choose from: full, shrunk, none.")],
    ("schedule=paper",): [
        ("schedule.tokens.llava15=0", "schedule.tokens.llava15 is 0"),
        ("schedule.model=3", "schedule.model is 3"),
        ("schedule.setting=''", "schedule.setting is ''"),
    ],
    ("task=vqa_folder",): [
        ("task.path=''", "task.path is ''"),
        ("task.path=null", "task.path is None"),
        ("task.dataset.metric=3", "task.dataset.metric is 3"),
        ("task.dataset.max_new_tokens=0", f"Set task.dataset.max_new_tokens to {WHOLE} 1 on"),
        ("task.dataset.max_new_tokens=long", "task.dataset.max_new_tokens is 'long'"),
        ("task.dataset.shuffle_seed=-1", "task.dataset.shuffle_seed is -1"),
        ("task.dataset.suffix=3", "task.dataset.suffix is 3"),
        ("task.dataset.reader=3", "task.dataset.reader is 3"),
        ("task.dataset.reader.columns=question", "task.dataset.reader.columns is 'question'"),
    ],
    ("task=lmms_eval",): [
        ("task.dataset.num_fewshot=-1", "task.dataset.num_fewshot is -1"),
        ("task.dataset.generation=greedy", "task.dataset.generation is 'greedy'"),
    ],
    ("calibration=folder",): [
        ("calibration.path=null", "calibration.path is None"),
        ("calibration.dataset.reader.question=3", "calibration.dataset.reader.question is 3"),
    ],
    ("hydra/sweeper=optuna",): [
        ("hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials is 0"),
        ("hydra.sweeper.n_trials=2.5", "hydra.sweeper.n_trials is 2.5"),
        ("hydra.sweeper.n_trials=many", f"Set hydra.sweeper.n_trials to {WHOLE} 1 on"),
        ("hydra.sweeper.n_jobs=0", "hydra.sweeper.n_jobs is 0"),
        ("hydra.sweeper.seed=-1", "hydra.sweeper.seed is -1"),
        ("hydra.sweeper.maximize=accuracy", "hydra.sweeper.maximize is 'accuracy'"),
    ],
    ("hydra/launcher=joblib",): [
        ("hydra.launcher.n_jobs=0", "Set hydra.launcher.n_jobs to a whole number other than 0")
    ],
}
ROWS = [(base, word, said) for base, rows in WRONG.items() for word, said in rows]


@pytest.mark.parametrize(("base", "word", "said"), ROWS, ids=[word for _, word, _ in ROWS])
def test_a_value_of_the_wrong_kind(base, word, said):
    """The key as it is typed, what it was given, what it takes."""
    with pytest.raises(ValueError) as caught:
        check_values(put(config(*base), word))
    message = str(caught.value)
    assert said in message
    assert message.startswith(f"{word.partition('=')[0]} is ") or "schedule.balance" in word
    assert "\n" not in message


def test_the_table_is_long():
    assert len(ROWS) >= 80


RIGHT = [
    "limit=null", "cache_gib=0.5", "budget.tokens=40", "trainer.devices=[0,2]", "trainer.devices=auto",
    "trainer.workers=0", "schedule.tau=0", "schedule.balance={first:0,last:0}", "schedule.balance=null",
    "calibration.dataset.abilities=[digit,number]", "task.dataset.abilities=null", "model.device_map={vision:cpu}",
    "model.device_map=auto", "model.quantize=4bit", "cost.measure=false", "overlays=0", "cost.warmup=0",
    "controls=null", "pruner.schedule=[{site:llm.layer.2,keep:fit}]", "output='/tmp/a b'", "seed=0",
    "logger.wait_s=0.5", "study=null", "tasks=gqa",
]  # fmt: skip


@pytest.mark.parametrize("word", RIGHT)
def test_a_right_value_passes(word):
    check_values(put(config(), word))


def test_cache_may_be_on_or_off():
    assert settled({"cache": "off"}, [])["cache"] is False
    assert settled({"cache": "on"}, [])["cache"] is True


def test_every_key_of_the_yamls_that_the_run_reads_is_declared():
    """A key that is added to conf/config.yaml or conf/trainer needs a row."""
    found = config()
    own = [key for key in found if key != "hydra"]
    own += [f"{group}.{key}" for group in ("budget", "cost", "trainer", "logger", "schedule") for key in found[group]]
    own += [f"model.{key}" for key in found["model"]] + [f"calibration.{key}" for key in found["calibration"]]
    assert [key for key in own if kind_of(key) is None] == []


@pytest.mark.parametrize("key", ["limit", "seed", "budget", "trainer", "cost", "cost.repeats", "trainer.batch"])
def test_a_key_that_is_not_there_is_named(key):
    found = copy.deepcopy(config())
    *places, last = key.split(".")
    inner = found
    for place in places:
        inner = inner[place]
    del inner[last]
    with pytest.raises(ValueError, match=f"^{key} is not there, and every run needs"):
        check_values(found)


def words_fault(*words, base=()):
    return fault_of_words(parser().parse_overrides(list(words)), composed(*base))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("~limit", "~limit takes limit away, which runs read. Set limit=null instead."),
        ("~seed", "~seed takes seed away"),
        ("~cost.repeats", "~cost.repeats takes cost.repeats away"),
        ("~task.dataset.size", "takes task.dataset.size away"),
        ("~controls", "Set controls=null instead."),
        ("+trainer.bach=4", "+trainer.bach=4 has no effect: nothing reads bach in trainer. Drop it."),
        ("+cost.foo=1", "nothing reads foo in cost"),
        ("+model.pth=x", "nothing reads pth in model"),
        ("+schedule.balance.middle=0.5", "schedule.balance holds first and last"),
        ("stages=1,0", "stages=1,0: stages is 0."),
        ("stages=1,two", "stages is 'two'"),
        ("limit=9,-1", "limit is -1"),
        ("budget.share=0.2,0.4,1.4", "budget.share is 1.4"),
        ("cost.enabled=true,maybe", "cost.enabled is 'maybe'"),
        ("schedule.balance={first:0,last:1},{first:1,last:0}", "with 0 <= first <= last <= 1"),
        ("stages=range(-1,3)", "stages is -1"),
        ("stages=interval(1,3)", "is an interval, from which only a search draws: add hydra/sweeper=optuna"),
    ],
)
def test_words_that_no_composed_config_shows(word, said):
    assert said in words_fault(word)


MAY_BE = [
    "~controls.random",
    "~pruner@controls.random",
    "+model.config.x=1",
    "stages=1,2",
    "pruner.schedule.0.keep=0.5,2",
]


@pytest.mark.parametrize("word", MAY_BE)
def test_words_that_may_be(word):
    assert words_fault(word) is None


def test_a_search_draws_from_intervals():
    optuna = ("hydra/sweeper=optuna",)
    assert "int(interval(...)) draws whole ones" in words_fault("stages=interval(1,3)", base=optuna)
    assert "Set schedule.balance.first to a number from 0 to 1" in words_fault(
        "schedule.balance.first=interval(0,3)", base=optuna
    )
    assert words_fault("stages=int(interval(1,3))", base=optuna) is None
    assert words_fault("schedule.balance.first=interval(0,1)", base=optuna) is None


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("stages=range(5,1)", "stages=range(5,1) has no value"),
        ("stages=range(1,5,0)", "has no value"),
        ("limit=range(1,1000000000)", "has 999,999,999 values"),
        ("schedule.tau=interval(1,0)", "is empty"),
        ("schedule.tau=tag(log,interval(0,1))", "is logarithmic, but begins at 0"),
    ],
)
def test_ranges_and_intervals_that_hold_nothing(word, said):
    assert said in fault_of_size(parser().parse_override(word))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=3"], "model=3 is not there. Options: "),
        (["trainer=null"], "trainer=null leaves a run without a trainer, which it needs. Options: auto, cpu."),
        (["pruner=null"], "pruner=none does without."),
        (["logger=null"], "logger=none does without."),
        (["task={name:x}"], "is not there. Options: "),
        (["~trainer"], "~trainer takes trainer away"),
        (
            ["limit=${nothing}"],
            "limit is '${nothing}', which cannot be resolved: Interpolation key 'nothing' not found",
        ),
        (["limit=${limit}"], "limit is '${limit}', which cannot be resolved"),
        (["limit=???"], "limit is '???'"),
        (["output=''"], "output is ''"),
        (["+foo=1"], "+foo=1 has no effect: nothing reads foo. Drop it."),
        (["hydra/launcher=null"], "hydra/launcher=null leaves a run without a hydra/launcher, which it needs"),
        (["hydra.sweep.dir=${nothing}"], "hydra.sweep.dir cannot be resolved: Interpolation key 'nothing' not found"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=x"], "could not be converted to Integer"),
        (["hydra/sweeper=optuna", "stages=1,2", "hydra.sweeper.n_trials=x"], "hydra.sweeper.n_trials is 'x'"),
        (["pruner=withdraw", "pruner.layer=-1"], "pruner.layer is -1"),
    ],
)
def test_on_a_command_line(words, said):
    assert said in find_fault(CONF, words)


def test_a_key_of_ones_own_may_be_named_elsewhere():
    assert find_fault(CONF, ["+mine=9", "limit=${mine}"]) is None


def test_a_sweep_is_refused_before_its_first_cell(capsys):
    """Whichever of its cells has the value."""
    with pytest.raises(SystemExit):
        check_overrides(CONF, ["-m", "stages=1,2", "cost.enabled=false,maybe"])
    assert "error: cost.enabled=false,maybe: cost.enabled is 'maybe'. Set cost.enabled to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("search", r"pruner\.layer is search, but pruner 'withdraw' has no search"),
        ("16", r"pruner\.layer is 16, but the model has 16 decoder layers\. Set pruner\.layer to a layer from 0 to 15"),
    ],
)
def test_a_layer_that_the_pruner_or_the_model_does_not_have(layer, said):
    """Before the model is loaded."""
    with pytest.raises(ValueError, match=said):
        check_config(put(config("pruner=withdraw"), f"pruner.layer={layer}"))


def test_a_message_does_not_grow_with_the_value():
    assert len(fault_of_values({"limit": "9" * 5000})) < 300


def test_every_kind_says_what_it_takes():
    """One sentence each."""
    for key, kind in KEYS.items():
        said = kind.fault(key, object())
        assert said is not None
        assert said.count("\n") == 0
        assert said.endswith(".")
