"""SparseVLM+ (code v2.0) against its released code."""

import pytest
import torch

from btp.core.schedule import Schedule, Stage
from btp.core.topk import top_k
from btp.ops.text_raters import choose_raters, loudest_heads, text_scores
from btp.pruners.sparsevlm import SparseVLM
from parity.plain_llama import PlainLlama, Walk, cases, part, recorded

ARRAYS, FACTS = recorded("sparsevlm_plus")
SETTINGS = {
    "score": "kernel",
    "guard": 0,
    "heads": 14,
    "recycle": 0,
    "per_cluster": 10,
    "count": "table",
    "scale": 13.5,
    "bias": 0,
}


@pytest.mark.parametrize(
    ("file", "name"), [(file, name) for file in ("sparsevlm", "sparsevlm_plus") for name in cases(file, "heads")]
)
def test_heads(file, name):
    """The 14 heads with the largest sum."""
    case = part(recorded(file)[0], name)
    block, selected = case["attn_rater_rows"], case["selected"].sort().values
    assert top_k(block.sum((2, 3)), [14])[0].tolist() == selected.tolist()
    assert torch.equal(loudest_heads(block, 14), block[:, selected])


@pytest.mark.skipif("e2e/inputs_embeds" not in ARRAYS, reason="not among the recorded cases")
def test_prefill():
    """35 + 576 + 12 rows, cuts behind layers 2 and 6 without recycling: rows, positions and logits."""
    case = part(ARRAYS, "e2e")
    x, first, total = case["inputs_embeds"], 35, 576
    visual, text = x[:, first : first + total], x[:, first + total :]
    here = [torch.ones(part.shape[:2], dtype=torch.bool) for part in (visual, text)]
    raters = choose_raters(text_scores(visual, here[0], text, here[1]), here[1])[0].nonzero().flatten()
    recorded_raters = case["raters"] - (first + total if int(case["raters"].max()) >= text.shape[1] else 0)
    assert raters.tolist() == recorded_raters.tolist()
    model = PlainLlama(part(ARRAYS, "e2e/w"), heads=16, eps=1e-6)
    schedule = Schedule((Stage("llm.layer.3", 300), Stage("llm.layer.7", 200)))
    walk = Walk(model, x, first, total).through(SparseVLM(**SETTINGS), schedule)
    assert walk.lengths == case["layer_lengths"].tolist() == case["kv_lengths_after_prefill"].tolist()
    for cut, stage in zip((2, 6), walk.stages, strict=True):
        assert stage["rows"][0].tolist() == case[f"rows_after_layer{cut}"].tolist()
        assert walk.positions[cut + 1].tolist() == case[f"positions_layer{cut + 1}"].tolist()
    logits = walk.x[:, -1] @ case["w/lm_head"].T
    assert torch.allclose(logits, case["prefill_logits_last"], atol=3e-4)
