"""Official runs of whole decoders, played again through attach(): prefill, every decode step, caches and positions.

Cases that are not in the recorded files are skipped; who has the full files drops them in.
"""

import numpy
import pytest
import torch

from btp.core.schedule import Schedule, Stage
from btp.pruners.aim import AIM
from btp.pruners.dart import DART
from btp.pruners.fastv import FastV
from btp.pruners.pdrop import PDrop
from btp.pruners.sparsevlm import SparseVLM
from btp.pruners.transprune import TransPrune
from parity.decoder import play, tiny
from parity.plain_llama import HERE, PlainLlama, Walk, part, recorded

V15 = {
    "score": "attention",
    "guard": 0.0,
    "heads": None,
    "recycle": 0.3,
    "per_cluster": 10,
    "count": "table",
    "scale": 13.5,
    "bias": 0.0,
}
PLUS = V15 | {"score": "kernel", "heads": 14, "recycle": 0.0}


def stages(*found, **more):
    """A schedule from (site, keep) or (site, keep, settings)."""
    return Schedule(tuple(Stage(s[0], s[1], **more, settings=s[2] if len(s) > 2 else {}) for s in found))


def near(a, b, atol):
    """Equal up to `atol`, with the difference in the message."""
    assert a.shape == b.shape
    assert (a - b).abs().max() <= atol, float((a - b).abs().max())


PDROP, PDROP_FACTS = recorded("pdrop")
NO_SUFFIX = [n for n in PDROP_FACTS["cases"] if n != "suffix" and f"{n}/layer_lengths" in PDROP]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NO_SUFFIX)
def test_pdrop(name, attention):
    """Lengths, positions and rows of every stage, logits of prefill and of each step behind it."""
    case, first = part(PDROP, name), 5
    lengths = case["layer_lengths"].tolist()
    total = {"trunc": 30, "batch2": lengths[0] - 14}.get(name, 32)
    cuts = [i for i in range(1, len(lengths)) if lengths[i] != lengths[i - 1]]
    schedule = stages(*((f"llm.layer.{i}", lengths[i] - lengths[0] + total) for i in cuts), positions="renumber")
    host = tiny(part(PDROP, "w"), heads=4, eps=1e-6, attention=attention)
    if name == "batch2":
        gone = set(range(lengths[0])) - set(case["keep_stage0"].flatten().tolist())
        first = 5 if max(gone) < 5 + total else lengths[0] - total - 9
    ran = play(host, [(first, first + total)], case["inputs_embeds"], PDrop(), schedule, case.get("decode_tokens", ()))
    assert ran.prefill.lengths == lengths
    assert ran.prefill.slots == case["kv_lengths_after_prefill"].tolist()
    for layer, positions in enumerate(ran.prefill.positions):
        assert positions[0].tolist() == case[f"position_ids/{layer}"][0].tolist()
    near(ran.prefill.hidden, case["hidden_final"], 2e-4)
    near(ran.prefill.logits[:, -1], case["prefill_logits_last"], 2e-4)
    if "decode_logits" in case:
        near(ran.step_logits[0], case["decode_logits"], 2e-4)
        assert ran.step_positions.tolist() == case["decode_position_ids"].tolist()
        assert ran.steps[-1].slots == case["decode_kv_lengths"].tolist()


TRANSPRUNE, TRANSPRUNE_FACTS = recorded("transprune")


@pytest.mark.parametrize("name", [n for n in ("a", "b") if f"{n}/inputs_embeds" in TRANSPRUNE])
def test_transprune(name):
    """Kept tokens of three stages, cache lengths, final states and the step behind them."""
    case, facts = part(TRANSPRUNE, name), TRANSPRUNE_FACTS["model"]
    shape = TRANSPRUNE_FACTS["cases"][name]
    host = tiny(part(TRANSPRUNE, "w"), facts["num_heads"], facts["rms_norm_eps"], facts["rope_theta"])
    schedule = stages(
        ("llm.layer.7", 0.875, {"accumulate": 1}),
        ("llm.layer.9", 0.625, {"accumulate": 3}),
        ("llm.layer.12", 0.125, {"accumulate": 6}),
        positions="renumber",
    )
    span = [(shape["prefix"], shape["prefix"] + shape["N"])]
    method = TransPrune(direction="signed", alpha=0.5, accumulate=6)
    ran = play(host, span, case["inputs_embeds"].float()[None], method, schedule, case["decode_embed"].float()[None])
    for i, kept in enumerate(ran.kept):
        assert kept == case[f"stage{i}/kept_orig"].tolist()
    assert ran.prefill.slots == case["kv_len_per_layer"].tolist()
    near(ran.prefill.hidden[0], case["last_hidden_state"], 5e-5)
    near(ran.step_hidden[0], case["decode_last_hidden_state"], 5e-5)


@pytest.mark.parametrize(
    ("name", "settings", "positions"), [("sparsevlm", V15, "renumber"), ("sparsevlm_plus", PLUS, "original")]
)
def test_sparsevlm(name, settings, positions):
    """35 + 576 + 12 rows, cuts behind layers 2 and 6: rows, merged rows, logits and steps."""
    case = part(recorded(name)[0], "e2e")
    if "inputs_embeds" not in case:
        pytest.skip("not among the recorded cases")
    lengths, heads = case["layer_lengths"].tolist(), 4 if name == "sparsevlm" else 16
    host = tiny(part(case, "w"), heads=heads, eps=1e-6)
    text = lengths[0] - 576
    schedule = stages(("llm.layer.3", lengths[3] - text), ("llm.layer.7", lengths[7] - text), positions=positions)
    ran = play(host, [(35, 611)], case["inputs_embeds"], SparseVLM(**settings), schedule, case["decode_tokens"])
    assert ran.prefill.lengths == lengths
    assert ran.prefill.slots == case["kv_lengths_after_prefill"].tolist()
    assert ran.prefill.positions[7][0].tolist() == case["positions_layer7"][0].tolist()
    near(ran.prefill.logits[:, -1], case["prefill_logits_last"], 3e-4)
    near(ran.step_logits[0], case["decode_logits"], 3e-4)


