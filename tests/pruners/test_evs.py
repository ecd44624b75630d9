"""EVS: distances to the frame before by hand, whatever the order, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from hand import row, stage, tokens, video

from btp.core.schedule import Schedule
from btp.core.signals import Signals
from btp.ops.frames_before import NO_FRAME, before, frame_numbers
from btp.pruners.evs import EVS

AT = "llm.input"
HIDDEN = [[1.0, 0], [0, 1], [2.0, 0], [1, 1], [0, 3], [5, 5]]  # frames of two tokens


def keep(seen, k):
    return EVS().select(seen, Signals(), stage(AT, k)).keep.tolist()


def test_example():
    """Second frame: 0 and 1 - cos 45; third: 1 and 0. The first frame stays, then the largest distances."""
    seen = video(3, 1, 2, HIDDEN)
    scores = EVS().score(seen, Signals(), stage(AT, 1))
    torch.testing.assert_close(scores, torch.tensor([[NO_FRAME, NO_FRAME, 0, 1 - 0.5**0.5, 1, 0]]))
    assert keep(seen, 4) == [[0, 1, 3, 4]]
    assert keep(seen, 3) == [[0, 1, 4]]
    assert keep(seen, 1) == [[0]]  # below a frame's share


def test_newlines_and_two_videos():
    """A newline is no place; each video begins anew."""
    seen = video(3, 1, 2, [*HIDDEN, [1.0, 0]], newlines=1)
    assert keep(seen, 4) == [[0, 1, 4, 6]]
    image = torch.tensor([[0, 0, 0, 0, 1, 1, 0]])
    coord = seen.coord.clone()
    coord[0, 4:6, 0] = 0
    assert keep(replace(seen, image=image, coord=coord), 5) == [[0, 1, 4, 5, 6]]


def test_places_are_found_whatever_the_order():
    """Tokens are matched by row and column, not by their number; gaps have nothing before them."""
    coord = torch.tensor([[[1, 0, 1], [0, 1, 0], [0, 0, 1], [1, 1, 0], [2, 0, 0], [3, 0, 1]]])
    image, valid = torch.zeros(1, 6, dtype=torch.long), torch.ones(1, 6, dtype=torch.bool)
    assert before(image, coord, valid).tolist() == [[2, -1, -1, 1, -1, -1]]
    assert before(image, coord, valid, 2).tolist() == [[-1, -1, -1, -1, -1, 0]]
    assert before(image, coord, valid, torch.tensor([[1, 1, 1, 1, 1, 3]])).tolist() == [[2, -1, -1, 1, -1, 2]]
    number, sizes = frame_numbers(image, coord, valid)
    assert number.tolist() == [[1, 0, 0, 1, 2, 3]]
    assert sizes.tolist() == [[2, 2, 1, 1, 0, 0]]


def test_rows_of_unequal_length():
    """A shorter video beside a longer one chooses as alone."""
    long, short = video(4, 2, 3), video(2, 2, 3, generator=5)
    pad = 24 - 12

    def both(name, fill=0):
        one, two = getattr(long, name), getattr(short, name)
        return torch.cat([one, torch.nn.functional.pad(two, (0, 0) * (two.dim() - 2) + (0, pad), value=fill)])

    seen = replace(
        tokens(24, 12), hidden=both("hidden"), coord=both("coord", -1), image=both("image"), index=both("index")
    )
    found = EVS().select(seen, Signals(), stage(AT, 0.6)).keep
    for b, k in enumerate((14, 7)):
        alone, _ = row(b, seen, Signals())
        assert EVS().select(alone, Signals(), stage(AT, 0.6)).keep[0].tolist() == found[b, :k].tolist()


def test_messages():
    """Other sites are refused."""
    with pytest.raises(ValueError, match=r"schedule.0.site is llm.layer.2, but pruner 'evs' compares frames where"):
        EVS().check(Schedule.from_config([{"site": "llm.layer.2", "keep": 0.5}]))
    EVS().check(Schedule.from_config([{"site": AT, "keep": 0.5}, {"site": "llm.layer.2", "keep": 0}]))
