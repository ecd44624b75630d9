"""On a device that is not there: no operation mixes devices, and the host waits where it must and nowhere else."""

import pytest
import torch

from btp.core.pruner import ScorePruner
from btp.core.schedule import Schedule, Stage
from btp.pruners.btp import BTP
from experiments.launches.claimed import Claimed, Device, claim
from experiments.launches.count import launches
from experiments.launches.follow import follow, follow_through, names, planned, waits

pytestmark = pytest.mark.long

OPENED = {"read at engine/decoder/prefill.py (_read)": 1}  # how many tokens each row has, and where they lie on a grid
SETTLED = {"read at engine/hooks/deferred_checks.py (settle)": 1}  # once the first token was read, all checks together
IN_DECODE = {  # each stage of phase both learns how many rows it leaves, and how many its rule lets go
    "read at engine/decoder/lazy/stages.py (_choose)",
    "read at engine/decoder/lazy/stages.py (_pass)",
}
AIMED = {  # two stages compare with their targets, which the host has
    "read at pruners/oracle.py (select)",
    "read at pruners/oracle.py (_forced)",
    "read at pruners/oracle.py (_ask)",
}
SEGMENTS = {  # videos are cut into segments by values on the host
    "fastvid": {
        "read at ops/frames.py (frames_apart)",
        "read at pruners/fastvid.py (_segments)",
        "read at ops/frames.py (back)",
    },
    "holitom": {
        "read at pruners/holitom.py (_windows)",
        "upload at pruners/holitom.py (_windows)",
        "read at pruners/holitom.py (<listcomp>)",
        "read at pruners/holitom.py (select)",
    },
}
FRAMES = {  # controls on videos that keep whole frames go through them on the host
    "pooled": {"read at pruners/pooled.py (select)"},
    "uniform_frames": {"read at pruners/fewer_frames.py (score)"},
    "one_frame": {"read at pruners/whole_frames.py (_frames_of)", "read at pruners/whole_frames.py (select)"},
}
READERS = {**SEGMENTS, **FRAMES, "oracle": AIMED, "oracle_random": AIMED}
QUICK = ("btp", "fastv", "h2o", "visionzip")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in names()])
def test_a_whole_prefill_and_a_step(name):
    """Two rows, one padded: kept and said as on the CPU, one read in front of the layers, and no wait besides."""
    on_device, on_cpu = follow(name, rows=2), follow(name, rows=2, claimed=False)
    assert on_device.kept == on_cpu.kept
    assert (on_device.logits - on_cpu.logits).abs().max() < 1e-5
    prefill, step = waits(on_device.prefill), waits(on_device.step)
    if name in READERS:
        assert {line: prefill.pop(line) for line in OPENED} == OPENED
        assert prefill.keys() == READERS[name]
    elif any(stage.in_decode for stage in planned(name)[1]):
        assert prefill.keys() <= OPENED.keys() | IN_DECODE
        assert step.keys() <= SETTLED.keys() | IN_DECODE
        return
    else:
        assert prefill == OPENED
    assert step == SETTLED


class Looks(ScorePruner):
    """A method with a fault of one kind."""

    def __init__(self, fault):
        self.fault = fault

    def score(self, tokens, signals, stage):
        score = tokens.hidden.sum(-1)
        if self.fault == "read":
            return score * float(score.max())
        if self.fault == "shape":
            return score * len(score[score > 0])
        if self.fault == "upload":
            return score * torch.tensor([2.0], device=score.device)
        return score.gather(1, torch.arange(score.shape[1])[None])


@pytest.mark.parametrize("fault", ["read", "shape", "upload"])
def test_a_wait_is_seen(fault):
    """By file and line: a value read, a shape that depends on values, a copy that blocks."""
    found = follow_through(Looks(fault), Schedule((Stage("llm.layer.1", 8),))).prefill
    (event,) = [event for event in found if event.wait and event.stack[0].file == __file__]
    assert event.wait == ("upload" if fault == "upload" else "read")
    assert event.stack[0].name == "score"


def test_mixed_devices_are_refused():
    """As a GPU refuses them, on the line that mixes."""
    with pytest.raises(RuntimeError, match=r"(?i)device") as error:
        follow_through(Looks("mixed"), Schedule((Stage("llm.layer.1", 8),)))
    assert any(str(entry.path) == __file__ and entry.name == "score" for entry in error.traceback)


def test_claimed_numbers_are_those_of_the_cpu():
    """Views and writes in place go through to what is held; a claimed tensor is nothing outside."""
    x = torch.randn(3, 4)
    device = Device()
    with device.open():
        there = claim({"x": x.clone()})["x"]
        there[:, 1].fill_(2.0)
        total = (there @ there.mT).sum()
        assert (there.device.type, there.is_cuda) == ("cuda", True)
        assert float(total) == pytest.approx(float((there.held @ there.held.mT).sum()))
    x[:, 1] = 2.0
    assert torch.equal(there.held, x)
    assert [event.wait for event in device.events][-1] == "read"
    with pytest.raises(RuntimeError, match=r"outside of Device\.open"):
        there + 1
    assert isinstance(there, Claimed)


def test_launches_of_btp():
    """A stage of BTP asks for 40 operators at most outside of its loop, as a mean over seeds, diversity, attention."""
    stages = (("llm.layer.1", 40, 0.6), ("llm.layer.2", 24, 0.5), ("llm.layer.4", 8, 1.0))
    schedule = Schedule(tuple(Stage(site, keep, settings={"balance": b}) for site, keep, b in stages))
    pruner = BTP(score="logits", source="last", over=1.5, split="half", seed=0.25, distance="manhattan")
    found = launches(follow_through(pruner, schedule))
    assert found.looped["choice"] > 0, "no token was picked by its distance"
    assert found.per_stage("choice") <= 40
