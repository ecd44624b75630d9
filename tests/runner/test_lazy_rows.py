"""Rows computed, revived and parked per step and stage, from the engine's trace to the run folder."""

import pandas as pd
import tiny
import tiny_text
from lazy_toys import both
from oracle import steps

from btp.engine.attach import attach
from btp.pruners.lazyllm import LazyLLM
from btp.results.shapes import fault
from btp.results.writer import RunFolder
from btp.runner.evaluation.answer_store import ANSWER
from btp.runner.evaluation.ways.evaluation_loop import happened
from btp.runner.explain.recording_pruner import Witness
from btp.runner.explain.stages import stage_lives
from btp.tasks.sample import Sample


def test_steps_reach_the_run_folder(tmp_path):
    """A line per sample, step and stage; nothing of it where nothing acts in decode steps."""
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([14, 9])
    with attach(host, LazyLLM(), both(("llm.layer.1", 0.7), ("llm.layer.2", 0.7))) as trace:
        steps(host, inputs, n=4)
    with attach(host) as unpruned:
        steps(host, inputs, n=2)
    said = {"prediction": "x", "kl": 0.0}
    rows = {
        name: {str(b): {"sample": str(b)} | said | happened(call, b) for b in range(2)}
        for name, call in (("unpruned", unpruned.last), ("lazyllm", trace.last))
    }
    assert "steps" not in rows["unpruned"]["0"]
    row = rows["lazyllm"]["1"]
    assert fault(row, ANSWER) is None
    assert fault(row | {"steps": [{"step": 0}]}, ANSWER) is not None
    assert row["steps"][0] == {
        "step": 0,
        "site": "llm.layer.1",
        "entered": 9,
        "computed": 7,
        "revived": 0,
        "parked": 2,
        "waiting": 2,
    }
    assert len(row["steps"]) == 4 * 2
    folder = RunFolder(tmp_path)
    samples = [Sample(id=str(b), images=(), question="?", reference="x", ability="a") for b in range(2)]
    folder.write_samples(samples, rows, {name: [1.0, 0.0] for name in rows})
    table = pd.read_parquet(tmp_path / "steps.parquet")
    assert set(table.arm) == {"lazyllm"}
    assert len(table) == 2 * 4 * 2
    later = table[table.step > 0]
    assert (later.computed - later.revived <= later.entered).all()
    assert (later.entered - later.parked + later.revived == later.computed).all()


def test_one_samples_life_tells_of_the_prefill():
    """A stage that is asked in every step is explained by its first answer, with the score of that time."""
    host = tiny.shared("llava")
    inputs = tiny.prompts(host, [[2, "i", 5]])
    schedule, witness = both(("llm.layer.1", 0.6), ("llm.layer.3", 0.5)), Witness(LazyLLM())
    with attach(host, witness, schedule) as trace:
        steps(host, inputs, n=4)
    assert len(witness.accounts) == 4 * 2
    first, second = stage_lives(host, inputs, trace.last, schedule, witness, {})
    assert first.alive == tuple(range(9))
    assert (len(first.kept), len(second.kept)) == (6, 3)
    score = witness.accounts[0].scores["score"][0]
    assert set(score.topk(6).indices.tolist()) == set(first.kept)
    assert "phase both" not in first.plan
