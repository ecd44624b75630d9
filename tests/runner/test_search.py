"""Searches: what they find, that they find it again, that a killed one goes on, and that shortcuts change nothing."""

import itertools
import json
import re

import pandas as pd
import pytest
import tiny
import torch
import yaml
from jobs import composed, job
from torch.nn.functional import kl_div

from btp.core.schedule import Schedule, Stage
from btp.engine.attach import attach
from btp.models.loading.load import find_checkpoint, load
from btp.ops.kl_search import first_passing
from btp.pruners.vflowopt import VFlowOpt
from btp.runner.calibration.reference import Watch, forward, reference, similarity
from btp.runner.calibration.trials import Trials
from btp.runner.calibration.vflowopt import search_vflowopt, strategy_counts
from btp.runner.calibration.vtw import Withdrawals, layer_found, search_vtw
from btp.runner.devices import Machine
from btp.runner.evaluation.answer_store import Answers
from btp.runner.identity import checkpoint
from btp.schedules.meet import Facts
from btp.schedules.solve import solve_fit

pytestmark = pytest.mark.long

FACTS, BUDGET = Facts(8, 144), 36.0
QUIET = ["model=pocket_mini", "trainer=cpu", "logger=none"]
SMALL = ["pruner.search.samples=6", "pruner.search.startup=4", "pruner.search.evaluations=3"]
METHOD = {
    "t": 1.0,
    "alpha": 0.4,
    "m": 2.0,
    "rows": "mean",
    "entropy": "paper",
    "mean": (0.5,) * 3,
    "std": (0.25,) * 3,
    "recycle": True,
    "recycle_several": False,
    "exact": True,
}


@pytest.fixture(scope="module")
def pocket():
    """The embedded model, its identity, and how to search with it."""
    config = composed(*QUIET)
    folder = find_checkpoint(config["model"])
    return load(config["model"], folder, torch.device("cpu")), checkpoint(folder, [config["model"]["config"]])


def vflowopt(pocket, folder, *overrides, budget=BUDGET):
    config = composed(*QUIET, "pruner=vflowopt", *SMALL, *overrides)
    return search_vflowopt(config, *pocket, folder, Machine(config["trainer"], folder), FACTS, budget)


def vtw(pocket, folder, *overrides):
    config = composed(*QUIET, "pruner=vtw", "pruner.search.samples=6", *overrides)
    return search_vtw(config, *pocket, folder, Machine(config["trainer"], folder))


