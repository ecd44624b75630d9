"""DART against its released code: pivots, their order and what they take, and a whole run."""

from dataclasses import replace

import pytest
import torch
from pruners.hand import tokens

from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signals
from btp.ops.pivots import least_alike, longest_keys, set_order
from btp.pruners.dart import DART
from parity.decoder import play, tiny
from parity.plain_llama import part, recorded

ARRAYS, FACTS = recorded("dart")
CASES = [case for case in "abc" if f"{case}_kept" in ARRAYS]
KEEP = {"a": 128, "b": int(144 * (1 - 0.778)), "c": 64}  # what the official settings ask for
SPAN = (5, 69)  # of the whole run
STAGE = "llm.layer.2"


def dart(count="quota", order="cpython", final_norm=True):
    return DART(image_pivots=4, text_pivots=4, final_norm=final_norm, visit_order=order, count=count)


def shown(case, pruner):
    """Tokens and signals of a case, of the states behind the final norm."""
    first, N = int(ARRAYS[f"{case}_start"]), int(ARRAYS[f"{case}_length"])
    image, text = slice(first, first + N), slice(first + N, None)
    states, keys = ARRAYS[f"{case}_hidden_normed"], ARRAYS[f"{case}_k"]
    seen = tokens(N)
    seen = replace(seen, hidden=states[:, image], position=seen.index + first)
    asked = pruner.needs(Stage(STAGE, 0.5))
    values = dict(zip(asked, (keys[:, :, image], keys[:, :, text], states[:, image], states[:, text]), strict=True))
    real = torch.ones(1, states.shape[1] - first - N, dtype=torch.bool)
    return seen, Signals(values, {signal: real for signal in asked if signal.rows == "text"}), first


def kept(case, pruner, keep):
    seen, values, first = shown(case, pruner)
    selection = pruner.select(seen, values, Stage(STAGE, keep))
    return (selection.keep[0] + first).tolist(), selection.counts


@pytest.mark.parametrize("case", CASES)
def test_kept(case):
    """The released count, 4 + 8 q, and the very tokens; an exact count of that size keeps the same."""
    official, q = ARRAYS[f"{case}_kept"].tolist(), int(ARRAYS[f"{case}_per_pivot"])
    assert kept(case, dart(), KEEP[case]) == (official, (4 + 8 * q,))
    assert kept(case, dart("exact"), 4 + 8 * q) == (official, None)
    assert kept(case, dart("exact", "norm"), 4 + 8 * q) != (official, None)


@pytest.mark.skipif("a_kept_ratio_path" not in ARRAYS, reason="not among the recorded cases")
def test_kept_by_share():
    """Without a budget the code takes a share: 0.222 of 576."""
    assert kept("a", dart(), int(576 * (1 - 0.778))) == (ARRAYS["a_kept_ratio_path"].tolist(), (124,))


@pytest.mark.parametrize("case", CASES)
def test_pivots(case):
    """Their places by falling norm, the order of the visits, and what is taken in that order."""
    seen, values, first = shown(case, dart())
    keys, text_keys, states, text_states = (values[signal] for signal in values)
    N = keys.shape[2]
    image = longest_keys(keys, seen.valid, 4)
    text = longest_keys(text_keys, torch.ones(1, text_keys.shape[2], dtype=torch.bool), 4)
    assert (image[0] + first).tolist() == ARRAYS[f"{case}_pivot_image"].tolist()
    assert (text[0] + first + N).tolist() == ARRAYS[f"{case}_pivot_text"].tolist()
    places = [*(image[0] + first).tolist(), *(text[0] + first + N).tolist()]
    visits = ARRAYS[f"{case}_pivot_visit_order"].tolist()
    assert [places[i] for i in set_order(places)] == visits
    free = torch.ones(1, N, dtype=torch.bool).scatter(1, image, False)
    both = torch.cat([states, text_states], dim=1)
    pivots = both[:, [place - first for place in visits]]
    taken = least_alike(states, free, pivots, torch.full((1, 8), int(ARRAYS[f"{case}_per_pivot"])))
    found = (taken | ~free)[0].nonzero().flatten() + first
    assert found.tolist() == ARRAYS[f"{case}_kept"].tolist()


@pytest.mark.parametrize("case", CASES)
def test_final_norm(case):
    """The states that are compared are those behind the final norm."""
    x, weight = ARRAYS[f"{case}_hidden_pre_norm"], ARRAYS[f"{case}_norm_weight"]
    normed = x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight
    assert torch.allclose(normed, ARRAYS[f"{case}_hidden_normed"], atol=1e-5)


@pytest.mark.skipif("e2e/inputs_embeds" not in ARRAYS, reason="not among the recorded cases")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_run(attention):
    """Rows that stay, caches, logits of prefill and three steps; and of the unpruned decoder."""
    official = part(ARRAYS, "e2e")
    host = tiny(part(ARRAYS, "e2e/w"), heads=4, eps=1e-6, attention=attention)
    embeds = official["inputs_embeds"]
    assert torch.allclose(play(host, [SPAN], embeds).prefill.logits, official["logits_unpruned"], atol=1e-4)
    ours = play(host, [SPAN], embeds, dart(), Schedule((Stage(STAGE, 32),)), official["decode_tokens"].flatten())
    image = [SPAN[0] + i for i in ours.kept[0]]
    S = embeds.shape[1]
    assert image == official["kept"].tolist()
    assert [*range(SPAN[0]), *image, *range(SPAN[1], S)] == official["keep_full"].flatten().tolist()
    assert ours.prefill.slots[: len(official["kv_lengths"])] == official["kv_lengths"].tolist()
    assert torch.equal(ours.step_positions, torch.arange(S, S + 3)[:, None].expand(3, host.num_layers))
    assert torch.allclose(ours.prefill.logits, official["logits_prefill"], atol=1e-4)
    assert torch.allclose(ours.step_logits, official["decode_logits"], atol=1e-4)
