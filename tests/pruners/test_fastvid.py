"""FastVID: segments, anchors and what flows into them, by hand."""

from dataclasses import replace

import pytest
import torch
from hand import stage, video

from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.ops.anchors import into_anchors
from btp.ops.frames import frames_apart
from btp.ops.merge import merge_states
from btp.pruners.fastvid import FastVID

AT = "llm.input"
RECEIVED = Signal("attention", "vision.feature", "mean", "probs")
SETTINGS = {
    "segments": 1,
    "threshold": 0.9,
    "salient": 0.5,
    "salience": "none",
    "every": 2,
    "neighbours": 2,
    "share": 0.6,
}


def fastvid(**changed):
    return FastVID(**SETTINGS | changed)


def segments(method, seen):
    apart = frames_apart(seen.image, seen.coord[..., 0], seen.valid & (seen.coord[..., 1] >= 0))
    x = seen.hidden[apart.row[:, None], apart.index.clamp(min=0)]
    return method._segments(seen, apart, x, apart.index >= 0)


def clip(*angles):
    """Frames of one token, at these angles."""
    radians = torch.deg2rad(torch.tensor(angles, dtype=torch.float32))
    return video(len(angles), 1, 1, torch.stack([radians.cos(), radians.sin()], dim=-1).tolist())


def test_segments_by_hand():
    """Neighbours 10, 80, 20, 5 degrees apart: one end below 0.9 (26 degrees); three segments take 20 as well."""
    seen = clip(0, 10, 90, 110, 115)
    assert segments(fastvid(), seen) == [0, 0, 1, 1, 1]
    assert segments(fastvid(segments=3), seen) == [0, 0, 1, 2, 2]
    assert segments(fastvid(threshold=-1.0), seen) == [0] * 5
    assert segments(fastvid(threshold=1.1), seen) == [0, 1, 2, 3, 4]
    two = replace(seen, image=torch.tensor([[0, 0, 0, 1, 1]]))
    assert segments(fastvid(threshold=-1.0), two) == [0, 0, 0, 1, 1]  # a segment has one video


def test_anchors_take_in_by_hand():
    """0.6 of the anchor and 0.4 of the mean of two; a member flows within its group, and is dropped without one."""
    x = torch.tensor([[[1.0, 0], [2, 2], [4, 0], [0, 1], [0, 5]]])
    anchor = torch.tensor([[True, False, False, False, False]])
    member = torch.tensor([[False, True, True, False, True]])
    plan = into_anchors(x, anchor, member, torch.tensor([[0, 0, 0, 0, 1]]), 0.6)
    assert plan.target.tolist() == [[0, 0, 0, 3, -1]]
    states = merge_states(x, torch.tensor([[0, 3]]), plan)
    torch.testing.assert_close(states, torch.tensor([[[0.6 + 0.4 * 3, 0.4 * 1], [0, 1]]]))


def test_shares_of_frames():
    """Every second frame of a segment has anchors; full frames hand on."""
    method = fastvid()
    assert method._shared([0, 0, 0, 1], [2, 2, 2, 2], [9] * 4) == [3, 0, 3, 2]
    assert method._shared([0, 0, 0, 1], [2, 2, 2, 2], [2, 4, 2, 4]) == [2, 2, 2, 2]


def test_example():
    """Two alike frames are a segment: its four places go to the first frame, whose tokens are all of them."""
    seen = video(2, 2, 2, [[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]] * 2)
    selection = fastvid().select(seen, Signals(), stage(AT, 4))
    assert selection.keep.tolist() == [[0, 1, 2, 3]]
    assert selection.merge.target.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3]]
    torch.testing.assert_close(merge_states(seen.hidden, selection.keep, selection.merge), seen.hidden[:, :4])


def test_salient_tokens_stay_as_they_are():
    """Half of each frame's two are the most attended; the other half of the segment are anchors of the first frame."""
    seen = video(2, 2, 2, [[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]] * 2)
    attention = torch.tensor([0.0, 0, 0, 1, 0, 1, 0, 0]).view(1, 1, 1, 8)
    selection = fastvid(salience="received").select(seen, Signals({RECEIVED: attention}), stage(AT, 4))
    kept = selection.keep[0].tolist()
    assert {3, 5} <= set(kept)
    assert all(i < 4 for i in kept if i != 5)
    assert selection.merge.weight[0, 3] == selection.merge.weight[0, 5] == 1
    assert fastvid(salience="received").needs(stage(AT, 4)) == (RECEIVED,)
    assert fastvid().needs(stage(AT, 4)) == ()


def test_a_newline_stays():
    seen = video(3, 2, 2, newlines=1)
    assert fastvid().select(seen, Signals(), stage(AT, 5)).keep[0, -1] == 12


def test_messages():
    """Settings out of range and other sites are refused."""
    for wrong, message in (
        ({"salience": "cls"}, r"pruner.method.salience is 'cls'. Choose from: received, none"),
        ({"segments": 0}, r"pruner.method.segments is 0. Write an integer of 1 or more"),
        ({"share": 2}, r"pruner.method.share is 2. Write a share in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            fastvid(**wrong)
    with pytest.raises(ValueError, match=r"schedule.0.site is llm.layer.2, but pruner 'fastvid' compares frames"):
        fastvid().check(Schedule.from_config([{"site": "llm.layer.2", "keep": 0.5}]))
