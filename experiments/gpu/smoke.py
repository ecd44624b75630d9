"""Whole runs of the embedded model by the main command, from calibration to report."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pandas as pd
from transformers.utils.import_utils import is_flash_attn_2_available

from experiments.gpu.oracle import FLASH
from experiments.gpu.setting import ROOT, Cell, LeftOut, Setting

WAYS = (("bfloat16", "sdpa"), ("float16", "sdpa"), ("bfloat16", FLASH))
SMALL = (("float32", "sdpa"),)
PATIENCE_S = 900
SHORT = ("pruner=divprune", "limit=4", "overlays=0", "cost.enabled=false", "controls=null", "trainer.workers=0")


def cells(setting: Setting) -> Iterator[Cell]:
    """A precision and an attention function."""
    for precision, attention in SMALL if setting.tiny else WAYS:
        yield f"{precision}, {attention}", functools.partial(smoke, setting, precision, attention)


def smoke(setting: Setting, precision: str, attention: str) -> dict[str, Any]:
    """`experiment=smoke` in this precision.

    Raises:
        LeftOut: flash-attn is not installed.
    """
    if attention == FLASH and not is_flash_attn_2_available():
        raise LeftOut("needs the package flash-attn and a GPU that it supports")
    return run(setting, f"{precision}-{attention}", f"model.dtype={precision}", f"model.attention={attention}")


def run(setting: Setting, name: str, *words: str) -> dict[str, Any]:
    """A smoke run with further words; it holds where it ends and the inertness control finds no different bit.

    Raises:
        RuntimeError: it ended in an error; the text is its last lines.
    """
    output = setting.folder / "runs" / name
    trainer = "cpu" if setting.device.type == "cpu" else "auto"
    command = [sys.executable, "run.py", "experiment=smoke", f"trainer={trainer}", "logger=none", f"output={output}"]
    ended = subprocess.run(
        [*command, *(SHORT if setting.tiny else ()), *words],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_S,
    )
    if ended.returncode != 0:
        raise RuntimeError(" ".join(ended.stderr.strip().splitlines()[-3:]) or f"exit code {ended.returncode}")
    (file,) = output.glob("*/run.json")
    found = json.loads(file.read_text(encoding="utf-8"))
    rows = pd.read_parquet(file.with_name("samples.parquet"), columns=["arm", "score"])
    scores = rows.groupby("arm")["score"].mean().to_dict()
    inert = found["inert"]["identical"]
    return {
        "holds": inert,
        "inert": inert,
        "seconds": found["seconds"],
        "hardware": found["hardware"],
        "scores": scores,
    }
