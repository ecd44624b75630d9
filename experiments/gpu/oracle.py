"""Removing equals hiding on the device: in each precision, with each attention function, in prefill and decode.

Hiding is the tests' own (tests/engine/oracle.py) and shares no code with the engine. In 16 bits two ways that are equal
still round differently, so the distance between removing and hiding is held against that between hiding in 16 and in 32
bits; all answers are forced to the same tokens. Hiding needs a mask, so that it runs under SDPA whatever is tried.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.utils.import_utils import is_flash_attn_2_available

from btp.core.schedule import Schedule, Stage
from btp.engine.attach import attach
from btp.models.lvlm import LVLM
from btp.pruners.random import Random
from experiments.gpu.setting import ROOT, Cell, LeftOut, Setting

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "engine")]
import oracle as by_hand  # noqa: E402
import tiny  # noqa: E402

FLASH = "flash_attention_2"
PRECISIONS = ("float32", "bfloat16", "float16")
ROWS = {
    "one row": [[3, "i", 4]],
    "left padded": [[2, (2, 3), 5], [1, "i", 1, (1, 2), 2]],
}
SCHEDULES = (
    Schedule((Stage("llm.layer.1", 5), Stage("llm.layer.3", 2))),
    Schedule((Stage("llm.input", 4),)),
)
STEPS = 3  # tokens: a prefill and two decode steps
EXACT = 5e-5  # in 32 bits, of the largest logit
ROUNDINGS = 3  # in 16 bits, of the distance to 32 bits
SEEN = 1e-3  # that hiding must change at the least, or nothing was proved


def cells(setting: Setting) -> Iterator[Cell]:
    """A family with one attention function in one precision, over all rows and schedules."""
    for family in ("llava",) if setting.tiny else tuple(tiny.FAMILIES):
        for attention in ("sdpa",) if setting.tiny else ("sdpa", "eager", FLASH):
            for precision in PRECISIONS[1:] if attention == FLASH else PRECISIONS:
                yield (
                    f"{family}, {attention}, {precision}",
                    functools.partial(worst, setting, family, attention, precision),
                )


def worst(setting: Setting, family: str, attention: str, precision: str) -> dict[str, Any]:
    """The largest distances of any case, of the largest logit: error, what rounding does, what hiding does.

    Raises:
        LeftOut: flash-attn is not installed.
    """
    if attention == FLASH and not is_flash_attn_2_available():
        raise LeftOut("needs the package flash-attn and a GPU that it supports")
    exact = _model(setting.device, family, "sdpa", "float32")
    hiding = _model(setting.device, family, "sdpa", precision)
    mine = _model(setting.device, family, attention, precision)
    rows = list(ROWS.values())[setting.tiny :]
    prompts = [{key: value.to(setting.device) for key, value in tiny.prompts(exact, row).items()} for row in rows]
    schedules = SCHEDULES[: 1 if setting.tiny else None]
    found = [compare(exact, hiding, mine, inputs, schedule) for inputs in prompts for schedule in schedules]
    return verdict(found, precision)


@dataclass(frozen=True)
class Distances:
    """Of one case, as `worst`; inert: with hooks that keep everything, logits are the same to the bit."""

    error: float
    rounding: float
    effect: float
    inert: bool


def verdict(found: Sequence[Distances], precision: str) -> dict[str, Any]:
    """The worst of some cases, and whether it is what this precision allows."""
    error, rounding = (max(getattr(one, name) for one in found) for name in ("error", "rounding"))
    effect, inert = min(one.effect for one in found), all(one.inert for one in found)
    bound = EXACT if precision == "float32" else ROUNDINGS * rounding
    holds = inert and error <= bound and effect > max(SEEN, error)
    return {"holds": holds, "error": error, "rounding": rounding, "effect": effect, "inert": inert}


def compare(exact: LVLM, hiding: LVLM, mine: LVLM, inputs: Mapping[str, Tensor], schedule: Schedule) -> Distances:
    """Prune `mine`, hide the same in `hiding` and in `exact`, which is in 32 bits."""
    device = exact.device
    with attach(exact, _pruner(), schedule) as trace:
        tokens, _ = by_hand.steps(exact, inputs, STEPS)
    gone = by_hand.withdrawn(inputs, exact.visual_mask(inputs), trace[0])
    with torch.device(device):
        with by_hand.hiding(exact, inputs, gone):
            truth = _logits(exact, inputs, tokens)
        with by_hand.hiding(hiding, inputs, gone):
            hidden = _logits(hiding, inputs, tokens)
    with attach(mine, _pruner(), schedule):
        cut = _logits(mine, inputs, tokens)
    plain = _logits(mine, inputs, tokens)
    with attach(mine, _pruner(), Schedule(tuple(replace(stage, keep=1.0) for stage in schedule))):
        inert = torch.equal(plain, _logits(mine, inputs, tokens))
    scale = truth.abs().max()
    error, rounding, effect = (
        (a - b).abs().max() / scale for a, b in ((cut, hidden), (hidden, truth), (plain, hidden))
    )
    return Distances(float(error), float(rounding), float(effect), inert)


class _Forced:
    """Makes the next token the one that is wanted."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        wanted = self.tokens[:, ids.shape[1], None]
        return torch.full_like(scores, -torch.inf).scatter(1, wanted, 0)


def _logits(lvlm: LVLM, inputs: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """[steps, B, vocabulary] of the answer `tokens`, in float32."""
    cast = {key: value.to(lvlm.dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    forced: Any = LogitsProcessorList([_Forced(tokens)])
    return by_hand.steps(lvlm, cast, STEPS, logits_processor=forced)[1].float()


def _pruner() -> Random:
    return Random(seed=0, salt="none")


@functools.lru_cache(maxsize=3)
def _model(device: torch.device, family: str, attention: str, precision: str) -> LVLM:
    lvlm = tiny.FAMILIES[family](attention, getattr(torch, precision))
    lvlm.model.to(device)
    return lvlm
