"""Methods for videos on the families that take them: removing equals hiding, and what merges runs through."""

import functools

import pytest
import torch
from oracle import steps, withdrawn
from toys import plan

from btp.engine.attach import attach
from btp.pruners.dycoke import DyCoke
from btp.pruners.evs import EVS
from btp.pruners.fastvid import FastVID
from btp.pruners.holitom import HoliTom
from btp.pruners.vidcom2 import VidCom2
from families import kit
from families.hiding import hiding

HOSTS = ("llava_next_video", "llava_onevision", "qwen25vl")
FASTVID = {"segments": 2, "threshold": 0.9, "salient": 0.4, "every": 2, "neighbours": 2, "share": 0.6}
HOLITOM = {"threshold": 0.3, "window": 99}
REMOVING = {
    "evs": EVS(),
    "dycoke": DyCoke(similar="whole", threshold=0.9),
    "vidcom2": VidCom2(channels=0.5, temperature=0.01),
}
MERGING = {"fastvid": functools.partial(FastVID, **FASTVID), "holitom": functools.partial(HoliTom, **HOLITOM)}


def clip(name):
    return kit.loaded(name).host, kit.batch(name, kit.rows(name)["video"])


@pytest.mark.parametrize("method", REMOVING)
@pytest.mark.parametrize("name", HOSTS)
def test_removing_equals_hiding(name, method):
    """Prefill and decode."""
    lvlm, inputs = clip(name)
    with attach(lvlm, REMOVING[method], plan(("llm.input", 0.5))) as trace:
        tokens, logits = steps(lvlm, inputs)
    total = int(lvlm.visual_mask(inputs).sum())
    assert trace[0].stages[0].after == (total // 2,)
    with hiding(lvlm, inputs, withdrawn(inputs, lvlm.visual_mask(inputs), trace[0])):
        hidden_tokens, hidden_logits = steps(lvlm, inputs)
    torch.testing.assert_close(logits, hidden_logits, atol=2e-6, rtol=2e-6)
    assert torch.equal(tokens, hidden_tokens)


@pytest.mark.parametrize("method", MERGING)
@pytest.mark.parametrize("name", HOSTS)
def test_merging_runs_through(name, method):
    """Every token is kept, flows into one that is, or is dropped; by the tower's attention where it can be seen."""
    lvlm, inputs = clip(name)
    salience = "none" if name == "llava_next_video" else "received"
    with attach(lvlm, MERGING[method](salience=salience), plan(("llm.input", 0.5))) as trace:
        _, logits = steps(lvlm, inputs)
    record, total = trace[0].stages[0], int(lvlm.visual_mask(inputs).sum())
    assert torch.isfinite(logits).all()
    assert 0 < record.after[0] <= total // 2
    assert record.after[0] <= int(record.sizes[0].sum()) <= total


def test_frames_pooled_in_front_of_the_projector_show_nothing_of_the_tower():
    """LLaVA-NeXT-Video: salience is refused there, with what works instead."""
    lvlm, inputs = clip("llava_next_video")
    method = MERGING["fastvid"](salience="received")
    message = "tokens that are none of the vision tower's"
    with pytest.raises(ValueError, match=message), attach(lvlm, method, plan(("llm.input", 0.5))):
        steps(lvlm, inputs)
