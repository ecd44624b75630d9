"""What must not matter does not: batches, threads, hash seeds, the order of words, the cache, kills, and company."""

import os
import random
import signal
import subprocess
import time
from contextlib import suppress

import pandas as pd
import pytest
import torch
from jobs import command, job
from sweeps import times_computed

QUICK = ["limit=9", "trainer.workers=0", "cost.enabled=false", "overlays=0", "calibration.samples=16"]
WORDS = ["experiment=smoke", "model=pocket_mini", "logger=none", "trainer=cpu", *QUICK]
KILLS = 4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Of BTP and its controls, one sample at a time: answers and selections, the folder, and how long it took."""
    began = time.monotonic()
    run = job(tmp_path_factory.mktemp("alone"), *QUICK, "trainer.batch=1")
    return read(run), run, time.monotonic() - began


def found(output, *words):
    """Answers and selections of a run here."""
    return read(job(output, *QUICK, *words))


def read(run):
    """Answers and selections, whatever order they were made in."""
    samples, trace = (pd.read_parquet(run / f"{name}.parquet") for name in ("samples", "trace"))
    samples = samples[["arm", "sample", "prediction", "score", "tokens_avg"]]
    return [samples.sort_values(["arm", "sample"]), trace.sort_values(["arm", "sample", "order"])]


def same(one, other):
    for mine, theirs in zip(one, other, strict=True):
        pd.testing.assert_frame_equal(*(frame.reset_index(drop=True) for frame in (mine, theirs)))
    assert len(one[1])


def only_run(output):
    """The one run folder there is."""
    (state,) = output.glob("*/run.json")
    return state.parent


@pytest.mark.parametrize("words", [["trainer.batch=3"], ["trainer.batch=8"], ["trainer.batch=32"], ["cache=false"]])
def test_batches_and_the_cache_change_nothing(undisturbed, tmp_path, words):
    same(undisturbed[0], found(tmp_path, *words))


def test_threads_change_nothing(undisturbed, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(3 - min(before, 2))
    try:
        same(undisturbed[0], found(tmp_path))
    finally:
        torch.set_num_threads(before)


def test_the_order_of_words_and_hash_seeds_change_nothing(undisturbed, tmp_path):
    """One run, the second start of which recognises it."""
    for seed, words in (("1", WORDS), ("2", WORDS[::-1])):
        process = command(*words, f"output={tmp_path}", env=os.environ | {"PYTHONHASHSEED": seed})
        said, _ = process.communicate(timeout=500)
        assert process.returncode == 0, said
        same(undisturbed[0], read(only_run(tmp_path)))
    assert "this run is finished" in said


def test_equal_commands_at_once_compute_once(undisturbed, tmp_path):
    """Four of them: one works, the others wait and find what it made."""
    processes = [command(*WORDS, f"output={tmp_path}") for _ in range(4)]
    for process in processes:
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, said
    assert set(times_computed(tmp_path).values()) == {1}
    same(undisturbed[0], read(only_run(tmp_path)))


def test_kills_at_random_moments_leave_the_same_samples_trace_and_tables(undisturbed, tmp_path):
    """Hard, of everything that a start began, wherever it stood; nothing is computed twice."""
    alone, whole, seconds = undisturbed
    moments = random.Random(0)
    for _ in range(KILLS):
        process = command(*WORDS, "trainer.batch=1", f"output={tmp_path}", stdout=subprocess.DEVNULL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=moments.uniform(0, 1.5 * seconds))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    process = command(*WORDS, "trainer.batch=1", f"output={tmp_path}")
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    run = only_run(tmp_path)
    same(alone, read(run))
    pd.testing.assert_frame_equal(*(pd.read_csv(folder / "table.csv") for folder in (run, whole)))
    assert set(times_computed(tmp_path).values()) == {1}
