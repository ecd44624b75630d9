"""The cache holds what sizes and token counts say."""

import pytest
import tiny
import torch

from btp.core.schedule import Schedule
from btp.core.trace import Call
from btp.engine.attach import attach
from btp.measure.architecture import Stack, architecture
from btp.measure.kv import kv_bytes, layer_bytes


def test_by_hand():
    """Keys and values, two rows as long as the longer, one grouped head of size 4, two bytes each."""
    stack = Stack(layers=1, hidden=8, ffn=8, heads=2, kv_heads=1, head_dim=4, gated=True)
    assert layer_bytes(stack, (3, 5), torch.bfloat16) == 2 * (2 * 5) * 4 * 2
    assert layer_bytes(stack, (3, 5), torch.float32) == 2 * layer_bytes(stack, (3, 5), torch.bfloat16)


def test_llava_of_use():
    """LLaVA-1.5-7B in float16 with 576 visual and 64 text tokens: 320 MiB."""
    stack = Stack(layers=32, hidden=4096, ffn=11008, heads=32, kv_heads=32, head_dim=128, gated=True)
    call = Call((576,), (64,), tokens=[(640,)] * 32)
    found = kv_bytes(stack, call, torch.float16)
    assert found.held_mib == 320
    assert found.measured is None
    assert found.agree is None


@pytest.mark.parametrize("rows", [[[2, "i", 5]], [[2, "i", 5], [1, "i", 2]]], ids=["one", "ragged"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_measured_is_computed(family, dtype, rows):
    """Uncut and cut, the cache's own tensors are as large as computed, in every layer."""
    lvlm = tiny.FAMILIES[family](dtype=dtype)
    inputs = tiny.prompts(lvlm, rows)
    decoder = architecture(lvlm.config).decoder
    cut = Schedule.from_config([{"site": "llm.layer.2", "keep": 0}])
    for schedule in (None, cut):
        with attach(lvlm, None, schedule) as trace:
            lvlm.generate(**inputs, max_new_tokens=2, do_sample=False)
        found = kv_bytes(decoder, trace.last, dtype)
        assert found.agree
        assert found.held_mib == sum(found.computed) / 2**20
    assert found.computed[1] > found.computed[2]


def test_a_difference_shows():
    """A cache that holds less than entered the layer does not agree, and counts for what it holds."""
    stack = Stack(layers=1, hidden=8, ffn=8, heads=2, kv_heads=1, head_dim=4, gated=True)
    found = kv_bytes(stack, Call((3,), (2,), tokens=[(5,)], cache_bytes=[64]), torch.float32)
    assert found.computed == (160,)
    assert not found.agree
    assert found.held_mib == 64 / 2**20
