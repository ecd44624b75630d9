"""V2Drop: variations by hand, the released layers, and what it refuses."""

import pytest
import torch
from hand import published, stage, tokens

from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.pruners.v2drop import V2Drop

UPDATE = Signal("update", "llm.layer.1", None, "layer")
ENTERED = torch.tensor([[[1.0, 0], [0, 2], [3, 0], [1, 1]]])
LEFT = torch.tensor([[[4.0, 4], [0, 8], [3, 0], [2, 4]]])  # differences (3, 4), (0, 6), (0, 0), (1, 3)
SEEN = Signals({UPDATE: torch.stack([ENTERED, LEFT])})


@pytest.mark.parametrize(
    ("measure", "scores", "kept"),
    [
        ("l2", [5, 6, 0, 10**0.5], [0, 1]),
        ("l1", [7, 6, 0, 4], [0, 1]),
        ("cosine", [1 - 0.5**0.5, 0, 0, 1 - 6 / 40**0.5], [0, 3]),
    ],
)
def test_variation_by_hand(measure, scores, kept):
    """Each measure, and the two tokens that it keeps."""
    method, at = V2Drop(measure=measure), stage(keep=2)
    torch.testing.assert_close(method.score(tokens(4), SEEN, at), torch.tensor([scores], dtype=torch.float32))
    assert method.select(tokens(4), SEEN, at).keep.tolist() == [kept]


def test_half_precision_is_ranked_in_float32():
    """Differences of large states do not overflow."""
    both = torch.stack([ENTERED, LEFT]).half() * 3000
    scores = V2Drop(measure="l2").score(tokens(4), Signals({UPDATE: both}), stage())
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores[0, :2], torch.tensor([15000.0, 18000.0]), atol=20, rtol=0)


def test_the_released_schedule():
    """Half in front of layer 3, a quarter in front of 17, a single token from 22 on."""
    schedule = Schedule.from_config(published("v2drop", "released"))
    assert [(str(s.site), s.keep) for s in schedule] == [
        ("llm.layer.3", 288),
        ("llm.layer.17", 144),
        ("llm.layer.22", 1),
    ]
    assert schedule.tokens_avg(576, 32) == (3 * 576 + 14 * 288 + 5 * 144 + 10 * 1) / 32


def test_messages():
    """An unknown measure, and stages that nothing precedes."""
    with pytest.raises(ValueError, match=r"pruner.method.measure is 'norm'. Choose from: l2, l1, cosine"):
        V2Drop(measure="norm")
    for site in ("llm.layer.0", "llm.input", "vision.output"):
        with pytest.raises(ValueError, match=rf"schedule.0.site is {site}, but pruner 'v2drop' ranks by what"):
            V2Drop(measure="l2").check(Schedule.from_config([{"site": site, "keep": 0.5}]))
    V2Drop(measure="l2").check(Schedule.from_config([{"site": "vision.output", "keep": 0}]))
