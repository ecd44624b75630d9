"""Every method that has a yaml: what it keeps is sound, and the same in a batch as alone."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from checked_selection import check_selection
from hand import published, row, signals, stage, tokens
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tiny import shared

import btp
from btp.core.cache_pruner import CachePruner
from btp.core.keep import is_fit
from btp.core.pruner import Pruner, ScorePruner
from btp.core.schedule import Schedule, Stage
from btp.core.signals import COUNTED, Signal, Signals
from btp.engine.checks.plan import make_plan
from btp.engine.decide import Decider
from btp.engine.hooks.deferred_checks import Doubts
from btp.schedules.place import place_stages
from btp.schedules.published import with_published

CONF = Path(btp.__file__).parents[1] / "conf"
ALL = sorted(path.stem for path in (CONF / "pruner").glob("*.yaml"))


@cache
def read(name):
    root = OmegaConf.create({"seed": 0, "stages": 3, "pruner": OmegaConf.load(CONF / "pruner" / f"{name}.yaml")})
    return OmegaConf.to_container(root, resolve=True)["pruner"]


def load(name):
    return deepcopy(read(name))


def build(name):
    method = load(name)["method"]
    pruner = None if method is None else instantiate(method)
    if hasattr(pruner, "set_clips"):
        pruner.set_clips([])
    return pruner


def kept_stages(name):
    """The stages of the yaml that choose, or one between layers for those that take the run's schedule."""
    schedule = load(name)["schedule"]
    pruner = build(name)
    known = pruner.stage_settings if pruner is not None else ()
    if schedule is None:
        return [stage(keep=keep, **({"balance": 0.6} if "balance" in known else {})) for keep in (0.5, 5)]
    placed = place_stages(schedule, 32, 4)
    numbers = [dict(s) | ({"keep": 0.8 * 0.75**i} if is_fit(s["keep"]) else {}) for i, s in enumerate(placed)]
    return [s for s in Schedule.from_config(numbers) if not s.withdraws_all]


NAMES = [name for name in ALL if not isinstance(build(name), CachePruner)]  # the others: test_slot_contract.py


@pytest.mark.parametrize("name", ALL)
def test_yaml_is_complete(name):
    """Two comment lines, the second a command; a name, a method and a schedule that it accepts."""
    lines = (CONF / "pruner" / f"{name}.yaml").read_text().splitlines()
    file = f"conf/pruner/{name}.yaml"
    assert lines[0].startswith("# "), (
        f"{file}: write into its first line what it is: `# Longest (you, this year): keeps ...`"
    )
    assert lines[1].startswith("# python run.py"), (
        f"{file}: write into line 2 a command: `# python run.py pruner={name}`"
    )
    config = load(name)
    for key in ("name", "method", "schedule"):
        assert key in config, f"{file}: write `{key}:`, with null where it has none"
    assert config["name"] == name, f"{file}: write `name: {name}`, as the file is called"
    pruner = build(name)
    if config["schedule"] is not None and pruner is not None:
        pruner.check(Schedule.from_config(place_stages(config["schedule"], 32, 4)))


@pytest.mark.parametrize("name", NAMES)
def test_selection_is_sound_and_the_same_alone(name):
    """Ascending, unique, in range, exactly as many as asked; ragged rows do not see each other."""
    pruner = build(name)
    if pruner is None:
        return
    for at in kept_stages(name):
        seen = tokens(16, 11, 4)
        values = signals(pruner, seen, at)
        counts = seen.keep_counts(at)
        if hasattr(pruner, "set_targets"):
            pruner.set_targets([[0, (0.0, 0.0, 0.5, 0.3)], [], [2, 3]])
        selection = pruner.select(seen, values, at)
        assert selection.counts is None or pruner.adaptive, f"{name} decides its own counts: write `adaptive = True`"
        keep, counts = selection.keep, selection.counts or counts
        check_selection(selection, counts, seen.host_alive, name, at.site)
        for b, count in enumerate(counts):
            if hasattr(pruner, "set_targets"):
                pruner.set_targets([[[0, (0.0, 0.0, 0.5, 0.3)], [], [2, 3]][b]])
            alone, its_values = row(b, seen, values)
            assert pruner.select(alone, its_values, at).keep[0].tolist() == keep[b, :count].tolist(), (
                f"{name} keeps other tokens of row {b} at {at.site} in a batch than alone: leave padding out by "
                "tokens.valid, and let no sum go over rows"
            )