@pytest.fixture(scope="module")
def strategy(pocket, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    return folder, vflowopt(pocket, folder)


def test_the_artifact_says_what_was_found_and_where_it_comes_from(strategy):
    folder, artifact = strategy
    trials, found = artifact["trials"], artifact["found"]
    assert len(trials) == 7
    assert found == max(trials, key=lambda row: row["value"])
    assert 0 < found["value"] <= 1
    assert artifact["method"] == {name: found[name] for name in ("t", "m", "alpha")}
    assert artifact["model"]["name"] == "pocket_mini"
    assert artifact["calibration"]["dataset"]["split"] == "calibration"
    assert {"btp", "torch", "transformers", "optuna"} <= set(artifact["versions"])
    (file,) = (folder / "calibration").glob("*.yaml")
    assert file.stem == artifact["identity"]
    assert yaml.safe_load(file.read_text()) == artifact


def test_every_strategy_tried_meets_the_budget_and_lies_in_the_space(strategy):
    space = strategy[1]["search"]["space"]
    assert space["first"] == [0.25, 0.375]
    assert space["m"] == [3.0, 12.0], "the pocket model's grids are 12 a side"
    assert 1 < space["t"][1] < 50
    for row in strategy[1]["trials"]:
        assert all(space[name][0] <= row[name] <= space[name][1] for name in space)
        one, two, three = row["counts"]
        assert abs((one * 3 + two * 2 + three * 3) / 8 - BUDGET) <= 3 / 16
        assert 144 >= one >= two >= three >= 1


def test_the_last_stage_is_left_to_the_budget_which_gives_the_count_that_was_searched(strategy):
    schedule = Schedule.from_config(strategy[1]["schedule"])
    counts = [stage.count(144) for stage in solve_fit(schedule, 144, 8, BUDGET)]
    assert counts == sorted(set(strategy[1]["found"]["counts"]), reverse=True)
    assert schedule[-1].keep == "fit"


def test_it_is_found_again(pocket, strategy):
    """The same settings read the file; others do not."""
    folder, artifact = strategy
    (file,) = (folder / "calibration").glob("*.yaml")
    before = file.stat().st_mtime_ns
    assert vflowopt(pocket, folder, "calibration.batch=3", "trainer.batch=7") == artifact
    assert file.stat().st_mtime_ns == before


def test_two_searches_with_one_seed_are_equal_and_another_seed_is_not(pocket, strategy, tmp_path):
    again = vflowopt(pocket, tmp_path / "a")
    assert again["trials"] == strategy[1]["trials"]
    other = vflowopt(pocket, tmp_path / "b", "pruner.search.seed=7")
    assert other["trials"][0] != again["trials"][0]


@pytest.mark.parametrize("finished", [2, 5])
def test_a_killed_search_goes_on_as_if_nothing_had_happened(pocket, strategy, tmp_path, finished):
    """Two trials and half a line of the third are on disk; or the first of the optimiser's too."""
    folder, artifact = strategy
    rows = folder / "calibration" / artifact["identity"] / "rows-0.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    torn = tmp_path / "calibration" / artifact["identity"] / "rows-0.jsonl"
    torn.parent.mkdir(parents=True)
    torn.write_text("".join(lines[:finished]) + lines[finished][:20])
    assert vflowopt(pocket, tmp_path)["trials"] == artifact["trials"]
    assert [json.loads(line) for line in torn.read_text().splitlines()] == [json.loads(line) for line in lines]


def test_resume_false_searches_anew(pocket, strategy, tmp_path):
    first = vflowopt(pocket, tmp_path, "pruner.search.startup=2", "pruner.search.evaluations=0")
    again = vflowopt(pocket, tmp_path, "pruner.search.startup=2", "pruner.search.evaluations=0", "resume=false")
    assert again["trials"] == first["trials"]
    rows = tmp_path / "calibration" / first["identity"] / "rows-0.jsonl"
    assert len(rows.read_text().splitlines()) == 2


def test_a_named_artifact_is_used_and_one_of_another_budget_or_kind_refused(pocket, strategy, tmp_path):
    folder, artifact = strategy
    name = f"pruner.search.artifact={folder / 'calibration' / artifact['identity']}.yaml"
    assert vflowopt(pocket, tmp_path, name) == artifact
    with pytest.raises(ValueError, match=r"was made for a budget of 36 of 144 .* but this run's budget is 40 of 144"):
        vflowopt(pocket, tmp_path, name, budget=40.0)
    with pytest.raises(ValueError, match=r"the search artifact .* is of kind vflowopt, not vtw\."):
        vtw(pocket, tmp_path, f"+{name}")
    (tmp_path / "broken.yaml").write_text("identity: 1")
    with pytest.raises(ValueError, match=r"the search artifact .* is broken: identity is 1, not a text"):
        vflowopt(pocket, tmp_path, f"pruner.search.artifact={tmp_path / 'broken.yaml'}")
    changed = yaml.safe_load((folder / "calibration" / f"{artifact['identity']}.yaml").read_text())
    changed["model"]["checkpoint"] = "another"
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(changed))
    with pytest.raises(ValueError, match="was made for model 'pocket_mini' \\(checkpoint another\\)"):
        vflowopt(pocket, tmp_path, f"pruner.search.artifact={tmp_path / 'other.yaml'}")


QUICK = ["limit=9", "cost.enabled=false", "~pruner@controls.downsampled", "~pruner@controls.no_image"]


