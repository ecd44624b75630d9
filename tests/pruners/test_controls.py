"""Random, attention alone, diversity alone, oracle, withdrawal."""

from dataclasses import replace

import pytest
import torch
from hand import HEADS, signals, stage, tokens

from btp.core.pruner import ScorePruner
from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.core.topk import top_k
from btp.ops.farthest_point import farthest_points
from btp.pruners.attention import Attention
from btp.pruners.btp import BTP
from btp.pruners.diversity import Diversity
from btp.pruners.fastervlm import FasterVLM
from btp.pruners.oracle import Oracle
from btp.pruners.random import CHANNELS, Random
from btp.pruners.withdraw import Withdraw


class ByIndex(ScorePruner):
    """Higher places win."""

    def score(self, tokens, signals, stage):
        return tokens.index.float()


def draw(seen, site="llm.layer.2", keep=0.5, **settings):
    pruner = Random(**{"seed": 0, "salt": "none"} | settings)
    return pruner.select(seen, Signals(), stage(site, keep)).keep


def test_random_depends_on_what_it_says():
    """The same for the same seed, site and total; another draw for another one of each."""
    seen = tokens(100)
    picks = draw(seen)
    assert torch.equal(picks, draw(seen))
    assert torch.equal(picks, draw(tokens(100, generator=5)))
    assert not torch.equal(picks, draw(seen, seed=1))
    assert not torch.equal(picks, draw(seen, site="llm.layer.3"))
    assert not torch.equal(picks, draw(replace(seen, host_total=None, total=torch.tensor([101]))))


def test_random_keeps_what_it_kept():
    """Draws of recorded runs: by content and not, alone and beside a longer row, known on the host or not."""
    a, b = tokens(12, generator=5), tokens(9, 12, generator=6)
    by_content, of_b = {"salt": "content", "keep": 0.34}, [[0, 2, 6, -1], [4, 6, 8, 11]]
    assert draw(a, **by_content).tolist() == [[2, 4, 5, 6]]
    assert draw(b, seed=7, **by_content).tolist() == of_b
    assert draw(replace(b, host_alive=None, host_total=None), seed=7, **by_content).tolist() == of_b
    assert draw(a, "llm.input", 0.34).tolist() == [[4, 9, 10, 11]]


def test_random_by_content():
    """Different pictures get different tokens, the same picture the same, also with a little noise."""
    a, b = tokens(100), tokens(100, generator=5)
    picks = draw(a, salt="content")
    assert not torch.equal(picks, draw(b, salt="content"))
    assert torch.equal(picks, draw(replace(a, hidden=a.hidden + 1e-6), salt="content"))


def test_random_is_even():
    """Over many seeds every token is kept about equally often, and the global generator is left alone."""
    state = torch.get_rng_state()
    seen = tokens(50)
    kept = torch.cat([draw(seen, seed=s, keep=0.2)[0] for s in range(400)]).bincount(minlength=50)
    assert kept.sum() == 4000
    assert kept.min() > 45  # 80 expected, standard deviation 8
    assert kept.max() < 115
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("key", "value"), [("salt", "pepper"), ("seed", None)])
def test_random_messages(key, value):
    """Unknown salts and seeds that are no integers are refused."""
    with pytest.raises(ValueError, match=f"pruner.method.{key} is {value!r}"):
        Random(**{"seed": 0, "salt": "none"} | {key: value})


def test_attention_keeps_the_highest():
    """Mean over heads in the layer before."""
    pruner, seen, at = Attention(score="probs", source="last"), tokens(12, 7), stage()
    values = signals(pruner, seen, at)
    scores = values[Signal("attention", "llm.layer.1", "last", "probs")].mean((1, 2))
    assert torch.equal(pruner.select(seen, values, at).keep, top_k(scores, (6, 3), seen.valid))


