"""By formula: what a cache holds behind stages that evict from it, and the sizes of decoders with another MLP."""

import pytest
import torch
from transformers import OPTConfig

from btp.core.schedule import Schedule, Stage
from btp.measure.architecture import architecture
from btp.measure.planned import held, planned_costs


@pytest.mark.parametrize(
    ("stages", "slots"),
    [
        ([Stage("llm.cache.*", 30)], [30] * 4),
        ([Stage("llm.cache.*", 0.5)], [50] * 4),
        ([Stage("llm.cache.0", 1.0), Stage("llm.cache.*", 30)], [100, 30, 30, 30]),
        ([Stage("llm.cache.*", 30, phase="decode")], [100] * 4),
        ([Stage("llm.cache.*", 8, settings={"scope": "visual"})], [48] * 4),
        ([Stage("llm.layer.2", 20), Stage("llm.cache.*", 50)], [50] * 4),
        ([Stage("llm.layer.2", 20)], [100, 100, 60, 60]),
    ],
)
def test_slots_behind_a_prompt(stages, slots):
    """Of 60 visual and 40 text tokens."""
    schedule = Schedule(tuple(stages))
    assert held(schedule, schedule.tokens_per_layer(60, 4), 40) == slots


def test_eviction_saves_memory_and_nothing_else():
    sizes = architecture(OPTConfig(num_hidden_layers=4, hidden_size=64, ffn_dim=96, num_attention_heads=4))
    assert (sizes.decoder.ffn, sizes.decoder.gated, sizes.decoder.kv_heads) == (96, False, 4)
    whole, evicted = (
        planned_costs(sizes, Schedule(stages), 99, 1, torch.float16) for stages in ((), (Stage("llm.cache.*", 25),))
    )
    assert evicted["kv_mib"] == whole["kv_mib"] / 4
    assert {k: v for k, v in evicted.items() if k != "kv_mib"} == {k: v for k, v in whole.items() if k != "kv_mib"}
