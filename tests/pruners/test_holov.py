"""HoloV: shares of the crops, variances and choices by hand."""

from dataclasses import replace

import pytest
import torch
from hand import row, signals, stage, tokens

from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.ops.apportion import apportion, best_of_groups
from btp.pruners.holov import HoloV

CLS = Signal("attention", "vision.feature", "cls", "probs")
OUTPUT = "vision.output"
SETTINGS = {"crops": 2, "beta": 0.5, "rank": "attention", "scale": "crop", "score": "cls"}
ATTENTION = [0.3, 0.2, 0.1, 0.05, 0.05, 0.1]
HIDDEN = [[1.0, 0], [2, 0], [0, 3], [1.0, 0], [0, 1], [0, 2]]


def holov(**changed):
    return HoloV(**SETTINGS | changed)


def example(attention=ATTENTION):
    seen = replace(tokens(len(attention)), hidden=torch.tensor(HIDDEN)[None, : len(attention)])
    return seen, Signals({CLS: torch.tensor(attention).view(1, 1, 1, -1)})


@pytest.mark.parametrize(
    ("weight", "total", "room", "found"),
    [
        ([0.5, 0.3, 0.2], 10, [9, 9, 9], [5, 3, 2]),
        ([0.5, 0.3, 0.2], 4, [9, 9, 9], [3, 1, 0]),  # 2, 1.2, 0.8: the one left over goes to the heaviest
        ([0.8, 0.1, 0.1], 10, [4, 4, 4], [4, 4, 2]),  # 4 of 8, 1, 1; one each, then all that is left to the second
        ([0.0, 0.0, 0.0], 3, [2, 0, 2], [2, 0, 1]),
        ([5.0, 0.0, 0.0], 5, [2, 2, 2], [2, 2, 1]),
    ],
)
def test_shares_by_hand(weight, total, room, found):
    """Whole parts, one each by weight, then wherever there is room; the sum is what was asked."""
    given = apportion(torch.tensor([weight]), torch.tensor([total]), torch.tensor([room]))
    assert given.tolist() == [found]
    assert given.sum() == total


def test_the_best_of_each_group():
    """Groups may lie anywhere; ties go to the first, and padding to nobody."""
    scores = torch.tensor([[1.0, 5, 5, 2, 9, 7]])
    group = torch.tensor([[1, 0, 0, 1, 1, 0]])
    valid = torch.tensor([[True] * 5 + [False]])
    found = best_of_groups(scores, group, torch.tensor([[1, 2]]), valid)
    assert found.tolist() == [[False, True, False, True, True, False]]


def test_example():
    """Crops of three: means 0.2 and 0.0667, so that of 4 tokens 3 and 1 stay; each keeps the most attended."""
    assert holov().select(*example(), stage(OUTPUT, 4)).keep.tolist() == [[0, 1, 2, 5]]
    assert holov().select(*example(), stage(OUTPUT, 3)).keep.tolist() == [[0, 1, 2]]  # 2.25 and 0.75: 2 + 1, 0
    assert holov(crops=1).select(*example(), stage(OUTPUT, 3)).keep.tolist() == [[0, 1, 2]]


def test_variance_by_hand():
    """Cosines of the first crop: 0 to 1, 2: 1, 0; mean 1/2; variance (1/4 + 1/4 + the token's own 1/4) / 2 = 3/8.

    Token 2: 0, 0, so 0. Scaled by the crop's means, 0.2 over 1/4, it is 0.3, half of which is added.
    """
    parts = holov().explain(*example(), stage(OUTPUT, 4))
    torch.testing.assert_close(parts["holistic"][0, :3], torch.tensor([0.3 + 0.15, 0.2 + 0.15, 0.1]))
    # second crop: token 3 is alone, 4 and 5 alike; means 0.0667 and 1/4
    torch.testing.assert_close(parts["holistic"][0, 3:], torch.tensor([0.05, 0.05 + 0.05, 0.1 + 0.05]))


def test_the_released_scale_leaves_shares_alone():
    """The mean score of a crop is 1 + beta times its mean attention, whatever its tokens are."""
    seen, values = example()
    for beta in (0.0, 0.5, 3.0):
        scores = holov(beta=beta).select(seen, values, stage(OUTPUT, 4)).scores[0]
        torch.testing.assert_close(scores.view(2, 3).mean(1), (1 + beta) * torch.tensor([0.2, 0.2 / 3]))
    whole = holov(scale="picture").select(seen, values, stage(OUTPUT, 4)).scores[0]
    assert not torch.allclose(whole.view(2, 3).mean(1)[1], torch.tensor(0.1))


def test_choice_by_the_holistic_score():
    """In the second crop 5 has most attention and variance; with more of the latter 4 passes 3."""
    seen, values = example([0.3, 0.2, 0.1, 0.09, 0.05, 0.1])
    asked = {
        rank: holov(rank=rank, beta=2.0).select(seen, values, stage(OUTPUT, 5)).keep[0]
        for rank in ("attention", "holistic")
    }
    assert asked["attention"].tolist() == [0, 1, 2, 3, 5]
    assert asked["holistic"].tolist() == [0, 1, 2, 4, 5]


def test_crops_of_unequal_length():
    """Seven tokens in three crops: 3, 2, 2; more crops than tokens make crops of one."""
    seen = tokens(7)
    values = Signals({CLS: torch.tensor([0.1] * 3 + [0.5, 0.1, 0.5, 0.1]).view(1, 1, 1, 7)})
    # means 0.1, 0.3, 0.3: of 2 tokens 0.28, 0.86, 0.86, so that both go one by one
    assert holov(crops=3, beta=0.0).select(seen, values, stage(OUTPUT, 2)).keep.tolist() == [[3, 5]]
    assert holov(crops=50, beta=0.0).select(seen, values, stage(OUTPUT, 2)).keep.tolist() == [[3, 5]]


@pytest.mark.parametrize("scale", ["crop", "picture"])
def test_pictures_do_not_see_each_other(scale):
    """Each as alone, also with fewer tokens than crops."""
    method = holov(crops=5, rank="holistic", scale=scale)
    seen, at = tokens(40, 23, 9, 3), stage(OUTPUT, 0.4)
    values = signals(method, seen, at)
    selection = method.select(seen, values, at)
    for b, k in enumerate((16, 9, 3, 1)):
        alone, its = row(b, seen, values)
        mine = method.select(alone, its, at)
        assert mine.keep[0].tolist() == selection.keep[b, :k].tolist()
        torch.testing.assert_close(mine.scores[0], selection.scores[b, : seen.host_alive[b]])


def test_messages():
    """Settings out of range and other sites are refused."""
    for wrong, message in (
        ({"crops": 0}, r"pruner.method.crops is 0. Write a number of crops"),
        ({"beta": -1}, r"pruner.method.beta is -1. Write a number, 0 or more"),
        ({"rank": "best"}, r"pruner.method.rank is 'best'. Choose from: attention, holistic"),
        ({"scale": "row"}, r"pruner.method.scale is 'row'. Choose from: crop, picture"),
    ):
        with pytest.raises(ValueError, match=message):
            holov(**wrong)
    with pytest.raises(ValueError, match=r"schedule.0.site is llm.layer.2, but pruner 'holov' chooses once"):
        holov().check(Schedule.from_config([{"site": "llm.layer.2", "keep": 0.5}]))
