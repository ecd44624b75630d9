"""Sweeps for tests: what they came to, whatever happened to them on the way."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
from command_lines import RUN, SWEEP, Started
from jobs import ROOT, command

ASIDE = ("run", "folder", "command", "hardware", "note")  # where a run lies and ran


def words(output, *more):
    """A sweep over cells that take seconds."""
    quick = ["experiment=smoke", "trainer=cpu", "trainer.batch=4", "logger=none", "cost.enabled=false", "overlays=0"]
    return ["-m", *quick, f"output={output}", *more]


def start(home, *more):
    """`run.py -m` with these words."""
    return Started(RUN, words(home / "out", *more, f"hydra.sweep.dir={home / 'sweep'}"))


def as_typed(home, *more, **kwargs):
    """The same as a user starts it, for launchers that start processes of their own; its output is read by nobody."""
    line = words(home / "out", *more, f"hydra.sweep.dir={home / 'sweep'}")
    return command(*line, stdout=subprocess.DEVNULL, **kwargs)


def resume(folder):
    """`python -m btp.sweep resume`, ended."""
    process = Started(SWEEP, ["resume", folder])
    process.wait(timeout=600)
    return process


def table(folder):
    """The comparison of a sweep, without where and when its runs were made."""
    frame = pd.read_csv(folder / "comparison.csv")
    frame = frame.drop(columns=[c for c in frame if c in ASIDE or c.startswith("reference_")])
    return frame.sort_values(["budget_asked", "arm", "tokens_avg"], ignore_index=True)


def cells(folder):
    """The cells' files."""
    return [json.loads(file.read_text()) for file in sorted((folder / "cells").glob("*.json"))]


def times_computed(output):
    """How often each sample of each arm was answered: a row is written once per computation."""
    found = Counter()
    for file in Path(output).glob(".store/answers/*/rows-*.jsonl"):
        for line in file.read_bytes().split(b"\n")[:-1]:
            found[file.parent.name, json.loads(line)["sample"]] += 1
    return found


def sweep_command(*arguments, env=None):
    """`python -m btp.sweep ...`, as a user starts it."""
    line = [sys.executable, "-m", "btp.sweep", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
