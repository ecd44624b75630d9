"""FastV against its released code: the choice from recorded attention, and a whole run with a static cache."""

import pytest
import torch
from pruners.hand import tokens

from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal, Signals
from btp.pruners.fastv import FastV
from parity.decoder import play, tiny
from parity.plain_llama import part, recorded

ARRAYS, FACTS = recorded("fastv")
CASES = [facts for facts in FACTS["sel_params"] if f"{facts['case']}/attn" in ARRAYS]
LAST = Signal("attention", "llm.layer.1", "last", "probs")
FASTV = FastV(score="probs", query="last", seed=0)
SPAN, LAYER = (35, 611), 3  # of the whole run


def sequence(facts, keep):
    """Rows of the whole sequence that stay, with `keep` of the image's N, and the scores behind it."""
    first, N, length = facts["S"], facts["N"], facts["L"]
    values = Signals({LAST: ARRAYS[f"{facts['case']}/attn"][:, :, -1:, first : first + N]})
    seen, stage = tokens(N), Stage("llm.layer.2", keep)
    image = FASTV.select(seen, values, stage).keep[0] + first
    rows = torch.cat([torch.arange(first), image, torch.arange(first + N, length)])
    return rows, FASTV.score(seen, values, stage)[0]


@pytest.mark.parametrize("facts", CASES, ids=lambda facts: facts["case"])
def test_choice(facts):
    """Scores, rows that stay, and the states and positions they carry."""
    official = part(ARRAYS, facts["case"])
    rows, score = sequence(facts, facts["R"])
    torch.testing.assert_close(score, official["score"], atol=1e-7, rtol=1e-6)
    assert rows.tolist() == official["keep"].tolist()
    assert torch.equal(official["hidden"][:, rows], official["hidden_out"])
    assert official["position_ids"][0].tolist() == rows.tolist()


@pytest.mark.parametrize("gone", [0.5, 0.75, 0.778])
@pytest.mark.parametrize("facts", CASES, ids=lambda facts: facts["case"])
def test_choice_of_the_other_variant(facts, gone):
    """The variant for transformers' LLaVA rounds the count to the nearest; the same tokens for that count."""
    official = ARRAYS[f"{facts['case']}/keep_hf_r{gone}"].tolist()
    assert sequence(facts, round(facts["N"] * (1 - gone)))[0].tolist() == official


@pytest.mark.skipif("e2e/inputs_embeds" not in ARRAYS, reason="not among the recorded cases")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_run(attention):
    """Lengths, rows that stay, states and logits; steps with four tokens on the pruned cache.

    The recorded cache of the layer in front of the cut is twice as long, because that variant runs the layer twice; its
    logits do not change by it.
    """
    official = part(ARRAYS, "e2e")
    host = tiny(part(ARRAYS, "e2e/w"), heads=4, eps=1e-6, attention=attention)
    schedule = Schedule((Stage(f"llm.layer.{LAYER}", 0.5),))
    ours = play(host, [SPAN], official["inputs_embeds"], FASTV, schedule, official["decode_tokens"])
    lengths, S = official["layer_lengths"].tolist(), official["inputs_embeds"].shape[1]
    image = [SPAN[0] + i for i in ours.kept[0]]
    assert [*range(SPAN[0]), *image, *range(SPAN[1], S)] == official["keep"].tolist()
    assert ours.prefill.lengths == lengths
    assert ours.prefill.slots == lengths
    assert torch.equal(ours.step_positions, official["decode_position_ids"])
    for t, step in enumerate(ours.steps):
        assert step.slots == [n + t + 1 for n in lengths]
    for layer in set(range(len(lengths))) - {LAYER - 1}:
        assert ours.steps[-1].slots[layer] == int(official["decode_kv_lengths"][-1, layer])
    assert torch.allclose(ours.prefill.logits[:, -1], official["prefill_logits_last"], atol=2e-4)
    assert torch.allclose(ours.step_logits[0], official["decode_logits"], atol=2e-4)
    text = official["prefill_hidden_last_pos_all"]
    assert torch.allclose(ours.prefill.hidden[:, -text.shape[1] :], text, atol=2e-4)