def test_attention_message():
    """Nothing lies before the first layer; a withdrawing stage asks nobody."""
    pruner = Attention(score="probs", source="last")
    with pytest.raises(ValueError, match=r"schedule.0.site is llm.layer.0, but pruner 'attention' ranks"):
        pruner.check(Schedule((stage("llm.layer.0"),)))
    pruner.check(Schedule((stage("llm.layer.0", 0),)))


def test_diversity_is_max_min():
    """From scratch, on the hidden states at the stage."""
    seen, at = tokens(12, 7), stage("llm.input")
    wanted = farthest_points(seen.hidden, torch.empty(2, 0, dtype=torch.long), (6, 3), seen.valid)
    assert torch.equal(Diversity().select(seen, Signals(), at).keep, wanted)


def oracle(targets, inner=None):
    pruner = Oracle(inner=inner or ByIndex())
    pruner.set_targets(targets)
    return pruner


def test_oracle_keeps_targets_and_lets_the_other_fill():
    """Indices stay; the rest of k goes to the other method's best."""
    keep = oracle([[2, 5], []]).select(tokens(12, 8), Signals(), stage(keep=4)).keep
    assert keep.tolist() == [[2, 5, 10, 11], [4, 5, 6, 7]]


def test_oracle_reads_boxes():
    """On a 3 x 4 grid: each token whose cell the box covers in part."""
    everything = tokens(12)
    cell = (0.0, 0.0, 0.25, 1 / 3)
    assert oracle([[cell]]).select(everything, Signals(), stage(keep=1)).keep.tolist() == [[0]]
    lower_right = (0.6, 0.7, 1.0, 1.0)
    assert oracle([[lower_right]]).select(everything, Signals(), stage(keep=2)).keep.tolist() == [[10, 11]]
    across = (0.2, 0.3, 0.3, 0.4)
    keep = oracle([[across, 11]]).select(everything, Signals(), stage(keep=5)).keep
    assert keep.tolist() == [[0, 1, 4, 5, 11]]


def test_oracle_box_on_another_image():
    """A fifth number says which image of the row."""
    seen = tokens(16)
    image = torch.tensor([[0] * 8 + [1] * 8])
    coord = torch.cat([seen.coord[:, :8], seen.coord[:, :8]], dim=1)
    pruner = oracle([[(0.0, 0.0, 0.2, 0.4, 1)]])
    assert pruner.select(replace(seen, image=image, coord=coord), Signals(), stage(keep=1)).keep.tolist() == [[8]]


def test_oracle_box_in_every_view_of_a_picture():
    """A box is in shares of the sides: of the whole picture (2 x 2) and of its mosaic (2 x 4 with newlines) alike."""
    whole = [(0, row, column) for row in range(2) for column in range(2)]
    mosaic = [(1, row, column) if column < 4 else (-1, -1, -1) for row in range(2) for column in range(5)]
    seen = replace(tokens(14), coord=torch.tensor([whole + mosaic]))
    right = (0.6, 0.1, 0.7, 0.4)
    assert oracle([[right]]).select(seen, Signals(), stage(keep=2)).keep.tolist() == [[1, 6]]
    upper = (0.0, 0.0, 1.0, 0.4)
    assert oracle([[upper]]).select(seen, Signals(), stage(keep=6)).keep.tolist() == [[0, 1, 4, 5, 6, 7]]


def test_oracle_remembers_places_at_later_stages():
    """The grid's size is known at the first stage, where it is whole."""
    pruner = oracle([[(0.0, 0.0, 0.25, 1 / 3), (0.5, 0.4, 0.7, 0.6)]])  # tokens 0 and 6
    seen = tokens(12)
    keep = pruner.select(seen, Signals(), stage(keep=6)).keep
    assert keep.tolist() == [[0, 6, 8, 9, 10, 11]]
    later = replace(
        seen,
        **{n: getattr(seen, n)[:, keep[0]] for n in ("hidden", "position", "coord", "image", "size", "index", "valid")},
        host_alive=(6,),
    )
    assert pruner.select(later, Signals(), stage("llm.layer.4", 3)).keep.tolist() == [[0, 1, 5]]


