"""Weights in 8 and 4 bits: the embedded model pruned, and removing against hiding on what quantising left of it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
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
        LeftOut: its package is missing or cannot compute here.
    """
    dtype = "float32" if setting.device.type == "cpu" else "bfloat16"
    try:
        model = loaded_with(setting.device, quantize=kind, dtype=dtype)
    except ValueError as error:
        raise LeftOut(str(error).splitlines()[0]) from error
    exact = loaded_with(setting.device)
    found = compare(exact.host, model.host, model.host, inputs_on(exact), SCHEDULE)
    return verdict([found], kind)
