"""Sweeps for tests: what they came to, whatever happened to them on the way."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
from jobs import ROOT, Noted

ASIDE = ("run", "folder", "command", "hardware", "note")  # where a run lies and ran


def words(output, *more):
    """A sweep over cells that take seconds."""
    quick = ["experiment=smoke", "trainer=cpu", "trainer.batch=4", "logger=none", "cost.enabled=false", "overlays=0"]
    return ["-m", *quick, f"output={output}", *more]


def start(home, *more, env=None):
    """`run.py -m` with these words; `env` in place of the variables that are set here."""
    return Noted(words(home / "out", *more, f"hydra.sweep.dir={home / 'sweep'}"), env)


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
    """`python -m btp.sweep ...`, ended; `env` in place of the variables that are set here."""
    line = [sys.executable, "-m", "btp.sweep", *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1"} if env is None else env
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
