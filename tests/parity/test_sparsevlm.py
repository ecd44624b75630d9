"""SparseVLM against its released code (v1.5; `rank` is the first release), with its noise set to zero."""

import pytest
import torch

from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signals
from btp.core.topk import top_k
from btp.ops.density_peaks import density_peaks
from btp.ops.text_raters import block_rank, choose_raters, text_scores
from btp.pruners.sparsevlm import START, TEXT, SparseVLM
from parity.plain_llama import PlainLlama, Walk, cases, part, recorded

ARRAYS, FACTS = recorded("sparsevlm")
TABLE = {2: 300, 6: 200, 15: 110}
SETTINGS = {
    "score": "attention",
    "guard": 0,
    "heads": None,
    "recycle": 0.3,
    "per_cluster": 10,
    "count": "table",
    "scale": 13.5,
    "bias": 0,
}


def everyone(x):
    return torch.ones(x.shape[:2], dtype=torch.bool)


def members(mask):
    return mask[0].nonzero().flatten().tolist()


@pytest.mark.parametrize("name", cases("sparsevlm", "rater"))
def test_raters(name):
    """Scores and who is above the mean."""
    case = part(ARRAYS, name)
    scores = text_scores(case["v"], everyone(case["v"]), case["t"], everyone(case["t"]))
    assert torch.allclose(scores, case["score"], atol=1e-6)
    assert members(choose_raters(scores, everyone(case["t"]))) == case["idx"].tolist()


def chosen_by(pruner, attention, keep):
    """What the pruner keeps where every text row is a rater: its score with equal text is equal."""
    B, _, R, N = attention.shape
    where = Stage("llm.layer.3", keep, "renumber")
    values = {START: torch.zeros(B, N, 4), TEXT: torch.ones(B, R, 4), pruner.needs(where)[2]: attention}
    valid = {START: torch.ones(B, N, dtype=torch.bool), TEXT: torch.ones(B, R, dtype=torch.bool)}
    valid[pruner.needs(where)[2]] = valid[TEXT]
    walk = Walk(None, torch.randn(B, N, 4), 0, N)
    return pruner.select(walk.tokens(), Signals(values, valid), where)


@pytest.mark.parametrize("name", cases("sparsevlm", "score"))
def test_scores(name):
    """The mean over heads and raters, and the table's number of tokens that it keeps."""
    case = part(ARRAYS, name)
    relation = case["attn_rater_rows"].mean((1, 2))
    assert torch.allclose(relation, case["relation"], atol=1e-7)
    alive = relation.shape[1]
    number = min(TABLE[int(case["layer"])], alive - 1)
    assert top_k(relation, [number])[0].tolist() == members(case["mask"])
    pruner = SparseVLM(**SETTINGS)
    assert pruner._kept_as_is(alive, number + pruner._means(alive - number)) in (number, alive)
    kept = chosen_by(SparseVLM(**SETTINGS | {"recycle": 0}), case["attn_rater_rows"], number).keep
    assert kept[0].tolist() == members(case["mask"])


@pytest.mark.parametrize("name", cases("sparsevlm", "rank"))
def test_rank(name):
    """The rank of the raters' block, and how many tokens follow from it; all where the rank is their number."""
    case = part(ARRAYS, name)
    block = case["rows"].mean(1)
    assert block_rank(block, everyone(block), everyone(block.mT)).item() == int(case["rank"])
    scale, bias = case["scale_bias"].tolist()
    pruner = SparseVLM(**SETTINGS | {"count": "rank", "scale": scale, "bias": bias, "recycle": 0})
    chosen = chosen_by(pruner, case["rows"], 0.5)
    cut = bool(case["flag"])
    expected = members(case["mask"]) if cut else list(range(block.shape[2]))
    assert chosen.keep[0].tolist() == expected
    assert chosen.counts == (len(expected),)


@pytest.mark.parametrize("name", cases("sparsevlm", "cluster"))
def test_clusters(name):
    """The means of the clusters, in the order of their centres. Without noise, equally dense rows stay equal there."""
    case = part(ARRAYS, name)
    x, k = case["x"], int(case["k"])
    centres, group = density_peaks(x, [k], strict=True)
    means = torch.stack([x[0, group[0] == i].mean(0) for i in range(k)])
    assert torch.allclose(means, case["merged"][0], atol=1e-5)
    assert centres.shape == (1, k)


@pytest.mark.skipif("e2e/inputs_embeds" not in ARRAYS, reason="not among the recorded cases")
def test_prefill():
    """35 + 576 + 12 rows, cuts behind layers 2 and 6: rows, means, lengths, positions and logits."""
    case = part(ARRAYS, "e2e")
    x, first, total = case["inputs_embeds"], 35, 576
    visual, text = x[:, first : first + total], x[:, first + total :]
    raters = choose_raters(text_scores(visual, everyone(visual), text, everyone(text)), everyone(text))
    recorded_raters = case["raters"] - (first + total if int(case["raters"].max()) >= text.shape[1] else 0)
    assert members(raters) == recorded_raters.tolist()
    model = PlainLlama(part(ARRAYS, "e2e/w"), heads=4, eps=1e-6)
    schedule = Schedule((Stage("llm.layer.3", 309, "renumber"), Stage("llm.layer.7", 204, "renumber")))
    walk = Walk(model, x, first, total).through(SparseVLM(**SETTINGS), schedule)
    assert walk.lengths == case["layer_lengths"].tolist() == case["kv_lengths_after_prefill"].tolist()
    for cut, number, stage in zip((2, 6), (9, 4), walk.stages, strict=True):
        kept = stage["chosen"].keep.shape[1] - number
        rows = stage["rows"][0].clone()
        rows[first + kept : first + kept + number] = -1
        assert rows.tolist() == case[f"rows_after_layer{cut}"].tolist()
        assert torch.allclose(stage["states"][0, kept:], case[f"merged_after_layer{cut}"], atol=1e-5)
        assert walk.positions[cut + 1].tolist() == case[f"positions_layer{cut + 1}"].tolist()
    logits = walk.x[:, -1] @ case["w/lm_head"].T
    assert torch.allclose(logits, case["prefill_logits_last"], atol=3e-4)
