"""METok on the families that take videos: what it computes is what plain forwards compute."""

from dataclasses import replace

import pytest
import torch
from oracle import steps, withdrawn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from btp.core.schedule import Schedule, Stage
from btp.engine.attach import attach
from btp.models.video.clip_features import encode_clips
from btp.pruners.metok import Asked, METok
from families import kit
from families.hiding import hiding
from families.test_clips import Frames, prompts

SETTINGS = {"events": 3, "key_events": 1, "key_frames": 2, "pool": "bilinear"}
INSIDE = ("llava_onevision", "llava_next_video", "video_llava", "qwen25vl")


def match(question, clip, device):
    """Frames match the better the later they come, the second best of all."""
    found = torch.arange(len(clip)).float()
    found[1:2] = 99
    return found


class Recorded(METok):
    """Keeps what it decided at the input."""

    def select(self, tokens, signals, stage):
        found = super().select(tokens, signals, stage)
        if stage.site.kind == "input":
            self.entered = found
        return found


def stages(*more, keep=0.5):
    positions = "renumber" if keep != 1.0 else "original"
    return Schedule((Stage("llm.input", keep, positions), *more))


ROWS = [([], [Frames(7, 10)], "what is left of the blue circle"), ([], [Frames(3, 40)], "yes or no?")]


def asked(rows):
    return [Asked(question, tuple(clips)) for _, clips, question in rows]


def test_replaced_features_are_a_shorter_prompt():
    """Two rows of unequal videos, left padded: as a plain forward that is given the pooled features."""
    host = kit.loaded("llava_onevision")
    inputs, clips = prompts("llava_onevision", ROWS)
    pruner = Recorded(matcher=match, **SETTINGS)
    pruner.set_clips(asked(ROWS))
    with attach(host.host, pruner, stages()) as trace:
        tokens, logits = steps(host.host, inputs | encode_clips(host.host, host.processor, clips, chunk=2))
    counts, states = trace[0].stages[0].after, pruner.entered.states
    assert counts != trace[0].total
    assert counts[0] != counts[1]
    shorter, video = [], host.processor.video_token_id
    for ids, real, count in zip(inputs["input_ids"], inputs["attention_mask"], counts, strict=True):
        ids = ids[real.bool()]
        first = int((ids == video).nonzero()[0])
        shorter.append(torch.cat([ids[:first], torch.full((count,), video), ids[ids.eq(video).nonzero()[-1] + 1 :]]))
    most = max(map(len, shorter))
    ids = torch.stack([torch.cat([inputs["input_ids"].new_zeros(most - len(row)), row]) for row in shorter])
    mask = torch.stack([torch.cat([torch.zeros(most - len(r)), torch.ones(len(r))]).long() for r in shorter])
    features = torch.cat([state[:count] for state, count in zip(states, counts, strict=True)])[None]
    plain = {"mm_encoder_outputs": {"video": BaseModelOutputWithPooling(pooler_output=features)}}
    again, others = steps(host.host, {"input_ids": ids, "attention_mask": mask} | plain)
    torch.testing.assert_close(logits, others, atol=2e-5, rtol=2e-5)
    assert torch.equal(tokens[:, -3:], again[:, -3:])


def test_a_row_in_a_batch_is_as_alone():
    """Events, pooled tokens and pruning of each row."""
    host, schedule = kit.loaded("llava_onevision"), stages(Stage("llm.layer.1", 0.3), Stage("llm.layer.2", 0))
    pruner = METok(matcher=match, **SETTINGS)
    found = []
    for rows in (ROWS, ROWS[:1], ROWS[1:]):
        inputs, clips = prompts("llava_onevision", rows)
        pruner.set_clips(asked(rows))
        with attach(host.host, pruner, schedule) as trace, torch.no_grad():
            features = encode_clips(host.host, host.processor, clips)
            found.append((host.host(**inputs, **features).logits[:, -1], [s.after for s in trace[0].stages]))
    for b in range(2):
        torch.testing.assert_close(found[0][0][b : b + 1], found[1 + b][0], atol=3e-5, rtol=3e-5)
        assert [after[b] for after in found[0][1]] == [after[0] for after in found[1 + b][1]]


@pytest.mark.parametrize("name", INSIDE)
def test_pruning_and_cache_are_hiding(name):
    """Stages between layers hide tokens from there on; those at the cache hide frames from the first decode step on."""
    host = kit.loaded(name)
    inputs, clips = prompts(name, ROWS)
    pruner = METok(matcher=match, **SETTINGS)
    pruner.set_clips(asked(ROWS))
    inside = (
        Stage("llm.layer.1", 0.5, settings={"others": "half", "ratio": 0.6}),
        Stage("llm.cache.1", 0, settings={"scope": "visual"}),
        Stage("llm.layer.2", 0.3, settings={"others": "none", "ratio": 0.6}),
        Stage("llm.cache.2", 0, settings={"scope": "visual"}),
        Stage("llm.layer.3", 0),
    )
    with attach(host.host, pruner, stages(*inside, keep=1.0)) as trace:
        ready = inputs | encode_clips(host.host, host.processor, clips)
        tokens, logits = steps(host.host, ready)
    visual, call = host.host.visual_mask(inputs), trace[0]
    assert call.stages[0].after == call.total
    assert all(0 < b < a for a, b in zip(call.stages[1].before, call.stages[1].after, strict=True))
    assert all(0 < b < a for a, b in zip(call.stages[2].before, call.stages[2].after, strict=True))
    later = [((1, 2), [row.nonzero().flatten().tolist() for row in visual])]
    with attach(host.host):
        ready = inputs | encode_clips(host.host, host.processor, clips)
        with hiding(host.host, inputs, withdrawn(inputs, visual, call), later):
            hidden_tokens, hidden_logits = steps(host.host, ready)
    torch.testing.assert_close(logits, hidden_logits, atol=3e-5, rtol=3e-5)
    assert torch.equal(tokens, hidden_tokens)


def test_pooling_where_it_cannot_be_seen():
    """Families that pool in front of their projector, or not at all, are told what works."""
    host = kit.loaded("llava_next_video")
    with (
        pytest.raises(ValueError, match="between projector and pooling"),
        attach(host.host, METok(matcher=match, **SETTINGS), stages()),
    ):
        pass


def test_nobody_said_what_is_asked():
    """Without set_clips there is nothing to match with."""
    host = kit.loaded("llava_onevision")
    inputs, clips = prompts("llava_onevision", ROWS)
    with attach(host.host, METok(matcher=match, **SETTINGS), stages()), pytest.raises(ValueError, match="set_clips"):
        host.host(**inputs, **encode_clips(host.host, host.processor, clips))


def test_keeping_all_changes_nothing():
    """Every keep 1.0: bit for bit."""
    host = kit.loaded("llava_onevision")
    inputs, clips = prompts("llava_onevision", ROWS)
    pruner = METok(matcher=match, **SETTINGS)
    pruner.set_clips(asked(ROWS))
    kept = Stage("llm.layer.1", 1.0, settings={"ratio": 0.5})
    runs = []
    for method, schedule in ((None, None), (pruner, replace(stages(kept, keep=1.0)))):
        with attach(host.host, method, schedule):
            runs.append(steps(host.host, inputs | encode_clips(host.host, host.processor, clips)))
    assert torch.equal(runs[0][1], runs[1][1])
