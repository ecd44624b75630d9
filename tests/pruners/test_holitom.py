"""HoliTom: windows, places that stand still, what they become, and merging inside the language model, by hand."""

from itertools import pairwise

import pytest
import torch
from checked_selection import check_selection
from hand import stage, tokens, video

from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.ops.merge import merge_sizes, merge_states
from btp.pruners.holitom import HoliTom, _best_windows

AT = "llm.input"
RECEIVED = Signal("attention", "vision.feature", "mean", "probs")
LAST = Signal("attention", "llm.layer.1", "last", "probs")
# frames of two places: the first stands still throughout, the second moves in the third frame
HIDDEN = [[1.0, 0], [0, 1], [2, 0], [0, 2], [3, 0], [1, 0], [2, 0], [4, 0]]


def holitom(**changed):
    return HoliTom(**{"threshold": 0.8, "window": 99, "salience": "none"} | changed)


def test_windows_by_hand():
    """Places spared in each later frame: frames 0-1 two, 0-2 and 0-3 one, 2-3 two: 2 + 2 beats 1 x 3."""
    moves = [[0, 2, 1, 1], [0, 0, 1, 1], [0, 0, 0, 2], [0, 0, 0, 0]]
    assert _best_windows(moves, 99) == [0, 0, 2, 2]
    assert _best_windows(moves, 1) == [0, 1, 2, 3]
    moves[0][3] = 2  # 2 x 3 beats it
    assert _best_windows(moves, 99) == [0, 0, 0, 0]
    assert _best_windows(moves, 3) == [0, 0, 2, 2]
    assert _best_windows([], 5) == []


def test_windows_against_all_there_are():
    """No other way to cut five frames spares more."""
    torch.manual_seed(0)
    moves = torch.randint(0, 9, (5, 5)).tolist()

    def spared(starts):
        edges = [*starts, 5]
        return sum(moves[s][e - 1] * (e - 1 - s) for s, e in pairwise(edges) if e - 1 > s)

    every = [[0, *(f for f in range(1, 5) if cut >> (f - 1) & 1)] for cut in range(16)]
    found = _best_windows(moves, 99)
    assert spared(sorted(set(found))) == max(map(spared, every))


def test_example():
    """Windows 0-1 and 2-3: both places of each stand still, so that four tokens hold all eight."""
    seen = video(4, 1, 2, HIDDEN)
    selection = holitom().select(seen, Signals(), stage(AT, 7))
    assert selection.counts == (4,)
    assert selection.keep.tolist() == [[0, 1, 4, 5]]
    assert selection.merge.target.tolist() == [[0, 1, 0, 1, 4, 5, 4, 5]]
    states = merge_states(seen.hidden, selection.keep, selection.merge)
    torch.testing.assert_close(states[0], torch.tensor([[1.5, 0], [0, 1.5], [2.5, 0], [2.5, 0]]))
    assert merge_sizes(seen.size, selection.keep, selection.merge).tolist() == [[2, 2, 2, 2]]


def test_what_is_still_flows_on_and_what_moves_is_dropped():
    """One of each window's two places stays, the most attended; the other flows into it, with all its frames."""
    seen = video(4, 1, 2, HIDDEN)
    attention = torch.tensor([0.1, 0.2, 0, 0, 0.4, 0.3, 0, 0]).view(1, 1, 1, 8)
    selection = holitom(salience="received").select(seen, Signals({RECEIVED: attention}), stage(AT, 2))
    assert selection.keep.tolist() == [[1, 4]]
    assert selection.merge.target.tolist() == [[1, 1, 1, 1, 4, 4, 4, 4]]
    moving = video(2, 1, 2, [[1.0, 0], [0, 1], [0, 1], [1, 0]])
    attention = torch.tensor([0.1, 0.2, 0.4, 0.3]).view(1, 1, 1, 4)
    selection = holitom(salience="received").select(moving, Signals({RECEIVED: attention}), stage(AT, 2))
    assert selection.keep.tolist() == [[1, 2]]
    assert selection.merge.target.tolist() == [[-1, 1, 2, -1]]


def test_random_videos_are_sound():
    """Several thresholds and counts; newlines stay; every target stays."""
    for threshold in (-1.0, 0.0, 0.3, 1.0):
        seen = video(6, 2, 3, newlines=1, generator=3)
        for k in (3, 9, 20, 37):
            selection = holitom(threshold=threshold).select(seen, Signals(), stage(AT, k))
            check_selection(selection, selection.counts, seen.host_alive, "holitom", AT)
            assert selection.counts[0] <= k
            assert 36 in selection.keep[0].tolist()
            if selection.merge is not None:
                target = selection.merge.target[0]
                assert set(target[target >= 0].tolist()) <= set(selection.keep[0].tolist())


def test_inside_the_language_model():
    """Tokens 1 and 3 have most of the last token's attention; the others flow into the one that is more like them."""
    seen = tokens(4)
    seen = type(seen)(**{**vars(seen), "hidden": torch.tensor([[[1.0, 0], [2, 0], [0, 1], [0, 3]]])})
    attention = torch.tensor([0.1, 0.4, 0.2, 0.3]).view(1, 1, 1, 4)
    selection = holitom().select(seen, Signals({LAST: attention}), stage("llm.layer.2", 2))
    assert selection.keep.tolist() == [[1, 3]]
    states = merge_states(seen.hidden, selection.keep, selection.merge)
    torch.testing.assert_close(states[0], torch.tensor([[1.5, 0], [0, 2.0]]))


def test_messages():
    """Settings out of range and other sites are refused."""
    for wrong, message in (
        ({"threshold": 2}, r"pruner.method.threshold is 2. Write a cosine"),
        ({"window": 0}, r"pruner.method.window is 0. Write a number of frames"),
        ({"salience": "cls"}, r"pruner.method.salience is 'cls'. Choose from: received, none"),
    ):
        with pytest.raises(ValueError, match=message):
            holitom(**wrong)
    with pytest.raises(ValueError, match=r"schedule.0.site is vision.output, but pruner 'holitom' merges where frames"):
        holitom().check(Schedule.from_config([{"site": "vision.output", "keep": 0.5}]))
