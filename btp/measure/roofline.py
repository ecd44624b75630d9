"""Roofline model: least time of every piece of work by its operations and by the bytes it moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from btp.measure.architecture import Architecture, Stack
from btp.measure.flops import layer, vision
from btp.measure.segments import Segments


@dataclass(frozen=True)
class Times:
    """Seconds of one batch.

    Attributes:
        vision: Seconds of the vision tower, with the projector where it is known.
        selection: Seconds of choosing tokens.
        prefill: Seconds of all else up to the first token.
        per_token: Seconds of every further token.
    """

    vision: float
    selection: float
    prefill: float
    per_token: float

    @property
    def first(self) -> float:
        """Time to the first token."""
        return self.vision + self.selection + self.prefill

    def until(self, output: int) -> float:
        """Time to the last of `output` tokens, at least one."""
        return self.first + (output - 1) * self.per_token

    def less(self, other: Times) -> dict[str, float]:
        """Seconds that `other` saves of these, phase by phase; negative where it takes longer."""
        return {field.name: getattr(self, field.name) - getattr(other, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Device:
    """Peak compute and bandwidth of a device.

    Attributes:
        flops: operations per second of dense matrix products in the number format used.
        bandwidth: bytes per second to and from its memory.
        reached: share of both that real kernels reach, in (0, 1].
    """

    flops: float
    bandwidth: float
    reached: float = 1.0

    def __post_init__(self) -> None:
        if min(self.flops, self.bandwidth) <= 0 or not 0 < self.reached <= 1:
            raise ValueError(
                f"A device of {self.flops:g} FLOP/s and {self.bandwidth:g} bytes/s that reaches {self.reached:g} of it "
                "computes nothing. Give both above 0, and reached in (0, 1]."
            )

    def seconds(self, flops: float, moved: float) -> float:
        """Of one piece of work: whichever takes longer, computing or moving bytes."""
        return max(flops / self.flops, moved / self.bandwidth) / self.reached


def roofline(
    device: Device,
    sizes: Architecture,
    visual: Sequence[float],
    text: float,
    *,
    batch: int,
    output: int,
    segments: Segments = (),
    itemsize: int = 2,
    selection: float = 0.0,
) -> Times:
    """Times of one batch of equal prompts, layer by layer, none overlapping another.

    Weights are read once per forward, keys and values are written once and read once per output token; activations
    stay on the chip. A decode step is that in the middle of the output. Norms, sampling and launches cost nothing.

    Args:
        device: it runs on.
        sizes: Sizes of the model.
        visual: visual tokens that enter each decoder layer.
        text: text tokens of a prompt.
        batch: prompts at a time.
        output: tokens to be generated per prompt.
        segments: what the vision tower runs over for one prompt (`btp.measure.segments`).
        itemsize: bytes of a number, of weights and cache alike.
        selection: seconds that choosing tokens takes.

    Raises:
        ValueError: another number of layers than the architecture has.
    """
    stack = sizes.decoder
    if len(visual) != stack.layers:
        raise ValueError(
            f"visual has {len(visual)} layers, but the architecture has {stack.layers}. "
            "Give every layer's visual tokens."
        )
    tokens = [n + text for n in visual]
    slot = 2 * stack.kv_heads * stack.head_dim * itemsize
    weights, head = layer_weights(stack) * itemsize, stack.hidden * sizes.vocab
    last = device.seconds(2 * batch * head, head * itemsize)

    def prefill(n: float) -> float:
        return device.seconds(batch * layer(stack, n, n**2), weights + batch * n * slot)  # type: ignore[arg-type]

    def step(n: float) -> float:
        held = n + output / 2
        flops = 2 * layer_weights(stack) + 4 * held * stack.heads * stack.head_dim
        return device.seconds(batch * flops, weights + batch * held * slot)

    return Times(
        vision=device.seconds(batch * vision(sizes, segments), vision_weights(sizes) * itemsize) if segments else 0.0,
        selection=selection,
        prefill=sum(map(prefill, tokens)) + last,
        per_token=sum(map(step, tokens)) + last,
    )


def layer_weights(stack: Stack) -> int:
    """Numbers in the matrices of one layer."""
    inner = stack.heads * stack.head_dim
    attention = 2 * inner + 2 * stack.kv_heads * stack.head_dim
    return stack.hidden * (attention + (3 if stack.gated else 2) * stack.ffn)


def vision_weights(sizes: Architecture) -> int:
    """Numbers in the matrices of vision tower and projector; 0 without a tower."""
    if sizes.vision is None:
        return 0
    stack = sizes.vision.stack
    projector = sum(a * b for a, b in sizes.projector)
    return stack.layers * layer_weights(stack) + sizes.vision.patch_inputs * stack.hidden + projector
