"""Batches: any size gives the same answers, others make them ahead, and memory that ends makes them smaller."""

import json
import multiprocessing
import os
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from families import kit
from hydra.utils import instantiate
from jobs import composed, job
from PIL import Image

from btp.core.schedule import Schedule
from btp.models.loading.checkpoint import find_checkpoint
from btp.models.loading.load import load
from btp.runner import run as worker
from btp.runner.arms import Arm
from btp.runner.devices import Machine
from btp.runner.evaluation import data as batches_module
from btp.runner.evaluation.batch_size import BatchSize
from btp.runner.evaluation.data import Collate, Feed, by_length, workers_for
from btp.runner.evaluation.evaluate import answer
from btp.runner.out_of_memory import out_of_memory
from btp.tasks.sample import Sample

STAGES = [{"site": "llm.layer.2", "keep": 0.5}, {"site": "llm.layer.4", "keep": 20}, {"site": "llm.layer.6", "keep": 0}]
NOT_ENOUGH = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."


@pytest.fixture(scope="module")
def pocket():
    """The embedded model, its task and 18 samples, two of each ability."""
    config = composed("model=pocket_mini", "trainer=cpu")
    loaded = load(config["model"], find_checkpoint(config["model"]), torch.device("cpu"))
    task = instantiate(config["task"]["dataset"])
    return loaded, task, [task[i] for i in range(18)]


def answers(pocket, folder, pruner, **trainer):
    """Rows by sample id, and the machine that made them."""
    loaded, task, samples = pocket
    config = composed("model=pocket_mini", "trainer=cpu", "trainer.workers=0", f"pruner={pruner}")
    machine = Machine(config["trainer"] | trainer, folder)
    knobs = {"balance": 0.6} if pruner == "btp" else {}
    stages = [stage | (knobs if stage["keep"] else {}) for stage in STAGES]
    arm = Arm(pruner, "method", config["pruner"]["method"], Schedule.from_config(stages))
    order = by_length(samples, loaded.processor)
    with machine.feed(samples, loaded.processor) as feed:
        return answer(loaded, arm, task, samples, feed, order, folder / pruner, None, None, machine), machine


@pytest.mark.parametrize(
    "pruner", ["btp", *(pytest.param(name, marks=pytest.mark.long) for name in ("fastv", "random"))]
)
def test_results_do_not_depend_on_the_batch(pocket, pruner, tmp_path):
    """One at a time, in threes, in eights with a rest: the same words, tokens at every stage, and scores."""
    _, task, samples = pocket
    one, three, eight = (answers(pocket, tmp_path / str(n), pruner, batch=n)[0] for n in (1, 3, 8))
    assert any(len(stage["kept"]) == 20 for row in one.values() for stage in row["stages"])
    for sample in samples:
        row = one[sample.id]
        for other in (three[sample.id], eight[sample.id]):
            assert {k: v for k, v in other.items() if k != "kl"} == {k: v for k, v in row.items() if k != "kl"}
            assert task.score(sample, other["prediction"]) == task.score(sample, row["prediction"])
    assert len({row["prediction"] for row in one.values()}) > 5


def test_other_processes_make_the_same_batches_and_stay(pocket, capfd):
    """The same inputs in the same order from two processes, which the next pass finds again; nothing is said."""
    loaded, _, samples = pocket
    loaded.processor.tokenizer(["in use before the fork"] * 8)
    order = by_length(samples, loaded.processor)
    here, ahead = Feed(samples, loaded.processor), Feed(samples, loaded.processor, workers=2)
    pids = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for share in (1.0, 0.25):
            shares = dict.fromkeys(order, share)
            pairs = zip(here.batches(order, 4, shares), ahead.batches(order, 4, shares), strict=True)
            for mine, theirs in pairs:
                assert mine.indices == theirs.indices
                assert [s.id for s in mine.samples] == [s.id for s in theirs.samples]
                assert all(torch.equal(mine.inputs[key], theirs.inputs[key]) for key in mine.inputs)
                assert not any(len(s.images) for s in theirs.samples), "pictures stay where they were looked at"
            pids.append({child.pid for child in multiprocessing.active_children()})
    assert pids[0] == pids[1]
    assert len(pids[0]) >= 2
    ahead.close()
    assert not pids[0] & {child.pid for child in multiprocessing.active_children()}
    assert not capfd.readouterr().err


def test_a_question_that_holds_the_models_mark_is_refused(pocket):
    """It would be taken for one more picture."""
    loaded, _, samples = pocket
    wrong = replace(samples[3], question="what is <image> ?")
    with pytest.raises(ValueError, match=f"sample {samples[3].id}: its question holds <image>, by which"):
        Collate(loaded.processor)([wrong])