@pytest.mark.slow
def test_the_main_job_searches_and_runs_what_was_found(strategy, tmp_path):
    """The trace holds the searched counts, and the run folder the artifact, which another run may name."""
    words = ["pruner=vflowopt", "pruner.strategy=search", "budget.share=0.25", *SMALL, *QUICK]
    folder = job(tmp_path, *words)
    artifact = yaml.safe_load((folder / "search.yaml").read_text())
    assert artifact["trials"] == strategy[1]["trials"]
    trace = pd.read_parquet(folder / "trace.parquet")
    mine = trace[trace["arm"] == "vflowopt"]
    after = [int(n) for n in mine.groupby("order")["after"].first()]
    assert after == sorted(set(artifact["found"]["counts"]), reverse=True)
    assert (mine.groupby("order")["after"].nunique() == 1).all()
    assert json.loads((folder / "run.json").read_text())["inert"]["identical"]
    named = job(tmp_path / "other", *words, f"pruner.search.artifact={folder / 'search.yaml'}")
    columns = ["arm", "sample", "prediction"]
    tables = [pd.read_parquet(run / "samples.parquet")[columns] for run in (folder, named)]
    pd.testing.assert_frame_equal(*tables)


def test_the_main_job_withdraws_at_the_layer_found(tmp_path):
    words = ["pruner=vtw", "pruner.layer=search", "pruner.search.eta=1.0", "pruner.search.samples=6", *QUICK]
    folder = job(tmp_path, *words)
    layer = yaml.safe_load((folder / "search.yaml").read_text())["layer"]
    trace = pd.read_parquet(folder / "trace.parquet")
    mine = trace[trace["arm"] == "vtw"]
    assert set(mine["site"]) == {f"llm.layer.{layer}"}
    assert (mine["after"] == 0).all()


@pytest.mark.parametrize("family", ["llava", "llava_deep", "llava_siglip"])
def test_ready_features_and_signals_seen_before_change_nothing(family):
    """Without the vision tower and with its signals replayed, pruned states are those of a plain attach."""
    lvlm, pruner = tiny.shared(family), VFlowOpt(**METHOD)
    schedule = Schedule((Stage("llm.input", 5, "renumber"), Stage("llm.layer.1", 4), Stage("llm.layer.3", 2)))
    batches = [tiny.prompts(lvlm, [["i", 3], [2, "i", 4], [2, "i", 1, "i", 5]], seed=seed) for seed in (0, 1)]
    with torch.inference_mode():
        kept = [reference(lvlm, inputs, Watch(pruner)) for inputs in batches]
        alike = []
        for inputs, batch in zip(batches, kept, strict=True):
            with attach(lvlm, pruner, schedule):
                hidden, _ = forward(lvlm, inputs)
            alike.append(torch.cosine_similarity(hidden, batch.hidden, dim=-1))
        passes = []
        hook = lvlm.vision.register_forward_hook(lambda *_: passes.append(1))
        found = similarity(lvlm, kept, pruner, schedule)
        hook.remove()
    assert not passes
    assert found == pytest.approx(float(torch.cat(alike).mean()), abs=1e-6)
    assert found < 0.999


def test_keeping_everything_has_similarity_one():
    lvlm, pruner = tiny.shared("llava"), VFlowOpt(**METHOD)
    with torch.inference_mode():
        kept = [reference(lvlm, tiny.prompts(lvlm, [["i", 3], [2, "i", 4]]), Watch(pruner))]
        assert similarity(lvlm, kept, pruner, Schedule((Stage("llm.input", 1.0),))) == pytest.approx(1.0, abs=1e-6)