@pytest.mark.parametrize("name", NAMES)
def test_keeping_everything(name):
    """A stage that keeps all tokens returns all of them."""
    pruner = build(name)
    if pruner is None or not kept_stages(name):
        return
    first = kept_stages(name)[0]
    seen, at = tokens(9, 6), stage(first.site, 1.0, **first.settings)
    if hasattr(pruner, "set_targets"):
        pruner.set_targets([[1], []])
    keep = pruner.select(seen, signals(pruner, seen, at), at).keep
    assert keep.tolist() == [list(range(9)), [*range(6), -1, -1, -1]]


def decide(pruner, seen, values, at):
    """A decision as the engine asks for it."""
    valid = {s: values.rows_valid(s) for s in values if s.rows in COUNTED and s.site.tower == "llm"}
    if hasattr(pruner, "set_targets"):
        pruner.set_targets([[]] * len(seen.valid))
    return Decider(pruner, Doubts()).ask(at, seen, values, valid, seen.keep_counts(at))


@pytest.mark.parametrize(
    ("value", "whole"), [(float("nan"), False), (float("inf"), True)], ids=["nan in part", "inf all over"]
)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_is_refused(name, value, whole):
    """In the states or any signal, named with the pruner, the stage and the row: the method is not even asked."""
    pruner = build(name)
    if pruner is None:
        return
    for at in kept_stages(name):
        seen = tokens(16, 11, 4)
        values = signals(pruner, seen, at)
        decide(pruner, seen, values, at)
        spoilt = torch.zeros_like(seen.hidden)
        spoilt[(1, slice(None), slice(None)) if whole else (1, 2, 3)] = value
        cases = {f"hidden at {at.site}": (replace(seen, hidden=seen.hidden + spoilt), values)}
        for signal, x in values.items():
            if not x.numel():
                continue
            x = x.clone()
            mine = x[:, 1] if signal.kind in ("update", "change", "rotary") else x[1]
            mine[... if whole else (0,) * mine.dim()] = value
            valid = {s: values.rows_valid(s) for s in values if s.rows in COUNTED and s.site.tower == "llm"}
            cases[str(signal)] = (seen, Signals({**values, signal: x}, valid))
        for what, (shown, its) in cases.items():
            with pytest.raises(ValueError) as error:
                decide(pruner, shown, its, at)
            word = "NaN" if value != value else "inf"
            where = f"{'picture' if at.site.tower == 'vision' else 'row'} 1 of the batch"
            assert f"{what} holds {word}, which pruner {pruner.name!r} would rank" in str(error.value)
            assert f" at {at.site}, in {where}" in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_shown_to_the_engine(name):
    """What a method ranks by is finite for every token, and NaN in it would be seen."""
    pruner = build(name)
    if pruner is None:
        return
    for at in kept_stages(name):
        seen = tokens(16, 11, 4)
        if hasattr(pruner, "set_targets"):
            pruner.set_targets([[], [], []])
        selection = pruner.select(seen, signals(pruner, seen, at), at)
        assert selection.scores is not None or not isinstance(pruner, ScorePruner), (
            f"{name}.select hides what it ranks by: return Selection(keep, scores=scores)"
        )
        if selection.scores is not None:
            assert selection.scores.shape == seen.valid.shape
            assert selection.scores[seen.valid].isfinite().all()


class Ahead(Pruner):
    """Another method, which asks for something that is not computed yet."""

    def __init__(self, inner, signal):
        self.inner, self.signal = inner, signal

    @property
    def name(self):
        return self.inner.name

    @property
    def stage_settings(self):
        return self.inner.stage_settings

    def needs(self, stage):
        return (self.signal,)

    def select(self, tokens, signals, stage):
        raise AssertionError("asked before its signals were there")


