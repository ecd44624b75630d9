"""VTW against its released code: whole runs with both kinds of positions, and the search for the layer."""

import pytest
import torch

from btp.core.schedule import Schedule
from btp.ops.kl_search import divergence, first_passing
from btp.pruners.vtw import VTW
from parity.decoder import play, tiny
from parity.plain_llama import part, recorded

ARRAYS, FACTS = recorded("vtw")
TOYS = {"one": ((5, 29), 4), "k1": ((7, 23), 1)}  # span of the image, layer in front of which it leaves
POSITIONS = {"keep": "original", "renumber": "renumber"}
RUNS = [(t, b) for t in TOYS for b in POSITIONS if f"{t}/{b}/layer_lengths" in ARRAYS]
CANDIDATES, SEARCH_SPAN = (5, 6, 7, 8), (35, 611)


def withdraw(layer, span, embeds, positions="original", attention="sdpa", steps=None):
    host = tiny(part(ARRAYS, "w"), heads=4, eps=1e-6, attention=attention)
    stage = {"site": f"llm.layer.{layer}", "keep": 0, "positions": positions}
    return play(host, [span], embeds, VTW(), Schedule.from_config([stage]), steps)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("toy", "branch"), RUNS)
def test_run(toy, branch, attention):
    """Lengths, caches and positions of every layer; states and logits of prefill and three steps."""
    span, layer = TOYS[toy]
    official = part(ARRAYS, f"{toy}/{branch}")
    embeds = ARRAYS[f"{toy}/inputs_embeds"]
    ours = withdraw(layer, span, embeds, POSITIONS[branch], attention, official["decode_tokens"])
    assert ours.prefill.lengths == official["layer_lengths"].tolist()
    assert ours.prefill.slots == official["kv_lengths_after_prefill"].tolist()
    assert torch.equal(ours.prefill.positions[layer - 1], official["positions_before"])
    assert torch.equal(ours.prefill.positions[layer], official["positions_after"])
    assert torch.equal(ours.step_positions, official["decode_position_ids"])
    assert ours.steps[-1].slots == [n + 3 for n in ours.prefill.slots]
    assert torch.allclose(ours.prefill.hidden, official["hidden_final"], atol=1e-5)
    assert torch.allclose(ours.prefill.logits[:, -1], official["prefill_logits_last"], atol=1e-5)
    assert torch.allclose(ours.step_logits[0], official["decode_logits"], atol=1e-5)


@pytest.mark.parametrize("toy", [toy for toy in TOYS if (toy, "keep") in RUNS and (toy, "renumber") in RUNS])
def test_positions_matter(toy):
    """The two branches do not give the same logits, so that taking one for the other would be seen."""
    keep, renumber = (ARRAYS[f"{toy}/{branch}/decode_logits"] for branch in POSITIONS)
    assert (keep - renumber).abs().max() > 1e-3


@pytest.mark.skipif("search/inputs_embeds" not in ARRAYS, reason="not among the recorded cases")
def test_search():
    """The divergence of each sample and candidate, and the layer that each eta takes."""
    found = []
    for embeds in ARRAYS["search/inputs_embeds"].split(1):
        host = tiny(part(ARRAYS, "w"), heads=4, eps=1e-6)
        full = play(host, [SEARCH_SPAN], embeds).prefill.logits[0, -1].log_softmax(-1)
        runs = [withdraw(layer, SEARCH_SPAN, embeds).prefill.logits[0, -1] for layer in CANDIDATES]
        found.append(divergence(torch.stack(runs).log_softmax(-1), full, "withdrawn"))
    found = torch.stack(found)
    assert torch.allclose(found, ARRAYS["search/kl_per_sample"].to(found), rtol=1e-3, atol=1e-7)
    assert torch.allclose(found.mean(0), ARRAYS["search/kl_mean"], rtol=1e-3, atol=1e-7)
    chosen = {key: layer for key, layer in ARRAYS.items() if key.startswith("search/k_for_eta_")}
    assert chosen
    for key, layer in chosen.items():
        eta = float(key.removeprefix("search/k_for_eta_"))
        assert first_passing(ARRAYS["search/kl_mean"], CANDIDATES, eta, 9) == int(layer)
