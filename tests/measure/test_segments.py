"""Lengths that the vision tower's attention runs over."""

import pytest

from btp.measure import segments
from btp.measure.architecture import Encoder, Stack

STACK = Stack(layers=3, hidden=8, ffn=8, heads=2, kv_heads=2, head_dim=4, gated=False)


def test_square():
    """Each picture is one sequence in every layer, class token included."""
    encoder = Encoder(STACK, patch_inputs=12, patches=9, class_tokens=1)
    assert segments.square(encoder, 2) == [[10, 10]] * 3
    assert segments.square(encoder, 0) == [[]] * 3


def test_windows():
    """6 x 10 patches merge to 3 x 5 tokens; windows of 2 x 2 leave remainders at both far sides."""
    encoder = Encoder(STACK, 12, merge=2, window=2, full_layers=frozenset({1}))
    found = segments.packed(encoder, [(1, 6, 10)])
    assert found[1] == [60]
    assert found[0] == found[2] == [16, 16, 8, 8, 8, 4]
    assert [sum(lengths) for lengths in found] == [60] * 3


def test_frames_do_not_see_each_other():
    """Two frames of a video and a picture are three sequences."""
    encoder = Encoder(STACK, 12, merge=2, window=0)
    assert segments.packed(encoder, [(2, 4, 4), (1, 2, 4)]) == [[16, 16, 8]] * 3


def test_any_size_needs_a_grid():
    """The number of pictures is not enough where they have any size."""
    with pytest.raises(ValueError, match=r"pictures of any size.*segments=packed"):
        segments.square(Encoder(STACK, 12, merge=2), 1)