@pytest.mark.parametrize("name", NAMES)
def test_signals_come_from_before_the_stage(name):
    """All that it declares is there when it decides; one of a later layer is refused before anything runs."""
    pruner = build(name)
    if pruner is None:
        return
    for at in kept_stages(name):
        for signal in pruner.needs(at):
            assert signal.ready_for(at.site), (
                f"{name} asks for {signal} at a stage that cuts at {at.site}: ask for stage.site.previous_layer, or "
                "put the stage of its yaml behind the layer that it looks at"
            )
    for late in ("llm.layer.2", "llm.layer.3"):
        at = Stage("llm.layer.2", 0.5)
        with pytest.raises(ValueError, match=r"A stage may only use signals from sites before it\.") as error:
            make_plan(shared("llava"), Ahead(pruner, Signal("keys", late)), Schedule((at,)))
        assert f"pruner {pruner.name!r} asks for keys at {late}, but its stage cuts at llm.layer.2" in str(error.value)


def test_schedules_load():
    """Each schedule of conf says its kind."""
    for path in (CONF / "schedule").glob("*.yaml"):
        assert OmegaConf.load(path)["kind"] in ("auto", "calibrated", "uniform", "paper")


PUBLISHED = [
    (name, model, str(setting))
    for name in ALL
    for model, table in (load(name).get("published") or {}).items()
    for setting in table
]


@pytest.mark.parametrize(("name", "model", "setting"), PUBLISHED)
def test_published_schedules(name, model, setting):
    """`schedule=paper` finds them, and the method accepts its own."""
    asked = {"kind": "paper", "model": model, "setting": setting}
    pruner = with_published({"pruner": load(name), "schedule": asked, "model": {"name": model}})["pruner"]
    schedule = Schedule.from_config(place_stages(pruner["schedule"], 32, 23))
    schedule.check(32, 24)
    instantiate(pruner["method"]).check(schedule)
    assert not schedule.has_fit


def test_an_unpublished_model_or_setting():
    """The message says what there is."""
    config = {"pruner": load("sparsevlm"), "schedule": {"kind": "paper", "model": "pocket", "setting": None}}
    with pytest.raises(ValueError, match=r"no published schedule for model 'pocket'. There are: llava15 \(192, 128"):
        with_published(config)
    config["schedule"] = {"kind": "paper", "model": "llava15", "setting": 182}
    with pytest.raises(ValueError, match=r"was published for llava15 with: 192, 128, 96, 64. Did you mean 192\?"):
        with_published(config)
    assert with_published({"schedule": {"kind": "auto"}}) == {"schedule": {"kind": "auto"}}


def test_a_published_schedule_on_another_model():
    """Numbers of tokens become shares of its own; where the published model's number is not known it says so."""
    asked = {"kind": "paper", "model": "llava15", "setting": "192", "tokens": {"llava15": 576}}
    config = {"pruner": load("sparsevlm"), "schedule": asked, "model": {"name": "pocket"}}
    shares = [stage["keep"] for stage in with_published(config)["pruner"]["schedule"]]
    assert shares == [309 / 576, 204 / 576, 113 / 576]
    with pytest.raises(ValueError, match=r"keep \[309, 204, 113\] tokens, .* Set schedule.tokens.llava15"):
        with_published(config | {"schedule": asked | {"tokens": {}}})
    with pytest.raises(ValueError, match="has no published schedule, for this or any model"):
        with_published(config | {"pruner": load("tome")})


def test_paper_budget():
    """The paper's stages for LLaVA-1.5 leave 129 tokens on average, as its table says."""
    stages = published("btp", "paper")
    assert Schedule.from_config(stages).tokens_avg(576, 32) == (3 * 576 + 3 * 288 + 8 * 144 + 8 * 48) / 32


def test_oracle_spends_the_rest_as_btp():
    """Its yaml repeats the values of BTP's."""
    assert load("oracle")["method"]["inner"] == load("btp")["method"]


def test_selection_does_not_read_global_randomness():
    """The same picks again, whatever the global generator does."""
    for name in NAMES:
        pruner, found = build(name), []
        if pruner is None or not kept_stages(name):
            continue
        at, seen = kept_stages(name)[0], tokens(16)
        values = signals(pruner, seen, at)
        if hasattr(pruner, "set_targets"):
            pruner.set_targets([[]])
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(pruner.select(seen, values, at).keep.tolist())
        assert found[0] == found[1]
