"""PyramidDrop: attention previewed from the layer behind the stage."""

from pathlib import Path

import pytest
import torch
from checked_selection import check_selection
from hand import published, row, signals, stage, tokens
from omegaconf import OmegaConf

import btp
from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.core.topk import top_k
from btp.pruners.pdrop import PDrop

CONF = Path(btp.__file__).parents[1] / "conf"


def test_worked_example():
    """Keys 0 1 3 2 0 1 2 behind one system token, four image tokens: k = 2 keeps image rows 2 and 3 of the prompt."""
    attention = torch.tensor([0.0, 1, 3, 2, 0, 1, 2]).softmax(0)
    assert attention.tolist() == pytest.approx([0.0236, 0.0643, 0.4748, 0.1747, 0.0236, 0.0643, 0.1747], abs=5e-5)
    seen, at = tokens(4), stage("llm.layer.8", 2)
    values = Signals({Signal("preview", "llm.layer.8", "last", "probs"): attention[1:5].view(1, 1, 1, 4)})
    assert [1 + i for i in PDrop().select(seen, values, at).keep[0].tolist()] == [2, 3]


def test_counts_are_of_the_original():
    """30 tokens: 15, 7, 3."""
    for alive, keep, count in ((30, 0.5, 15), (15, 0.25, 7), (7, 0.125, 3)):
        seen, at = tokens(alive, total=(30,)), stage("llm.layer.8", keep)
        selection = PDrop().select(seen, signals(PDrop(), seen, at), at)
        check_selection(selection, (count,), seen.host_alive, "pdrop", at.site)


def test_heads_count_alike():
    """The mean over heads ranks; rows of a batch do not see each other."""
    pruner, seen, at = PDrop(), tokens(16, 9), stage("llm.layer.3", 0.5)
    assert pruner.needs(at) == (Signal("preview", "llm.layer.3", "last", "probs"),)
    values = signals(pruner, seen, at)
    scores = values[pruner.needs(at)[0]].mean((1, 2))
    keep = pruner.select(seen, values, at).keep
    assert torch.equal(keep, top_k(scores, (8, 4), seen.valid))
    alone, its_values = row(1, seen, values)
    assert pruner.select(alone, its_values, at).keep[0].tolist() == keep[1, :4].tolist()


def test_scores_in_float32():
    """Heads in half precision are averaged in float32."""
    seen, at = tokens(6), stage("llm.layer.3", 3)
    half = Signals({PDrop().needs(at)[0]: torch.rand(1, 3, 1, 6).half()})
    assert PDrop().score(seen, half, at).dtype == torch.float32


@pytest.mark.parametrize("site", ["llm.input", "vision.output", "vision.layer.3", "llm.cache.3"])
def test_needs_a_layer_behind(site):
    """A stage in front of no decoder layer is refused, unless it withdraws all."""
    message = rf"schedule.0.site is {site}, but pruner 'pdrop' .* Set schedule.0.site to llm.layer.N"
    with pytest.raises(ValueError, match=message):
        PDrop().check(Schedule.from_config([{"site": site, "keep": 0.5}]))
    PDrop().check(Schedule.from_config([{"site": site, "keep": 0}]))
    PDrop().check(Schedule.from_config([{"site": "llm.layer.0", "keep": 0.5}]))


def test_no_settings():
    """BTP's balance is none of its own."""
    with pytest.raises(ValueError, match=r"schedule.0.balance is set, but pruner 'pdrop' has no such setting"):
        PDrop().check(Schedule.from_config([{"site": "llm.layer.8", "keep": 0.5, "balance": 1}]))


def test_published_budget():
    """The paper's schedule leaves 270 of 576 tokens on average, and its shape is that of the yaml."""
    written = published("pdrop", "paper")
    schedule = Schedule.from_config(written)
    PDrop().check(schedule)
    assert schedule.tokens_avg(576, 32) == 270
    assert [s.count(576) for s in schedule] == [288, 144, 72]
    own = OmegaConf.to_container(OmegaConf.load(CONF / "pruner" / "pdrop.yaml"))["schedule"]
    assert [s["keep"] for s in own] == ["fit", "fit*0.5", "fit*0.25"]
    assert [s["site"] for s in own] == [f"{s['site']}/32" for s in written]
    assert {s["positions"] for s in own} == {"renumber"}
