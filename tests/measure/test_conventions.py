"""A published count is one formula and a few switches, and each switch does what it says."""

import pytest

from btp.measure.architecture import Architecture, Encoder, Stack
from btp.measure.flops import prefill, vision, visual_pdrop
from btp.measure.segments import square
from experiments.cost.conventions import Convention, cache_bytes, count

SMALL = Stack(layers=2, hidden=8, ffn=12, heads=2, kv_heads=1, head_dim=4, gated=True)
TOWER = Encoder(Stack(1, 4, 6, 2, 2, 2, gated=False), patch_inputs=3, patches=4, class_tokens=1)
SIZES = Architecture(SMALL, vocab=10, vision=TOWER, projector=((4, 8), (8, 8)))


def test_by_hand():
    """Three tokens, then one: 4nd^2 + 2n^2d + 3ndm with d 8 and m 12."""
    first, second = 4 * 3 * 64 + 2 * 9 * 8 + 3 * 3 * 8 * 12, 4 * 64 + 2 * 8 + 3 * 8 * 12
    assert count(Convention(), SIZES, [3, 1]) == first + second
    assert count(Convention(mean=True), SIZES, [3, 1]) == (first + second) / 2
    assert count(Convention(multiply_add=2), SIZES, [3, 1]) == 2 * (first + second)
    assert count(Convention(), SIZES, [3, 1], modules=5) == first + second + 5
    assert count(Convention(multiply_add=2), SIZES, [3, 1], modules=5) == 2 * (first + second + 5)


@pytest.mark.parametrize(
    ("convention", "less"),
    [
        (Convention(matrices=2), 3 * 8 * 12 + 1 * 8 * 12),  # a matrix of d x m fewer
        (Convention(grouped=True), (3 + 1) * 8 * 8),  # keys and values half as wide: one d x d fewer
    ],
)
def test_what_a_switch_leaves_out(convention, less):
    """Against the full formula, on three tokens and then one."""
    assert count(Convention(), SIZES, [3, 1]) - count(convention, SIZES, [3, 1]) == less


def test_what_a_switch_adds():
    """Text is more tokens, softmax some operations a pair, and the tower stands beside the decoder."""
    plain = count(Convention(), SIZES, [3, 1])
    assert count(Convention(), SIZES, [3, 1], text=2) == plain
    assert count(Convention(text=True), SIZES, [3, 1], text=2) == count(Convention(), SIZES, [5, 3])
    assert count(Convention(softmax=5), SIZES, [3, 1]) - plain == 5 * 2 * (9 + 1)
    alone = vision(Architecture(SMALL, 10, TOWER, ()), square(TOWER, 3))
    assert count(Convention(vision=True), SIZES, [3, 1], pictures=3) - plain == alone / 2
    assert count(Convention(vision=True, multiply_add=2), SIZES, [3, 1], pictures=3) - 2 * plain == alone


def test_relatives():
    """The field's formula is one of them; ours is another, with tower, projector and output head."""
    assert count(Convention(), SIZES, [7, 2]) == visual_pdrop([7, 2], 8, 12)
    ours = count(Convention(multiply_add=2, grouped=True, text=True), SIZES, [7, 2], text=4)
    assert ours == prefill(SIZES, [(11,), (6,)]) - 2 * 8 * 10


def test_cache():
    """Keys and values of one head of 4 in 16 bits; of two where sharing is not counted."""
    assert cache_bytes(SMALL, [3, 1]) == 2 * 4 * 2 * 4
    assert cache_bytes(SMALL, [3, 1], grouped=False) == 2 * cache_bytes(SMALL, [3, 1])
    assert cache_bytes(SMALL, [3, 1], itemsize=4) == 2 * cache_bytes(SMALL, [3, 1])


def test_what_is_left_out():
    """Said in words, and the formula as a paper prints it."""
    assert Convention().formula == "4nd^2 + 2n^2d + 3ndm"
    assert Convention().left_out == ("text", "vision tower", "softmax", "projector", "selection", "output head")
    rich = Convention(2, 2, grouped=True, text=True, softmax=5, vision=True)
    assert rich.formula == "2(2n(d_q + d_kv)d + 2n^2d + 2ndm) + 5n^2h"
    assert rich.left_out == ("third MLP matrix", "projector", "selection", "output head")


def test_messages():
    """Layers that do not fit, and a tower that is not there."""
    with pytest.raises(ValueError, match=r"visual has 1 layers, but the architecture has 2\. Give every layer"):
        count(Convention(), SIZES, [3])
    with pytest.raises(ValueError, match="counts the vision tower, but the architecture has none"):
        count(Convention(vision=True), Architecture(SMALL, 10), [3, 1])