def test_a_pass_that_was_left_does_not_spoil_the_next(pocket):
    """Batches that nobody took are not handed to who comes later."""
    loaded, _, samples = pocket
    with Feed(samples, loaded.processor, workers=1) as feed:
        for _ in feed.batches(range(12), 2):
            break
        assert [batch.indices for batch in feed.batches([17, 3, 5], 2)] == [[17, 3], [5]]


def test_a_size_that_changes_counts_for_what_comes_later(pocket):
    loaded, _, samples = pocket
    batches = Feed(samples, loaded.processor).batches(range(10), 4)
    seen = []
    for batch in batches:
        seen.append(batch.indices)
        batches.size = 3
    assert seen == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]


@pytest.mark.parametrize(
    ("cores", "world", "asked", "workers"),
    [
        (1, 1, None, 0),
        (2, 1, None, 1),
        (2, 2, None, 0),
        (64, 1, None, 4),
        (64, 16, None, 3),
        (1, 1, 3, 3),
        (9, 1, 0, 0),
    ],
)
def test_processes_that_make_batches_take_cores_that_are_left(cores, world, asked, workers, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(batches_module, "_shared_memory", lambda: 2 << 30)
    assert workers_for(asked, world) == workers
    monkeypatch.setattr(batches_module, "_shared_memory", lambda: 64 << 20)
    assert workers_for(asked, world) == (asked or 0), "a container with little shared memory makes batches in place"


@pytest.mark.parametrize("family", ["qwen2vl", "llava_next"])
def test_prompts_of_like_length_come_together_the_longest_first(family):
    """The order is that of the prompts as the processor makes them, pictures included, within each ability."""
    processor = kit.loaded(family).processor
    pictures = [Image.fromarray(np.zeros((h, w, 3), np.uint8)) for w, h in ((28, 28), (112, 56), (84, 140))]
    questions = ["yes ?", "is there a red circle left of the blue square ?"]
    samples = [
        Sample(f"{ability}-{i}-{len(question)}", (picture,), question, "", ability)
        for question in questions
        for i, picture in enumerate(pictures)
        for ability in "ba"
    ]
    made = [Collate(processor)([s]).inputs["input_ids"].shape[1] for s in samples]
    assert len(set(made)) >= 4
    order = by_length(samples, processor)
    found = [(samples[i].ability, -made[i]) for i in order]
    assert found == sorted(found)
    assert order != list(range(len(samples)))


class Crowded:
    """Lets the real model run out of memory in the middle of its decoder, with more rows than there is room for."""

    def __init__(self, host, room, error):
        self.room, self.error, self.failed = room, error, []
        self.hook = host.layers[5].register_forward_pre_hook(self.look)

    def look(self, module, args):
        if len(args[0]) > self.room:
            self.failed.append(len(args[0]))
            raise self.error


@pytest.fixture
def crowded(pocket):
    """Makes the model run out of memory."""
    made = []

    def make(room, error=None, host=pocket[0].host):
        made.append(Crowded(host, room, error or torch.OutOfMemoryError("CUDA out of memory.")))
        return made[-1]

    yield make
    for each in made:
        each.hook.remove()


@pytest.fixture(scope="module")
def plenty(pocket, tmp_path_factory):
    """Rows by sample id where memory never ends."""
    return answers(pocket, tmp_path_factory.mktemp("plenty"), "btp", batch=8)[0]


@pytest.mark.long
@pytest.mark.parametrize(
    ("workers", "error"), [(0, torch.OutOfMemoryError("CUDA out of memory.")), (1, RuntimeError(NOT_ENOUGH))]
)
def test_where_memory_ends_the_batch_is_halved_and_nothing_else_changes(
    pocket, crowded, plenty, tmp_path, capsys, error, workers
):
    """Ten rows, then five, then two, once each; the rest goes on in twos, with every answer as it would be."""
    model = crowded(2, error)
    tight, machine = answers(pocket, tmp_path / "tight", "btp", batch=10, workers=workers)
    assert model.failed == [10, 5]
    assert machine.batch.describe() == {"asked": 10, "used": 2}
    said = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    assert [line[line.index("out of") :] for line in said] == [
        "out of memory with 10 samples in a batch: going on with 5 (trainer.batch=5 starts with it)",
        "out of memory with 5 samples in a batch: going on with 2 (trainer.batch=2 starts with it)",
    ]
    for name, row in plenty.items():
        assert {k: v for k, v in tight[name].items() if k != "kl"} == {k: v for k, v in row.items() if k != "kl"}
    lines = (tmp_path / "tight" / "btp" / "rows-0.jsonl").read_text().splitlines()
    assert len(lines) == len({json.loads(line)["sample"] for line in lines}) == 18


@pytest.mark.long
def test_no_room_for_a_single_sample_is_said_with_what_to_change(pocket, crowded, tmp_path):
    crowded(0)
    with pytest.raises(RuntimeError, match=r"a smaller trainer\.batch does not help\. Set model\.dtype=bfloat16"):
        answers(pocket, tmp_path, "btp", batch=4)


def test_other_errors_are_not_taken_for_it(pocket, crowded, tmp_path):
    model = crowded(0, RuntimeError("device-side assert triggered"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        answers(pocket, tmp_path, "btp", batch=4)
    assert model.failed == [4]
    assert not out_of_memory(ValueError("out of memory"))
    assert out_of_memory(MemoryError())


@pytest.mark.slow
def test_a_run_says_what_fits_and_calibrates_the_same(tmp_path, monkeypatch, crowded):
    """Calibration and answers in smaller batches: the same curves, and run.json says what was asked and used."""
    words = ["cost.enabled=false", "calibration.samples=16", "trainer.workers=0", "limit=9", "overlays=0"]
    words += ["~pruner@controls.random", "~pruner@controls.downsampled"]
    plenty = job(tmp_path / "plenty", *words)
    assert json.loads((plenty / "run.json").read_text())["batch"] == {"asked": 32, "used": 32}
    models = []

    def load_crowded(*args):
        loaded = load(*args)
        models.append(crowded(4, host=loaded.host))
        return loaded

    monkeypatch.setattr(worker, "load", load_crowded)
    monkeypatch.setattr(
        "btp.runner.evaluation.ways.generate.check_inert", lambda *args: {}
    )  # eight samples at once, whatever there is room for
    tight = job(tmp_path / "tight", *words)
    (model,) = models
    assert model.failed[0] == 16, "the calibration set, in one batch"
    assert json.loads((tight / "run.json").read_text())["batch"] == {"asked": 32, "used": 4}
    before, after = (yaml.safe_load((run / "calibration.yaml").read_text())["curves"] for run in (plenty, tight))
    assert after["samples"] == before["samples"] == 16
    for curve in ("changed", "attention"):
        assert after[curve] == pytest.approx(before[curve], abs=2e-5)


def test_a_batch_that_came_too_large_is_not_tried(pocket):
    """Batches that were on their way when memory ended are made again in the size that fits."""
    loaded, _, samples = pocket
    batches, size, seen = Feed(samples, loaded.processor).batches(range(7), 7), BatchSize(7, "trainer.batch"), []
    size.used = 3
    size.fit(next(iter(batches)), batches.again, lambda batch: seen.append(batch.indices))
    assert seen == [[0, 1, 2], [3, 4, 5], [6]]


class Cramped(Collate):
    """Makes batches of two at most."""

    def __call__(self, samples, indices=(), shares=()):
        if len(samples) > 2:
            raise MemoryError
        return super().__call__(samples, indices, shares)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_cannot_be_made_is_halved(pocket, plenty, tmp_path, monkeypatch, capsys, workers):
    """Memory may end while pictures are read, in this process or in one that makes batches ahead."""
    monkeypatch.setattr(
        Machine, "feed", lambda machine, samples, processor: Feed(samples, processor, workers, False, Cramped)
    )
    tight, machine = answers(pocket, tmp_path / "tight", "btp", batch=8)
    assert machine.batch.describe() == {"asked": 8, "used": 2}
    assert "out of memory with 8 samples in a batch: going on with 4" in capsys.readouterr().out
    assert {n: r["prediction"] for n, r in tight.items()} == {n: r["prediction"] for n, r in plenty.items()}


def test_a_sample_that_cannot_be_made_alone_is_said(pocket, tmp_path, monkeypatch):
    def full(self, *args):
        raise MemoryError

    monkeypatch.setattr(Cramped, "__call__", full)
    monkeypatch.setattr(
        Machine, "feed", lambda machine, samples, processor: Feed(samples, processor, 0, False, Cramped)
    )
    with pytest.raises(RuntimeError, match=r"out of memory with a single sample, so a smaller trainer\.batch"):
        answers(pocket, tmp_path, "btp", batch=4)


def test_pictures_of_too_many_pixels_are_not_decoded_together(pocket, monkeypatch):
    """A batch takes fewer samples then, down to one."""
    loaded, _, samples = pocket
    monkeypatch.setattr(batches_module, "MOST_PIXELS", 100)
    feed = Feed(samples[:6], loaded.processor, pixels=[40, 50, 20, 300, 10, 10])
    assert [batch.indices for batch in feed.batches(range(6), 4)] == [[0, 1], [2], [3], [4, 5]]


def test_an_arm_of_late_questions_needs_earlier_ones(pocket):
    """Which pocketvqa draws where it is asked to."""
    loaded, _, samples = pocket
    with (
        Feed(samples, loaded.processor) as feed,
        pytest.raises(ValueError, match=r"sample test-0-000000 has no question "),
    ):
        feed.batches([0, 1], 2).earlier([0, 1])