def test_dart():
    """Six layers, cut in front of the third: 4 image pivots and 8 quotas of 4; cache lengths, logits, steps."""
    arrays = recorded("dart")[0]
    case = part(arrays, "e2e")
    if "inputs_embeds" not in case:
        pytest.skip("not among the recorded cases")
    host = tiny(part(case, "w"), heads=4, eps=1e-6)
    method = DART(image_pivots=4, text_pivots=4, count="quota", visit_order="cpython", final_norm=True)
    ran = play(host, [(5, 69)], case["inputs_embeds"], method, stages(("llm.layer.2", 32)), case["decode_tokens"])
    assert [5 + i for i in ran.kept[0]] == case["kept"].tolist()
    assert ran.prefill.slots == case["kv_lengths"].tolist()
    near(ran.prefill.logits, case["logits_prefill"], 1e-4)
    near(ran.step_logits, case["decode_logits"], 1e-4)


E2E_AIM = HERE / "aim_e2e.npz"


@pytest.mark.skipif(not E2E_AIM.exists(), reason="aim_e2e.npz is not among the recorded files")
def test_aim():
    """28 layers: the official code hides; we remove. The first cut, which both make from the same walk, is the same."""
    with numpy.load(E2E_AIM) as file:
        case = {key: torch.from_numpy(file[key]) for key in file.files}
    host = tiny(part(case, "w"), heads=4, eps=1e-6, base=1e6, family="qwen2")
    first, end, _ = case["bounds"].tolist()
    kept = case["mask_after"][14, first:end].nonzero().flatten().tolist()
    method = AIM(metric="hidden", order="raster", mean="official", tau=0.1, iterations=5, damping=0.0)
    ran = play(host, [(first, end)], case["inputs_embeds"], method, stages(("llm.layer.15", len(kept))))
    assert ran.kept[0] == kept


def random_llama(seed, layers, D=32, heads=4, words=61):
    """Weights of a decoder that nobody trained, by name."""
    random = torch.Generator().manual_seed(seed)
    shapes = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (D, D))
    shapes |= {"gate_proj": (2 * D, D), "up_proj": (2 * D, D), "down_proj": (D, 2 * D)}
    weights = {"norm": torch.ones(D), "lm_head": torch.randn(words, D, generator=random)}
    weights["embed_tokens"] = torch.randn(words, D, generator=random)
    for i in range(layers):
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"layers.{i}.{name}"] = torch.rand(D, generator=random) + 0.5
        for name, shape in shapes.items():
            weights[f"layers.{i}.{name}"] = torch.randn(shape, generator=random) * 0.3
    return weights


METHODS = {
    "fastv": (lambda: FastV(score="probs", query="last", seed=0), stages(("llm.layer.2", 20))),
    "pdrop": (lambda: PDrop(), stages(("llm.layer.2", 30), ("llm.layer.4", 11), positions="renumber")),
    "pdrop, original": (lambda: PDrop(), stages(("llm.layer.2", 30), ("llm.layer.4", 11))),
    "sparsevlm": (
        lambda: SparseVLM(**V15),
        stages(("llm.layer.2", 30), ("llm.layer.4", 16), positions="renumber"),
    ),
    "sparsevlm, by rank": (
        lambda: SparseVLM(**V15 | {"count": "rank", "scale": 3.0}),
        stages(("llm.layer.2", 30), ("llm.layer.4", 16), positions="renumber"),
    ),
    "sparsevlm_plus": (
        lambda: SparseVLM(**PLUS | {"heads": 2, "guard": 1e-3}),
        stages(("llm.layer.2", 30), ("llm.layer.4", 16)),
    ),
    "transprune": (
        lambda: TransPrune(direction="signed", alpha=0.5, accumulate=2),
        stages(("llm.layer.2", 30, {"accumulate": 2}), ("llm.layer.4", 16, {"accumulate": 4}), positions="renumber"),
    ),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", METHODS)
def test_engine_against_a_plain_walk(name, attention):
    """The engine keeps, merges and computes what a Llama written in plain torch does, two prompts at once."""
    build, schedule = METHODS[name]
    weights = random_llama(3, layers=6)
    embeds = torch.randn(2, 60, 32, generator=torch.Generator().manual_seed(5))
    adaptive = "rank" in name
    for rows in (embeds[:1], embeds[1:]) if adaptive else (embeds,):
        walk = Walk(PlainLlama(weights, heads=4, eps=1e-6), rows, 4, 40).through(build(), schedule)
        ran = play(tiny(weights, heads=4, eps=1e-6, attention=attention), [(4, 44)], rows, build(), schedule)
        assert ran.prefill.lengths == walk.lengths
        assert [stage.kept for stage in ran.trace.last.stages] == [s["index"].tolist() for s in walk.stages]
        near(ran.prefill.hidden, walk.x, 1e-4)
