"""Stages of phase both on models with pictures: visual tokens stay behind and come back, text where a scope says so."""

from itertools import accumulate

import pytest
import tiny
import torch
from lazy_toys import both
from oracle import alone, steps
from who_saw_whom import dense

from btp.engine.attach import attach
from btp.pruners.lazyllm import LazyLLM


def _sums(call, b):
    """For each stage, the tokens computed behind it so far, summed over the forwards."""
    columns = [[record.computed[b] for record in column] for column in zip(*call.steps, strict=True)]
    return [sum(accumulate(column)) for column in columns]


ROWS = [[2, "i", 5], [3, "i", 1, "i", 2]]


@pytest.mark.parametrize("scope", [None, "visual", "text", "all"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_pictures(attention, scope):
    """On an LVLM visual tokens leave and come back, and others only where the stage's scope says so."""
    host = tiny.shared("llava", attention)
    inputs = tiny.prompts(host, ROWS)
    visual = host.visual_mask(inputs)
    settings = {} if scope is None else {"scope": scope}
    with attach(host, LazyLLM(), both(("llm.layer.1", 0.6), ("llm.layer.3", 0.5), **settings)) as trace:
        tokens, logits = steps(host, inputs, n=6)
    call, S = trace.last, inputs["input_ids"].shape[1]
    assert call.held == call.tokens
    through = [sum(record.computed[0] for record in column) for column in zip(*call.steps, strict=True)]
    full = call.tokens[0][0] + 5
    assert [call.held_sum[at][0] for at in (0, 1, 3)] == [sum(range(full - 5, full + 1)), *_sums(call, 0)]
    assert through[0] <= full
    for b in range(2):
        real = inputs["attention_mask"][b].bool()
        row = alone(inputs, b, 9)
        row = {
            "input_ids": torch.cat([row["input_ids"], tokens[b : b + 1, S:-1]], dim=1),
            "pixel_values": row["pixel_values"],
        }
        want = dense(host, call, b, row)[int(real.sum()) - 1 :]
        assert (want - logits[:, b]).abs().max() < 5e-6 * logits.abs().max()
        pictured = set(visual[b, real].nonzero().flatten().tolist())
        for t, step in enumerate(call.steps):
            gone = set(range(int(real.sum()) + t)) - set(step[0].seen_at[b])
            assert gone
            assert scope == "all" or (gone <= pictured if scope != "text" else not gone & pictured)
    assert sum(sum(record.revived) for step in call.steps for record in step) > 0
    kept = [(len(stage.kept[0]), len(stage.kept[1])) for stage in call.stages]
    assert call.visual == [(9, 18), kept[0], kept[0], kept[1]]
    if scope in (None, "visual"):
        assert kept == [(6, 11), (3, 6)]


def test_positions_in_three_axes():
    """Qwen2.5-VL: a patch that comes back has its place in the picture."""
    host = tiny.shared("qwen")
    inputs = tiny.prompts(host, [[2, (3, 4), 3]])
    with attach(host, LazyLLM(), both(("llm.layer.1", 0.6), ("llm.layer.3", 0.5))) as trace:
        tokens, logits = steps(host, inputs, n=6)
    S = inputs["input_ids"].shape[1]
    more = tokens[:, S:-1]
    whole = inputs | {"input_ids": tokens[:, :-1], "attention_mask": torch.ones_like(tokens[:, :-1])}
    whole["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(more).int()], dim=1)
    want = dense(host, trace.last, 0, whole)[S - 1 :]
    assert (want - logits[:, 0]).abs().max() < 5e-6 * logits.abs().max()
    assert sum(record.revived[0] for step in trace.last.steps for record in step) > 0
