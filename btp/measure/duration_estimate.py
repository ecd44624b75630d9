"""Estimated duration of a measurement on this machine: operations over a speed that is measured first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from btp.measure.architecture import Architecture, Stack
from btp.measure.clock import Clock, synchroniser
from btp.measure.roofline import Device, Times, roofline

TRIED_TOKENS = 128  # rows of the product that is timed
TRIED_WIDTH = 4096  # most columns of either side of it
TRIES = 3


def try_speed(device: torch.device, dtype: torch.dtype, stack: Stack, now: Clock = time.perf_counter) -> Device:
    """Speed of the device on matrix products of the model's sizes: of many tokens, and of one, which reads the weights.

    Takes about a second on a slow CPU and some 100 MB.

    Args:
        device: Device that will compute.
        dtype: Data type of the weights.
        stack: the decoder's sizes; large ones are tried at 4096.
        now: reads the clock, in seconds.
    """
    rows, columns = min(stack.hidden, TRIED_WIDTH), min(stack.ffn, TRIED_WIDTH)
    weight = torch.full((rows, columns), 0.01, device=device, dtype=dtype)
    sync = synchroniser(device)

    def best(tokens: int) -> float:
        x = torch.full((tokens, rows), 0.01, device=device, dtype=dtype)
        _ = x @ weight  # the first one sets up kernels
        return max(min(_timed(lambda: x @ weight, sync, now) for _ in range(TRIES)), 1e-9)

    with torch.inference_mode():
        many, one = best(TRIED_TOKENS), best(1)
    return Device(2 * TRIED_TOKENS * weight.numel() / many, weight.numel() * weight.element_size() / one)


def _timed(work: Callable[[], object], sync: Callable[[], None], now: Clock) -> float:
    sync()
    start = now()
    work()
    sync()
    return now() - start


def times(
    speed: Device,
    sizes: Architecture,
    visual: Sequence[float],
    text: int,
    *,
    batch: int,
    output: int,
    tower: float,
    itemsize: int,
) -> Times:
    """Seconds of one batch; launches, norms and selection cost nothing here.

    Args:
        speed: Speed of the device.
        visual, text: visual tokens that enter each decoder layer, and text tokens, of a prompt.
        batch: prompts at a time.
        output: tokens to be generated.
        tower: operations of vision tower and projector for one prompt.
        itemsize: bytes of a number.
    """
    found = roofline(speed, sizes, visual, text, batch=batch, output=output, itemsize=itemsize)
    return Times(speed.seconds(batch * tower, 0), 0.0, found.prefill, found.per_token)


def seconds_of_rounds(baseline: Times, candidate: Times, *, repeats: int, warmup: int, output: int) -> float:
    """Seconds in which `btp.measure.cost.measure` holds one arm against the plain model.

    A round runs each side three times up to the first token, once of them to the last; two runs more a side are
    counted, up to the first token and to the last, one is checked, and the plain cache is looked at once.
    """
    rounds = repeats + warmup
    firsts, steps = 3 * rounds + 3, (rounds + 2) * (output - 1)
    sides = sum(firsts * side.first + steps * side.per_token for side in (baseline, candidate))
    return sides + baseline.first