def test_oracle_with_more_targets_than_places():
    """The other method chooses among the targets."""
    keep = oracle([[1, 3, 4, 6]]).select(tokens(12), Signals(), stage(keep=2)).keep
    assert keep.tolist() == [[4, 6]]


def test_oracle_around_a_set_method():
    """BTP sees only what it may choose from, with its own signals narrowed to it."""
    inner = BTP(score="logits", source="similar", over=1.5, split="half", seed=0.0, distance="manhattan")
    pruner, seen, at = oracle([[0, 1], [6]], inner), tokens(16, 9), stage(balance=0.5)
    assert pruner.stage_settings == BTP.stage_settings
    keep = pruner.select(seen, signals(pruner, seen, at), at).keep
    assert {0, 1} <= set(keep[0].tolist())
    assert 6 in keep[1].tolist()
    with pytest.raises(ValueError, match="balance is missing"):
        pruner.check(Schedule((stage(),)))


def test_oracle_around_a_method_that_asks_the_vision_tower():
    """What the tower saw stays by picture and slot, whichever tokens are left to choose from."""
    seen, at = tokens(12, 12), stage("llm.input", 4)
    pruner = oracle([[0, 1], []], FasterVLM(heads="mean", score="cls"))
    (signal,) = pruner.needs(at)
    attention = torch.arange(12.0).flip(0).expand(2, HEADS, 1, 12)
    keep = pruner.select(seen, Signals({signal: attention}), at).keep
    assert keep.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    attention = torch.stack([torch.arange(12.0), torch.arange(12.0).flip(0)]).view(2, 1, 1, 12)
    assert pruner.select(seen, Signals({signal: attention}), at).keep.tolist() == [[0, 1, 10, 11], [0, 1, 2, 3]]


def test_oracle_under_beam_search():
    """Each beam of a row has the row's targets."""
    keep = oracle([[0], [1]]).select(tokens(8, 8, 8, 8), Signals(), stage(keep=1)).keep
    assert keep.tolist() == [[0], [0], [1], [1]]


def test_oracle_messages():
    """Missing targets, targets of another batch, boxes that are none, and no inner method."""
    seen, at = tokens(8, 8), stage(keep=1)
    with pytest.raises(RuntimeError, match=r"has no targets\. Call set_targets"):
        Oracle(inner=ByIndex()).select(seen, Signals(), at)
    with pytest.raises(RuntimeError, match="targets for 3 rows, but the batch has 2"):
        oracle([[], [], []]).select(seen, Signals(), at)
    for box in [(0.5, 0.0, 0.4, 1.0), (0.0, 0.0, 2.0, 1.0), (0.1, 0.2)]:
        with pytest.raises(ValueError, match="of row 1 is not a box"):
            oracle([[], [box]])
    with pytest.raises(ValueError, match=r"pruner\.method\.inner is None"):
        Oracle(inner=None)


def test_withdraw():
    """Only schedules that keep nothing; it never chooses."""
    Withdraw().check(Schedule((stage(keep=0),)))
    with pytest.raises(ValueError, match=r"schedule\.0\.keep is 0\.5, but pruner 'withdraw'"):
        Withdraw().check(Schedule((stage(),)))
    with pytest.raises(RuntimeError, match=r"asked to choose at llm\.layer\.2"):
        Withdraw().select(tokens(4), Signals(), stage())


def test_random_reads_next_to_nothing():
    """Two channels of the hidden states name the picture; the others are never looked at."""
    seen = tokens(100)
    other = seen.hidden.clone()
    other[..., CHANNELS:] = torch.nan
    assert torch.equal(draw(seen, salt="content"), draw(replace(seen, hidden=other), salt="content"))
    assert CHANNELS <= 2
