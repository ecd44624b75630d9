"""VidCom2: channels, likeness, shares and the choice, against plain loops and by hand."""

import math

import pytest
import torch
from hand import stage, video

from btp.core.schedule import Schedule
from btp.core.signals import Signals
from btp.pruners.vidcom2 import VidCom2

AT = "llm.input"
FRAMES = [[[1.0, 0], [1, 0], [0, 1]], [[1.0, 0], [1, 0], [1, 0]]]  # the third token of the first frame stands out
HIDDEN = [[*token, 9.0 * i, -9.0 * i] for frame in FRAMES for i, token in enumerate(frame)]  # two channels vary more


def vidcom2(**changed):
    return VidCom2(**{"channels": 0.5, "temperature": 0.01} | changed)


def gaussians(squared):
    return sum(math.exp(-squared / (2 * width)) for width in (0.125, 0.25, 0.5, 1, 2))


def test_likeness_by_hand():
    """Only the two channels that vary least count; centres are (5/6, 1/6), and (2/3, 1/3) of the first frame."""
    parts = vidcom2().explain(video(2, 1, 3, HIDDEN), Signals(), stage(AT, 2))
    near, far = 2 / 36, 50 / 36  # squared distances to the video's centre
    wanted = torch.tensor([[gaussians(x) for x in (near, near, far, near, near, near)]])
    torch.testing.assert_close(-parts["unlike the video"], wanted)
    wanted = torch.tensor([[gaussians(x) for x in (2 / 9, 2 / 9, 8 / 9, 0, 0, 0)]])
    torch.testing.assert_close(-parts["unlike the frame"], wanted)


def test_the_outstanding_frame_keeps_more():
    """At this temperature the first frame weighs 1.5, the second 0.5: of four tokens three and one."""
    keep = vidcom2().select(video(2, 1, 3, HIDDEN), Signals(), stage(AT, 4)).keep.tolist()
    assert keep == [[0, 1, 2, 3]]
    warm = vidcom2(temperature=1e6).select(video(2, 1, 3, HIDDEN), Signals(), stage(AT, 4)).keep.tolist()
    assert warm == [[0, 2, 3, 4]]


def test_the_outstanding_token_stays():
    """One of each frame."""
    assert vidcom2(temperature=1e6).select(video(2, 1, 3, HIDDEN), Signals(), stage(AT, 2)).keep.tolist() == [[2, 3]]


def test_against_plain_loops():
    """Random frames: the same likeness and shares as frame by frame."""
    seen, method = video(4, 2, 3), vidcom2(temperature=0.3)
    x = seen.hidden[0]
    least = x.var(0, unbiased=False).argsort()[:8]
    x = torch.nn.functional.normalize(x[:, least], dim=-1).view(4, 6, 8)
    video_centre = x.mean((0, 1))
    to_video = torch.tensor([[gaussians(float((t - video_centre).square().sum())) for t in frame] for frame in x])
    to_frame = torch.tensor([[gaussians(float((t - frame.mean(0)).square().sum())) for t in frame] for frame in x])
    scores = method.select(seen, Signals(), stage(AT, 10)).scores
    torch.testing.assert_close(scores, -(to_video + to_frame).view(1, 24))
    weight = 6 * (1 + (-to_video.mean(1) / 0.3).softmax(0) - 0.25)
    share = (10 * weight / weight.sum()).floor().long()
    share[weight.argsort(descending=True)[: 10 - int(share.sum())]] += 1
    keep = method.select(seen, Signals(), stage(AT, 10)).keep[0]
    assert torch.bincount(keep // 6, minlength=4).tolist() == share.tolist()
    for f in range(4):
        mine = scores[0, 6 * f : 6 * f + 6].topk(int(share[f])).indices.sort().values
        assert keep[keep // 6 == f].tolist() == (mine + 6 * f).tolist()


def test_newlines_stay():
    """Off the grid nothing is compared."""
    seen = video(2, 2, 2, newlines=1)
    assert vidcom2().select(seen, Signals(), stage(AT, 3)).keep[0, -1] == 8


def test_messages():
    """Settings out of range and other sites are refused."""
    with pytest.raises(ValueError, match=r"pruner.method.channels is 0. Write a share of the channels"):
        vidcom2(channels=0)
    with pytest.raises(ValueError, match=r"pruner.method.temperature is 0. Write a number above 0"):
        vidcom2(temperature=0)
    with pytest.raises(ValueError, match=r"schedule.0.site is vision.output, but pruner 'vidcom2' compares frames"):
        vidcom2().check(Schedule.from_config([{"site": "vision.output", "keep": 0.5}]))
