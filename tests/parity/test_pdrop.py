"""PyramidDrop against its released code: what is kept, stage by stage, and where that leads."""

import pytest
import torch

from btp.core.schedule import Schedule, Stage
from btp.pruners.pdrop import PDrop
from parity.plain_llama import PlainLlama, Walk, part, recorded

ARRAYS, FACTS = recorded("pdrop")
TEXT, TRUNCATED = 14, 30  # text rows of all cases but trunc, which has 30 image tokens instead
BEHIND = {"suffix": 3}  # rows behind the last instruction token


def starts(dropped, total):
    """Where the image may begin, so that all dropped rows lie in it; 5 first, as the description of `one` says."""
    feasible = range(max(0, max(dropped) + 1 - total), min(dropped) + 1)
    return sorted(feasible, key=lambda first: (first != 5, first))


def through(name):
    """The recorded case, and the walk whose image begins where its rows come out right (else the likeliest)."""
    arrays = part(ARRAYS, name)
    lengths, behind = arrays["layer_lengths"].tolist(), BEHIND.get(name, 0)
    total = TRUNCATED if name == "trunc" else lengths[0] - TEXT - behind
    sites = [i for i in range(1, len(lengths)) if lengths[i] != lengths[i - 1]]
    counts = [lengths[i] - lengths[0] + total for i in sites]
    schedule = Schedule(tuple(Stage(f"llm.layer.{i}", k, "renumber") for i, k in zip(sites, counts, strict=True)))
    model = PlainLlama(part(ARRAYS, "w"), heads=4, eps=1e-6)
    first_rows = arrays["keep_stage0"]
    walks = []
    for first in starts(set(range(lengths[0])) - set(first_rows.flatten().tolist()), total):
        walks.append(Walk(model, arrays["inputs_embeds"], first, total, behind).through(PDrop(), schedule))
        if torch.equal(walks[-1].stages[0]["rows"], first_rows):
            return arrays, walks[-1]
    return arrays, walks[0]


@pytest.mark.parametrize("name", [name for name in FACTS["cases"] if f"{name}/layer_lengths" in ARRAYS])
def test_prefill(name):
    """Rows that stay, lengths and positions of every layer, final states and logits."""
    arrays, walk = through(name)
    assert walk.lengths == arrays["layer_lengths"].tolist() == arrays["kv_lengths_after_prefill"].tolist()
    for i, stage in enumerate(walk.stages):
        assert stage["rows"].tolist() == arrays[f"keep_stage{i}"].tolist()
    for layer, positions in enumerate(walk.positions):
        expected = arrays[f"position_ids/{layer}"]
        assert torch.equal(positions, expected.expand_as(positions))
    assert torch.allclose(walk.x, arrays["hidden_final"], atol=1e-4)
    logits = walk.x[:, -1] @ ARRAYS["w/lm_head"].T
    assert torch.allclose(logits, arrays["prefill_logits_last"], atol=2e-4)


def test_counts_are_shares_of_the_original():
    """30 tokens of which .5, .25 and .125 stay are 15, 7 and 3: truncated."""
    assert [Stage("llm.layer.8", keep).count(30) for keep in (0.5, 0.25, 0.125)] == [15, 7, 3]
