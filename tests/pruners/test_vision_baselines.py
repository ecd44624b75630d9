"""ToP's importance, and the methods beside STA, BAViT and ToP: EViT, R-MeeTo, RLT and fewer frames."""

from dataclasses import replace

import pytest
import torch
from backbones import pictures, shared
from hand import signals as random_signals
from hand import stage, tokens
from toys import plan

from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.engine.attach import attach
from btp.models.missing_rows import time_passed
from btp.models.scan import scan_sequential
from btp.ops.scan_importance import importance
from btp.pruners.evit import EViT
from btp.pruners.fewer_frames import FewerFrames
from btp.pruners.rlt import RLT
from btp.pruners.rmeeto import RMeeTo
from btp.pruners.ssm import SSM
from btp.pruners.tome import ToMe

Y = [(1, -2), (0.5, 0.25), (-1, -1), (3, -4), (0.2, 0.1), (-0.5, 2), (1.5, 0), (-3, 0.4)]  # without the class token


def test_importance_of_the_worked_example():
    """Nine places, the class token at 4; five of the others stay."""
    y = torch.tensor([Y])
    assert importance(y, "clip")[0].tolist() == pytest.approx([0.5, 0.375, 0, 1.5, 0.15, 1, 0.75, 0.2])
    places = [0, 1, 2, 3, 5, 6, 7, 8]
    for kind, expected in (("clip", [0, 1, 3, 6, 7]), ("none", [0, 1, 5, 6, 7])):
        seen, signal = tokens(8), Signal("scan", "vision.layer.0", "both")
        method = SSM(score=kind, branch="both", gap="own", conv="aligned")
        kept = method.select(seen, Signals({signal: y}), stage("vision.layer.1", 5)).keep[0]
        assert [places[i] for i in kept.tolist()] == expected
    assert importance(y, "l1")[0, 0] == 1.5
    assert importance(y, "l2")[0, 0] == pytest.approx((5 / 2) ** 0.5)


def test_gaps_of_the_worked_example():
    """Scalar state, decay 0.5 a step, inputs 1 to 5; places 0, 3, 4 stay."""
    places, half = torch.tensor([[0], [3], [4]]), torch.full((3, 1, 1), 0.5).log().neg()
    x = torch.tensor([1.0, 4, 5])

    def states(gap, inputs, steps):
        passed = time_passed(half, steps, gap, torch.zeros(1))
        return scan_sequential(torch.exp(-passed), inputs[:, None, None]).flatten().tolist()

    assert states("own", x, places) == pytest.approx([1, 4.125, 7.0625])
    assert states("none", x, places) == pytest.approx([1, 4.5, 7.25])
    back = (4 - places).flip(0)
    assert states("own", x.flip(0), back)[::-1] == pytest.approx([1.8125, 6.5, 5])
    assert states("none", x.flip(0), back)[::-1] == pytest.approx([4.25, 6.5, 5])


def test_settings_that_no_mixer_has_are_refused():
    for key in ("score", "branch", "gap", "conv"):
        given = {"score": "clip", "branch": "both", "gap": "own", "conv": "aligned"} | {key: "x"}
        with pytest.raises(ValueError, match=f"method.{key} is 'x'"):
            SSM(**given)
    with pytest.raises(ValueError, match="has no effect, because"):
        SSM(score="norm", branch="backward", gap="own", conv="aligned")
    norm = SSM(score="norm", branch="both", gap="own", conv="aligned")
    assert norm.needs(stage("vision.layer.1", 3)) == ()
    seen = tokens(8)
    kept = norm.select(seen, Signals(), stage("vision.layer.1", 3)).keep[0].tolist()
    assert kept == sorted(seen.hidden[0].norm(dim=-1).topk(3).indices.tolist())
    with pytest.raises(ValueError, match="cuts between layers of a vision tower"):
        norm.check(Schedule.from_config([{"site": "llm.layer.1", "keep": 4}]))