def test_nan_counts_as_nothing():
    """A state that is NaN is as bad as one at a right angle."""
    lvlm, pruner = tiny.shared("llava"), VFlowOpt(**METHOD)
    with torch.inference_mode():
        kept = reference(lvlm, tiny.prompts(lvlm, [["i", 3], ["i", 3]]), Watch(pruner))
        kept.hidden[1] = torch.nan
        assert similarity(lvlm, [kept], pruner, Schedule((Stage("llm.input", 1.0),))) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "budget", "third"),
    [
        (0.2651026358526424, 0.9833433139039235, 0.25, 0.869969),
        (0.11661529508161146, 1.0, 0.1, 0.601057),
        (0.7233201448753168, 0.748747637472693, 0.5, 0.483002),
    ],
)
def test_the_third_share_follows_from_the_budget(first, second, budget, third):
    """The released strategies, over 28 layers cut before 9 and 18."""
    stages = [{"site": site} for site in ("llm.input", "llm.layer.9", "llm.layer.18")]
    total = 10_000_000
    one, two, three = strategy_counts(first, second, stages, Facts(28, total), budget * total)
    assert one / total == pytest.approx(first, abs=1e-6)
    assert two / one == pytest.approx(second, abs=1e-6)
    assert three / two == pytest.approx(third, abs=1e-5)


@pytest.mark.parametrize("layers", [(28, 9, 18), (8, 3, 5), (4, 1, 3), (32, 10, 20)])
def test_any_point_of_the_space_meets_the_budget(layers):
    """Where the formula leaves stage 3 more than is alive, or nothing, stage 2 makes room."""
    L, a, b = layers
    stages = [{"site": site} for site in ("llm.input", f"llm.layer.{a}", f"llm.layer.{b}")]
    for share, first, second in itertools.product((0.02, 0.1, 0.5, 0.9), (1.0, 1.2, 1.5), (0.533, 0.8, 1.0)):
        one, two, three = strategy_counts(min(1.0, share * first), second, stages, Facts(L, 576), share * 576)
        assert 576 >= one >= two >= three >= 1
        reached = (one * a + two * (b - a) + three * (L - b)) / L
        assert abs(reached - share * 576) <= 1


@pytest.mark.parametrize(("optimiser", "near"), [("gp", 0.05), ("tpe", 0.25)])
def test_the_best_corner_of_a_toy_is_found(optimiser, near):
    """Highest at first = 1, t = 0: a quadratic that the optimiser must climb into a corner."""

    def value(params):
        return -((params["first"] - 1) ** 2) - (params["t"] / 50) ** 2

    runs = []
    for _ in range(2):
        trials = Trials({"first": (0.0, 1.0), "t": (0.0, 50.0)}, optimiser, 8, 42)
        for _ in range(24):
            params = trials.propose()
            trials.add(params, value(params))
        runs.append(trials)
    best = runs[0].best
    assert best["first"] > 1 - near
    assert best["t"] < 50 * near
    assert runs[0].found == runs[1].found


def test_trials_survive_on_disk(tmp_path):
    """Read again, they propose what an undisturbed search proposes next; a second process only reads."""
    space = {"m": (1.0, 2.0), "alpha": (0.0, 0.0)}
    plain, kept = Trials(space, "gp", 2, 1), Trials(space, "gp", 2, 1, Answers(tmp_path / "a"))
    for trials in (plain, kept):
        for _ in range(4):
            params = trials.propose()
            trials.add(params, -params["m"], counts=[3, 2])
    again = Trials(space, "gp", 2, 1, Answers(tmp_path / "a"))
    assert again.found == kept.found == plain.found
    assert again.propose() == plain.propose()
    silent = Trials(space, "gp", 2, 1, Answers(tmp_path / "a"), writes=False)
    silent.add(silent.propose(), 1.0)
    assert len(Trials(space, "gp", 2, 1, Answers(tmp_path / "a"))) == 4


