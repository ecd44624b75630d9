"""Events of a video: the worked example of the method's card, and the ends of every range."""

import pytest
import torch

from btp.ops.video_events import best_of_each, cut_events, event_keeps, judge_events, pool_frame, pooled_side, ratio_for

SIMILARITY = [0.95, 0.40, 0.90, 0.92, 0.35, 0.88, 0.97, 0.60, 0.91]
MATCH = [0.10, 0.12, 0.30, 0.05, 0.28, 0.07, 0.11, 0.13, 0.09, 0.22]


def test_worked_example():
    """Ten frames of 8 x 8 patches, three events of which two matter, two key frames each, averaged."""
    spans = cut_events(SIMILARITY, 3)
    assert spans == ((0, 2), (2, 5), (5, 10))
    events = judge_events(spans, MATCH, key_events=2, key_frames=2)
    assert events.key == (False, True, True)
    assert events.match == (0.12, 0.30, 0.22)
    tokens = [pooled_side(8, stride, "average") ** 2 for stride in events.strides()]
    assert tokens == [4, 4, 16, 4, 16, 4, 4, 16, 4, 16]
    lengths = [sum(tokens[first:end]) + 1 for first, end in spans]
    assert lengths == [9, 37, 45]
    first = event_keeps(lengths, events.key, 0.76, "half")
    assert first == [4, 29, 35]
    assert event_keeps(first, events.key, 0.76, "none") == [0, 23, 27]


def test_short_videos():
    """A video of fewer frames than events has as many as frames; one of a single frame has one."""
    assert cut_events([0.5, 0.4], 5) == ((0, 1), (1, 2), (2, 3))
    assert cut_events([], 5) == ((0, 1),)
    assert judge_events(((0, 1),), [0.3], 3, 6).strides() == [2]


def test_equal_numbers_go_to_the_first():
    """Of equal cosines the earlier cut, of equal matches the earlier event and frame."""
    assert cut_events([0.5, 0.5, 0.5], 2) == ((0, 1), (1, 4))
    events = judge_events(((0, 2), (2, 4)), [0.1, 0.1, 0.1, 0.1], 1, 1)
    assert events.key == (True, False)
    assert events.key_frames == {0, 2}


@pytest.mark.parametrize(("mode", "sides"), [("bilinear", (14, 7, 4)), ("average", (13, 6, 3)), ("max", (13, 6, 3))])
def test_sides_of_a_real_tower(mode, sides):
    """A frame of 27 x 27 patches, as SigLIP's at 384 pixels."""
    frame = torch.randn(27, 27, 3)
    for stride, side in zip((2, 4, 8), sides, strict=True):
        assert pooled_side(27, stride, mode) == side
        assert pool_frame(frame, stride, mode).shape == (side, side, 3)


def test_a_share_that_meets_a_count():
    """The largest share whose events together keep no more; each keeps one at least."""
    lengths, key = [9, 37, 45], (False, True, True)
    for total in (20, 50, 68, 91):
        ratio = ratio_for(lengths, key, total, "half")
        assert sum(event_keeps(lengths, key, ratio, "half")) <= total
        assert ratio == 1.0 or sum(event_keeps(lengths, key, ratio + 0.001, "half")) > total
    assert sum(event_keeps(lengths, key, ratio_for(lengths, key, 0, "half"), "half")) == 3


def test_best_of_each_event():
    """Tokens of no event stay, whatever their score; ties go to the lowest index."""
    events = torch.tensor([0, 0, 0, -1, 1, 1])
    scores = torch.tensor([1.0, 2.0, 2.0, -9.0, 0.0, 5.0])
    assert best_of_each(scores, events, [1, 1]).tolist() == [1, 3, 5]
    assert best_of_each(scores, events, [2, 0]).tolist() == [1, 2, 3]
