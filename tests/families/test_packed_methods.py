"""Methods on families that pack their pictures, as their cards have them."""

import pytest
import torch
from oracle import steps
from toys import Watch, plan

from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.pruners.aim import AIM
from btp.pruners.fastervlm import FasterVLM
from btp.pruners.vflowopt import VFlowOpt
from btp.pruners.visionzip import VisionZip
from families import kit

CLS = Signal("attention", "vision.feature", "cls")


def sources(lvlm, inputs):
    """Per row the number of the tower's token that each visual token is."""
    layout = lvlm.layout(inputs)
    return [row[mask].tolist() for row, mask in zip(layout.source, layout.visual, strict=True)]


def seen(lvlm, inputs):
    """[P, N] what the class token looks at."""
    pruner = Watch(CLS)
    with torch.no_grad(), attach(lvlm, pruner, plan(("llm.input", 0.5))):
        lvlm(**inputs)
    return pruner.seen[0][2][CLS][:, :, 0].mean(1)


@pytest.mark.parametrize("site", ["vision.output", "llm.input"])
def test_fastervlm_on_tiles(site):
    """Each tile its own best in the order of the picture, or all tiles one count; newlines go."""
    lvlm = kit.loaded("llava_next").host
    inputs = kit.batch("llava_next", kit.rows("llava_next")["left padded, unequal pictures"])
    score, rows = seen(lvlm, inputs), sources(lvlm, inputs)
    flat, each = score.flatten(), score.shape[1]
    with attach(lvlm, FasterVLM(heads="mean", score="cls"), plan((site, 4))) as trace:
        steps(lvlm, inputs)
    for kept, row in zip(trace[0].stages[0].kept, rows, strict=True):
        groups = {}
        for i, source in enumerate(row):
            if source >= 0:
                groups.setdefault(source // each if site == "vision.output" else 0, []).append(i)
        best = [sorted(group, key=lambda i, row=row: -flat[row[i]])[:4] for group in groups.values()]
        assert kept == sorted(i for group in best for i in group)


@pytest.mark.parametrize("order", ["raster", "official"])
def test_visionzip_on_tiles(order):
    """Each tile becomes as many tokens, and every patch flows into one of its own tile."""
    lvlm = kit.loaded("llava_next").host
    inputs = kit.batch("llava_next", [["what ", kit.Picture(84, 84)]])
    method = VisionZip(score="cls", contextual=1, cls=True, merge="official", order=order)
    with attach(lvlm, method, plan(("vision.output", 4), positions="renumber")) as trace:
        steps(lvlm, inputs)
    record = trace[0].stages[0]
    tiles = [sources(lvlm, inputs)[0][i] // 9 for i in record.kept[0]]
    assert sorted(tiles) == [t for t in range(5) for _ in range(4)]
    assert record.sizes[0].sum() == 45
    assert (tiles == sorted(tiles)) == (order == "official")


def test_aim_merges_the_frames_of_onevision():
    """Pooled frames merge by themselves, each by half; the newline stays; then the decoder prunes."""
    lvlm = kit.loaded("llava_onevision").host
    inputs = kit.batch("llava_onevision", kit.rows("llava_onevision")["video"])
    method = AIM(metric="hidden", order="raster", mean="official", tau=0.1, iterations=5, damping=0.0)
    stages = Schedule((Stage("llm.input", 7, "renumber"), Stage("llm.layer.2", 3)))
    with attach(lvlm, method, stages) as trace:
        steps(lvlm, inputs)
    call = trace[0]
    assert call.visual == [(7,), (7,), (3,), (3,)]
    assert [i // 4 for i in call.stages[0].kept[0]] == [0, 0, 1, 1, 2, 2, 3]
    assert call.stages[0].sizes[0].sum() == 13


def test_vflowopt_recycles_a_picture_and_its_tiles():
    """One image of two regions: newlines stay, and cells give tokens back, beside a row that has several images."""
    lvlm = kit.loaded("llava_onevision").host
    inputs = kit.batch("llava_onevision", kit.rows("llava_onevision")["left padded, unequal pictures"])
    given = {"t": 1.0, "alpha": 0.0, "m": 2.0, "rows": "mean", "entropy": "paper", "mean": [0.5] * 3, "std": [0.5] * 3}
    method = VFlowOpt(**given, recycle=True, recycle_several=False, exact=True)
    with attach(lvlm, method, plan(("llm.input", 0.5), positions="renumber")) as trace:
        steps(lvlm, inputs)
    record, layout = trace[0].stages[0], lvlm.layout(inputs)
    assert record.sizes[0].sum() == record.before[0]
    assert record.merged[0]
    assert not record.merged[1]
    for b, kept in enumerate(record.kept):
        newlines = (layout.source[b][layout.visual[b]] < 0).nonzero().flatten().tolist()
        assert set(newlines) <= set(kept)