@pytest.mark.parametrize(
    ("overrides", "budget", "message"),
    [
        (["pruner.search.samples=65"], BUDGET, "pruner.search.samples is 65, but the calibration set has 64"),
        (["pruner.search.optimiser=grid"], BUDGET, "pruner.search.optimiser is 'grid'. Choose from: gp, tpe."),
        (["pruner.search.space.m=[9.0,3.0]"], BUDGET, "pruner.search.space.m comes to 9..3, which is no range."),
        (["~pruner.search.space.t"], BUDGET, "pruner.search.space lacks t."),
        ([], 144.0, "A budget of 144 of 144 visual tokens leaves no strategy to search."),
        (["pruner.schedule=[{site: llm.input, keep: fit}]"], BUDGET, "pruner.schedule comes to stages at llm.input,"),
        (["model.weights=random"], BUDGET, "A search needs a model with weights, but model.weights is random."),
    ],
)
def test_settings_that_cannot_be_searched(pocket, tmp_path, overrides, budget, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        vflowopt(pocket, tmp_path, *overrides, budget=budget)


@pytest.mark.parametrize("family", ["llava", "qwen"])
@pytest.mark.parametrize("direction", ["withdrawn", "full"])
def test_the_divergence_of_each_candidate_is_that_of_a_plain_run(family, direction):
    """Both directions, against torch's own divergence of two attached forwards."""
    lvlm = tiny.shared(family)
    inputs = tiny.prompts(lvlm, [["i", 3], [2, "i", 4]])
    module = Withdrawals(_Loaded(lvlm), [1, 3], "original", direction, None, None)
    with torch.inference_mode():
        module.step(_Rows(inputs))
        full = lvlm(**inputs).logits[:, -1].log_softmax(-1)
        for layer, total in zip((1, 3), module.totals, strict=True):
            with attach(lvlm, None, Schedule((Stage(f"llm.layer.{layer}", 0),))):
                cut = lvlm(**inputs).logits[:, -1].log_softmax(-1)
            p, q = (cut, full) if direction == "withdrawn" else (full, cut)
            assert total == pytest.approx(float(kl_div(q, p, reduction="sum", log_target=True)), rel=1e-4)
            assert total > 0
    assert module.rows == 2


class _Loaded:
    def __init__(self, host):
        self.host = host


class _Rows:
    """A batch of two samples that is where it belongs."""

    def __init__(self, inputs):
        self.inputs, self.samples = inputs, [None, None]

    def to(self, *_):
        return self


def test_the_layer_is_the_first_that_passes(pocket, tmp_path):
    """One curve serves every eta; a larger one never gives a deeper layer; none passing gives L and says so."""
    nothing = vtw(pocket, tmp_path, "pruner.search.eta=0", "pruner.search.first=2")
    assert (nothing["layer"], nothing["passes"]) == (8, False)
    assert nothing["note"].startswith("no layer passes pruner.search.eta=0, so nothing would be withdrawn; the least")
    with pytest.raises(ValueError, match=r"pruner.layer is search, but no layer passes .* Raise pruner.search.eta"):
        layer_found(nothing)
    curve = {point["layer"]: point["divergence"] for point in nothing["curve"]}
    assert list(curve) == [2, 3, 4, 5, 6, 7]
    (file,) = (tmp_path / "calibration").glob("*.yaml")
    before, layers = file.stat().st_mtime_ns, []
    for eta in (0.01, 1.0, 5.0, 100.0):
        found = vtw(pocket, tmp_path, f"pruner.search.eta={eta}", "pruner.search.first=2")
        assert found["layer"] == first_passing(list(curve.values()), list(curve), eta, 8)
        layers.append(found["layer"])
    assert layers == sorted(layers, reverse=True)
    assert layer_found(found) == 2
    assert file.stat().st_mtime_ns == before


def test_withdrawal_settings_that_cannot_be_searched(pocket, tmp_path):
    with pytest.raises(ValueError, match=r"pruner.search.first is 8, but the model has layers 0 to 7"):
        vtw(pocket, tmp_path, "pruner.search.first=8")
    with pytest.raises(ValueError, match=r"pruner.search.direction is 'both'"):
        vtw(pocket, tmp_path, "pruner.search.direction=both")
