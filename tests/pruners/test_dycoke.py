"""DyCoke: a window of four frames by hand; first frames stay whole while there is room."""

from dataclasses import replace

import pytest
import torch
from hand import stage, tokens, video

from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signals
from btp.pruners.dycoke import DyCoke

AT = "llm.input"
METHOD = DyCoke(similar="whole", threshold=0.9)
# frames of three tokens, as angles: who is compared with whom is all that counts
ANGLES = [[0, 0, 0], [10, 50, 90], [60, 5, 20], [60, 35, 100], [90, 90, 0]]


def clip(frames):
    radians = torch.deg2rad(torch.tensor(ANGLES[:frames], dtype=torch.float32)).flatten()
    return video(frames, 1, 3, torch.stack([radians.cos(), radians.sin()], dim=-1).tolist())


def keep(frames, k):
    return METHOD.select(clip(frames), Signals(), stage(AT, k)).keep.tolist()[0]


def test_example():
    """Second against first: 10 50 90; third against first: 60 5 20; fourth against third: 0 30 80 degrees."""
    assert keep(4, 6) == [0, 1, 2, 5, 6, 11]  # one of each
    assert keep(4, 9) == [0, 1, 2, 4, 5, 6, 8, 10, 11]  # two of each
    assert keep(4, 12) == list(range(12))


def test_what_does_not_divide():
    """Two frames get one more than the last."""
    assert keep(4, 8) == [0, 1, 2, 4, 5, 6, 8, 11]


def test_the_next_window_begins_whole():
    """Frame 4 is a first frame; where there is no room for first frames, those of later windows are compared."""
    assert keep(5, 9) == [0, 1, 2, 5, 6, 11, 12, 13, 14]
    assert keep(5, 4) == [0, 1, 12, 13]  # 90, 90, 0 degrees from the window before


def test_a_newline_stays():
    """Tokens off the grid take no part."""
    seen = video(4, 1, 2, newlines=1)
    found = METHOD.select(seen, Signals(), stage(AT, 6)).keep.tolist()[0]
    assert found[:2] == [0, 1]
    assert found[-1] == 8
    assert [i // 2 for i in found[2:5]] == [1, 2, 3]
    assert METHOD.explain(seen, Signals(), stage(AT, 6))["distance"].shape == (1, 9)


def step(method, seen, attention):
    """What a decode step sees of tokens with this attention, [B][N], over two heads that say the same."""
    at = Stage("llm.layer.3", 0.5, of="alive", phase="decode")
    (signal,) = method.needs(at)
    row = torch.tensor(attention)[:, None, None].expand(-1, 2, 1, -1)
    found = method.select(seen, Signals({signal: row}), at)
    return [[i for i in row if i >= 0] for row in found.keep.tolist()], replace(seen, carried=found.carried)


def test_steps():
    """Row 0 looks elsewhere (cosine 0.6), row 1 looks on (0.98); the third token of row 1 is padding."""
    first, then = [[0.6, 0.2, 0.0, 0.0], [0.5, 0.1, 9.0, 9.0]], [[0.2, 0.6, 0.0, 0.0], [0.4, 0.0, 9.0, 9.0]]
    assert torch.cosine_similarity(torch.tensor([0.6, 0.2]), torch.tensor([0.2, 0.6]), dim=0) == pytest.approx(0.6)
    for similar, again in (("whole", [0, 1]), ("kept", [0])):
        method = DyCoke(similar=similar, threshold=0.9)
        seen = replace(tokens(4, 2), host_keep=(2, 1))
        kept, seen = step(method, seen, first)
        assert kept == [[0, 1], [0]]
        kept, seen = step(method, seen, then)
        assert kept == [[0, 1], again]
        kept, _ = step(method, seen, [[0.0, 0.1, 0.9, 0.0], [0.0, 0.5, 0.0, 0.0]])
        assert kept == [[1, 2], [1]]


def test_messages():
    """Other sites are refused."""
    with pytest.raises(ValueError, match=r"schedule.0.site is vision.output, but pruner 'dycoke' compares frames"):
        METHOD.check(Schedule.from_config([{"site": "vision.output", "keep": 0.5}]))
    with pytest.raises(ValueError, match=r"pruner.method.similar is 'all'. Choose from: whole, kept"):
        DyCoke(similar="all", threshold=0.9)
    with pytest.raises(ValueError, match=r"pruner.method.threshold is 9, a cosine"):
        DyCoke(similar="kept", threshold=9)
    with pytest.raises(ValueError, match=r"schedule.0.site is llm.layer.3, but pruner 'dycoke' compares frames"):
        METHOD.check(Schedule((Stage("llm.layer.3", 0.5, phase="both"),)))
