"""Published savings on a model of real size, beside runs of embedded models, whose prefill is mostly overhead.

Nothing is measured here: `python -m experiments.cost.measure` wrote the figures, with its command and the hardware.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("real_shapes.json")


@cache
def _known() -> dict[str, dict[str, Any]]:
    return {entry["pruner"]: entry for entry in json.loads(DATA.read_text(encoding="utf-8"))}


def real_shape(pruner: str) -> str:
    """A sentence on a pruner's published schedule on a real shape; "" where that was not measured."""
    found = _known().get(pruner)
    if found is None:
        return ""
    return (
        f"On {found['shape']} ({found['visual']} visual tokens, random weights, published schedule) its prefill was "
        f"measured {found['speedup']:.2f} times as fast as the unpruned one, of {found['promised']:.2f} that FLOPs "
        f"promise, and a token behind it took {found['step']:.2f} times as long "
        f"({found['hardware']}; docs/cost_measured.md)."
    )
