"""`python -m btp.explain` of text models: what layers and heads hold, what steps computed, from calls and from runs."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import tiny
import tiny_text
import torch
from jobs import job
from lazy_toys import both
from oracle import steps
from slot_methods import METHODS
from test_explain import refused
from test_text_runs import checkpoint  # noqa: F401, a fixture

from btp.core.schedule import Schedule, Stage
from btp.engine.attach import attach
from btp.explain import main
from btp.pruners.composition import Chain
from btp.pruners.fastv import FastV
from btp.pruners.lazyllm import LazyLLM
from btp.results.reader import read_run
from btp.runner.explain.answer import explain
from btp.runner.explain.layers import held_by_head, held_layers, spread_over, step_lives
from btp.runner.explain.recording_pruner import Witness
from btp.runner.pruner_lists import name_lists


def call_of(method, schedule, n=4):
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([17])
    witness = Witness(method)
    with attach(host, witness, schedule) as trace:
        steps(host, inputs, n=n)
    return trace.last, host.layout(inputs).visual[0], witness


@pytest.mark.parametrize("name", ["snapkv", "tova", "a2sf"])
def test_heads_hold_what_did_not_leave(name):
    """Behind the prompt head by head, and how many left in steps; the score says what they were ranked by."""
    call, visual, witness = call_of(*METHODS[name])
    layers = held_layers(call, visual, witness.ranked, True)
    assert [layer.layer for layer in layers] == [0, 1, 2, 3]
    for layer in layers:
        site = f"llm.cache.{layer.layer}"
        begin, end = call.gone(site, step=0)[0], call.gone(site)[0]
        begin = begin * len(end) if len(begin) < len(end) else begin
        for held, first, last, later in zip(layer.heads, begin, end, layer.later, strict=True):
            assert {at for at, here in enumerate(held) if not here} == first
            assert later == len(last - first)
        assert layer.ranked.startswith("kept ")
        assert ", dropped " in layer.ranked
    assert any(any(layer.later) for layer in layers) == (METHODS[name][1][0].phase == "both")


def test_pictures_have_heads_where_their_cache_lost_slots():
    """Over the whole prompt, text and picture; no layer is shown for a cut alone."""
    host = tiny.shared("llava")
    inputs = tiny.prompts(host, [[2, "i", 5]])
    cut, kept = Stage("llm.layer.2", 4), Stage("llm.cache.3", 6, settings={"recent": 2})
    parts = {"fastv": FastV(score="probs", query="last", seed=0), "snapkv": METHODS["snapkv"][0]}
    stages = [replace(s, settings={**s.settings, "by": by}) for s, by in ((cut, "fastv"), (kept, "snapkv"))]
    with attach(host, Witness(Chain(parts=parts)), Schedule(tuple(stages))) as trace:
        steps(host, inputs, n=3)
    (layer,) = held_layers(trace.last, host.visual_mask(inputs)[0], {}, False)
    assert (layer.layer, layer.counts, layer.heads.shape[1]) == (3, [6] * len(layer.heads), 16)
    gone = set(range(2, 11)) - {2 + i for i in trace.last.stages[0].kept[0]}
    assert all(not held[at] for held in layer.heads for at in gone)


def test_rows_that_came_back_are_named():
    """As many as the trace counts, all of them older than the newest, and none in the prompt's own forward."""
    call, _, _ = call_of(LazyLLM(), both(("llm.layer.1", 0.5), ("llm.layer.3", 0.5)), n=8)
    lives = step_lives(call)
    assert len(lives) == 8 * 2
    assert all(not life.back for life in lives if life.step == 0)
    assert [len(life.back) for life in lives] == [life.revived for life in lives]
    assert any(life.back for life in lives)
    assert all(at < 17 + life.step - 1 for life in lives for at in life.back)


def test_layers_are_shown_where_something_left():
    call, visual, _ = call_of(LazyLLM(), both(("llm.layer.2", 0.5)))
    assert [layer.layer for layer in held_layers(call, visual, {}, True)] == [2, 3]
    assert held_layers(call, visual, {}, False) == ()
    assert [len(heads) for heads in held_by_head(call, visual)] == [1] * 4
    assert spread_over(32) == [0, 10, 21, 31]
    assert spread_over(3) == [0, 1, 2]


RUNS = ("pruner=lazyllm budget.share=0.6", "pruner=[fastv,h2o] budget.slots=60 budget.share=0.5")


@pytest.mark.slow
@pytest.mark.parametrize("pruner", RUNS)
def test_a_texts_life_is_the_run_again(checkpoint, tmp_path, capsys, pruner):  # noqa: F811
    """Tokens, slots and rows of every step are those that the run wrote down; a changed record is said."""
    torch.set_num_threads(1)
    words = ["model=pocket_text", f"model.path={checkpoint}", "limit=1", "task.dataset.lengths=[256]", "overlays=1"]
    words += ["task.dataset.abilities=[needle]", "cost.enabled=false", "~controls.no_context", "~controls.window"]
    path = job(tmp_path, *name_lists([*words, *pruner.split()]))
    run = read_run(path)
    (sample,) = dict.fromkeys(run.samples["sample"])
    page = tmp_path / "life.html"
    assert main([str(path), sample, "--page", str(page)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Every stage kept the same tokens as in the run." in said
    lazy = "lazyllm" in pruner
    assert ("Every step computed as many rows as in the run." in said) == lazy
    assert ("As many slots left the caches as in the run" in said) != lazy
    assert "What layers hold" in page.read_text()
    assert f"python -m btp.explain {path}" in (path / "report.html").read_text()
    life = explain(path, sample)
    assert life.picture is None
    assert "".join(life.words).strip().endswith("ASSISTANT :")
    assert life.question.startswith("question :")
    if lazy:
        steps = pd.read_parquet(path / "steps.parquet")
        steps.loc[steps["step"] == 1, "computed"] += 1
        steps.to_parquet(path / "steps.parquet")
    else:
        rows = pd.read_parquet(path / "samples.parquet")
        rows.loc[rows["arm"] != "unpruned", "evicted"] += 5
        rows.to_parquet(path / "samples.parquet")
    assert main([str(path), sample]) == 1
    assert "! Other than in the run" in capsys.readouterr().out
    state = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(state | {"arms": [a | {"schedule": []} for a in state["arms"]]}))
    assert "has a stage, so there is nothing to explain" in refused(capsys, path, sample)
