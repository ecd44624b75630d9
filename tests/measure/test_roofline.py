"""The least that a device needs, by hand."""

import pytest

from btp.measure.architecture import Architecture, Encoder, Stack
from btp.measure.flops import layer, vision
from btp.measure.roofline import Device, layer_weights, roofline, vision_weights
from btp.measure.segments import square

STACK = Stack(layers=2, hidden=8, ffn=12, heads=2, kv_heads=1, head_dim=4, gated=True)
TOWER = Encoder(Stack(1, 4, 6, 2, 2, 2, gated=False), patch_inputs=3, patches=4, class_tokens=1)
SIZES = Architecture(STACK, vocab=10, vision=TOWER, projector=((4, 8), (8, 8)))
WEIGHTS = 8 * (8 + 8 + 4 + 4) + 3 * 8 * 12  # q, out, k, v, and the MLP
COMPUTES, MOVES = Device(flops=1, bandwidth=1e12), Device(flops=1e12, bandwidth=1)
RUN = {"batch": 3, "output": 4, "itemsize": 2}


def test_weights():
    """Numbers in the matrices."""
    assert layer_weights(STACK) == WEIGHTS
    assert vision_weights(SIZES) == 4 * 4 * 4 + 2 * 4 * 6 + 3 * 4 + 4 * 8 + 8 * 8
    assert vision_weights(Architecture(STACK, 10)) == 0


def test_a_device_that_only_computes():
    """Operations of the prefill formula; a step passes all weights twice a multiply-add, and sees its cache."""
    found = roofline(COMPUTES, SIZES, [5, 2], 6, segments=square(TOWER, 1), **RUN)
    head = 2 * 3 * 80
    assert found.prefill == 3 * (layer(STACK, 11, 121) + layer(STACK, 8, 64)) + head
    assert found.vision == 3 * vision(SIZES, square(TOWER, 1))
    assert found.per_token == 3 * (4 * WEIGHTS + 4 * 8 * (13 + 10)) + head  # two tokens of four are in the cache
    assert found.selection == 0


def test_a_device_that_only_moves():
    """Weights once, keys and values of every prompt, the output head."""
    found = roofline(MOVES, SIZES, [5, 2], 6, segments=square(TOWER, 1), selection=7, **RUN)
    slot = 2 * 4 * 2
    assert found.prefill == pytest.approx(2 * 2 * WEIGHTS + 3 * (11 + 8) * slot + 160)
    assert found.per_token == pytest.approx(2 * 2 * WEIGHTS + 3 * (13 + 10) * slot + 160)
    assert found.vision == pytest.approx(2 * vision_weights(SIZES))
    assert found.selection == 7


def test_the_longer_of_both_layer_by_layer():
    """A layer with many tokens computes, one with few waits for its weights; less is reached than the peak."""
    weights = 2 * WEIGHTS
    between = Device(flops=layer(STACK, 6, 36) / weights, bandwidth=1)
    found = roofline(between, Architecture(STACK, 0), [20, 0], 1, batch=1, output=0)
    slow = layer(STACK, 21, 21**2) / between.flops
    assert slow > weights + 21 * 16
    assert found.prefill == pytest.approx(slow + weights + 16)
    half = roofline(Device(between.flops, 1, reached=0.5), Architecture(STACK, 0), [20, 0], 1, batch=1, output=0)
    assert half.prefill == pytest.approx(2 * found.prefill)
    assert found.vision == 0


def test_messages():
    """A device that computes nothing, and layers that do not fit."""
    with pytest.raises(ValueError, match=r"A device of 0 FLOP/s .* computes nothing"):
        Device(0, 1)
    with pytest.raises(ValueError, match="reaches 2 of it"):
        Device(1, 1, reached=2)
    with pytest.raises(ValueError, match="visual has 1 layers, but the architecture has 2"):
        roofline(MOVES, SIZES, [5], 6, **RUN)
