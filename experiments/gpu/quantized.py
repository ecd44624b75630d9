"""Weights in 8 and 4 bits: the embedded model pruned, and removing against hiding on what quantising left of it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from btp.core.schedule import Schedule, Stage
from btp.models.loading.quantize import KINDS
from experiments.gpu.choices import inputs_on, loaded_with
from experiments.gpu.oracle import compare, verdict
from experiments.gpu.setting import Cell, LeftOut, Setting

SCHEDULE = Schedule((Stage("llm.layer.2", 0.5), Stage("llm.layer.5", 0.2)))


def cells(setting: Setting) -> Iterator[Cell]:
    """A way of quantising."""
    for kind in KINDS:
        yield kind, functools.partial(quantized, setting, kind)


def quantized(setting: Setting, kind: str) -> dict[str, Any]:
    """As the oracle's cells. Where numbers are scaled by what is in the batch, removing rounds otherwise than hiding.

    Raises:
        LeftOut: its package is missing, or cannot compute this model here.
    """
    dtype = "float32" if setting.device.type == "cpu" else "bfloat16"
    if find_spec(KINDS[kind]) is None:
        raise LeftOut(f"needs the package {KINDS[kind]}, which is not installed")
    if kind == "4bit" and setting.device.type == "cpu":
        raise LeftOut(
            "bitsandbytes multiplies 4 bits on a CPU only at widths of whole blocks of 64; this model's is 96"
        )
    model = loaded_with(setting.device, quantize=kind, dtype=dtype)
    exact = loaded_with(setting.device)
    found = compare(exact.host, model.host, model.host, inputs_on(exact), SCHEDULE)
    return verdict([found], kind)