def test_evit():
    """The fused token is the mean of what goes, and of its carrier, by attention."""
    method, seen, at = EViT(score="cls", fuse=True), tokens(6), stage("vision.layer.1", 3)
    values = random_signals(method, seen, at)
    score = values[method.needs(at)[0]].mean(1)[0, 0]
    found = method.select(seen, values, at)
    kept = sorted(score.topk(3).indices.tolist())
    carrier = min(kept, key=lambda i: float(score[i]))
    assert found.keep.tolist() == [kept]
    assert found.merge.target[0].tolist() == [i if i in kept else carrier for i in range(6)]
    assert torch.equal(found.merge.weight[0], score)
    assert (
        EViT(score="received", fuse=False)
        .select(seen, random_signals(EViT(score="received", fuse=False), seen, at), at)
        .merge
        is None
    )
    with pytest.raises(ValueError, match="score is 'x'"):
        EViT(score="x", fuse=True)
    with pytest.raises(ValueError, match="fuse is 1"):
        EViT(score="cls", fuse=1)
    with pytest.raises(ValueError, match="cuts between layers of a vision tower"):
        method.check(Schedule.from_config([{"site": "vision.mlp.1", "keep": 4}]))


def test_rlt():
    """Tubes change by the difference of their first frame to the last one before; the first ones always stay."""
    seen = tokens(12)
    coord = torch.stack([seen.index // 4, seen.index % 4 // 2, seen.index % 2], -1)
    seen, clip = replace(seen, coord=coord), torch.zeros(1, 6, 3, 16, 16)
    clip[0, 2:, :, :8, 8:] = 0.5  # at (0, 1), from the second tube on
    clip[0, 4:, :, 8:, :8] = 0.05  # at (1, 0), in the third
    clip[0, 3, :, 8:, 8:] = 9  # inside a tube: nobody looks, but back is a change
    signals = Signals({Signal("pixels", "vision.layer.0"): clip})
    found = RLT(select="threshold", threshold=0.1).select(seen, signals, stage("vision.layer.0", 0.5))
    assert found.keep.tolist() == [[0, 1, 2, 3, 5, 11]]
    assert RLT(select="budget", threshold=0.1).select(seen, signals, stage("vision.layer.0", 7)).keep.tolist() == [
        [0, 1, 2, 3, 5, 10, 11]
    ]
    with pytest.raises(ValueError, match="select is 'x'"):
        RLT(select="x", threshold=0.1)
    with pytest.raises(ValueError, match="threshold is -1"):
        RLT(select="budget", threshold=-1)
    with pytest.raises(ValueError, match="compares pixels once"):
        RLT(select="budget", threshold=0).check(Schedule.from_config([{"site": "vision.layer.1", "keep": 4}]))


def test_fewer_frames():
    seen = tokens(16)
    seen = replace(seen, coord=torch.stack([seen.index // 4, seen.index % 4 // 2, seen.index % 2], -1))
    kept = FewerFrames().select(seen, Signals(), stage("vision.layer.0", 8)).keep[0]
    assert sorted(set((kept // 4).tolist())) == [1, 3]


@pytest.mark.parametrize("family", ["vim", "vit", "videomae"])
def test_on_a_model(family):
    """All of them run where they belong, and leave as many as they should."""
    host, inputs = shared(family), pictures(shared(family))
    methods = {
        "vim": [RMeeTo(gap="none", conv="closed"), RMeeTo(gap="own", conv="aligned")],
        "vit": [EViT(score=score, fuse=True) for score in ("fixed", "cls", "received")],
        "videomae": [EViT(score=score, fuse=True) for score in ("fixed", "received")],
    }[family]
    for method in methods:
        with torch.no_grad(), attach(host, method, plan(("vision.layer.1", 6), ("vision.layer.2", 3))) as trace:
            assert host(**inputs).logits.isfinite().all()
        assert trace[0].visual[1:] == [(6, 6), (3, 3), (3, 3)]
        assert sum(trace[0].stages[-1].sizes[0].tolist()) == trace[0].total[0]


@pytest.mark.parametrize("family", ["vit", "videomae", "yolos", "dinov2"])
def test_tome_in_every_block(family):
    """Two tokens fewer behind each attention; the sizes add up."""
    host, inputs = shared(family), pictures(shared(family))
    method = ToMe(class_token=False, order="raster", proportional_attention=True)
    n = host.coords(inputs).shape[1]
    stages = plan(*((f"vision.mlp.{i}", n - 2 * i - 2) for i in range(4)), positions="renumber")
    with torch.no_grad(), attach(host, method, stages) as trace:
        assert host(**inputs).logits.isfinite().all()
    assert trace[0].visual == [(n - 2 * i,) * 2 for i in range(4)]
    fixed = host.towers["vision"].fixed_count
    assert trace[0].vision == [(n - 2 * i + fixed, n - 2 * i - 2 + fixed) for i in range(4)]
    assert sum(trace[0].stages[-1].sizes[0].tolist()) == n
