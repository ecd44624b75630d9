"""A2SF against recorded runs of three states of its code: a simulation by masks, a real cache, and one choice.

Cases that are not in the recorded file are skipped; who has the full file drops it in.
"""

import pytest
import torch
from evicted_mask import evicted_mask
from slot_walk import SlotWalk
from torch.nn.functional import scaled_dot_product_attention

from btp.core.schedule import Stage
from btp.pruners.a2sf import A2SF
from parity.kinds import check_kinds
from parity.plain_llama import recorded
from parity.whole_texts import CASE

ARRAYS, FACTS = recorded("a2sf")
CASES = {case["case"]: case for case in FACTS["cases"]}


KINDS = {
    r"m_[a-z]\w*": ("logits", "mask"),
    r"c_[a-z]\w*": ("q", "k", "kept", "score"),
    r"p_[a-z]\w*": ("q", "k", "v", "out", "indices"),
}


def test_everything_recorded_has_a_handler():
    """Arrays that lie here, those that the json describes and its cases."""
    check_kinds("a2sf", ARRAYS, FACTS, KINDS, CASE)
    assert {group.removesuffix("*") for group in FACTS["groups"]} <= {"m_", "c_", "p_"}


@pytest.mark.parametrize(
    ("arrays", "cases", "said"),
    [
        (["m_new_logits", "m_new_attention"], [], "no handler reads m_new_attention. Known are m_"),
        (["d_new_kept"], [], "no handler reads d_new_kept"),
        ([], ["d_new"], "its json lists d_new, of no kind"),
        (["c_new_q", "c_new_kept"], ["c_new"], "case c_new has q, kept, but lacks k, score"),
        (["h2o_C10/logits"], ["h2o_C10"], None),
    ],
)
def test_what_no_handler_takes_fails(arrays, cases, said):
    """By its name; whole models have handlers of their own."""
    facts = {"cases": [{"case": case} for case in cases]}
    if said is None:
        check_kinds("new", arrays, facts, KINDS, CASE)
        return
    with pytest.raises(AssertionError, match=said):
        check_kinds("new", arrays, facts, KINDS, CASE)


def of(kind, array):
    """Names of the recorded cases of a kind, by an array that each has."""
    return [name for name in CASES if name.startswith(kind) and f"{name}_{array}" in ARRAYS]


@pytest.mark.parametrize("name", of("m_", "mask"))
def test_masks(name):
    """Who sees whom along one attention map."""
    case, logits = CASES[name], ARRAYS[f"{name}_logits"]
    sizes = case["streaming_budget"], case["selecting_budget"], case["recent_budget"]
    assert torch.equal(evicted_mask(logits, *sizes, case["forgetting_factor"]), ARRAYS[f"{name}_mask"])


@pytest.mark.parametrize("name", of("m_", "mask"))
def test_masks_are_what_the_method_does(name):
    """The method on a real cache, token by token, sees what the mask lets through."""
    case, logits, mask = CASES[name], ARRAYS[f"{name}_logits"], ARRAYS[f"{name}_mask"]
    first, select, recent = case["streaming_budget"], case["selecting_budget"], case["recent_budget"]
    L = logits.shape[-1]
    queries = logits.masked_fill(torch.ones(L, L, dtype=torch.bool).triu(1), 0.0) * L**0.5  # keys are unit vectors
    keys = torch.eye(L).expand(1, logits.shape[1], L, L)
    stage = Stage("llm.cache.0", first + select + recent, phase="both", settings={"first": first, "recent": recent})
    method = A2SF(decay=case["forgetting_factor"], history="always")
    walk = SlotWalk(method, stage, queries, keys, keys, prompt=1)
    for t in range(L - 1):
        for h, kept in enumerate(walk.kept[t][0]):
            assert kept == [j for j in range(t + 1) if mask[0, h, t + 1, j]]


@pytest.mark.parametrize("name", of("c_", "kept"))
def test_cache(name):
    """Slots and scores behind the prompt and behind every step."""
    case, kept, scores = CASES[name], ARRAYS[f"{name}_kept"], ARRAYS[f"{name}_score"]
    first, recent = case["streaming_budget"], case["recent_budget"]
    settings = {"first": first, "recent": recent}
    stage = Stage("llm.cache.0", first + case["select_budget"] + recent, phase="both", settings=settings)
    method = A2SF(decay=case["forgetting_factor"], history="overflow")
    k = ARRAYS[f"{name}_k"]
    walk = SlotWalk(method, stage, ARRAYS[f"{name}_q"], k, k, case["prompt_len"])
    assert len(walk.kept) == len(kept) == case["decode_steps"] + 1
    for step, row in enumerate(kept.tolist()):
        for head, places in enumerate(row):
            places = [p for p in places if p >= 0]
            assert walk.kept[step][0][head] == places
            for slot, place in enumerate(places):
                official = float(scores[step, head, slot])
                if official == official:  # nan: no score yet
                    assert walk.scores[step][0][head][place] == pytest.approx(official, abs=1e-5)


@pytest.mark.parametrize("name", of("p_", "out"))
def test_one_choice(name):
    """Kept slots of each kv head behind the prompt, whose own attention is whole."""
    case = CASES[name]
    q, k, v = (ARRAYS[f"{name}_{x}"] for x in "qkv")
    assert case["select_budget"] + case["recent_budget"] == case["total_budget"]
    stage = Stage("llm.cache.0", case["total_budget"], settings={"recent": case["recent_budget"]})
    walk = SlotWalk(A2SF(decay=case["forgetting_factor"], history="always"), stage, q, k, v, q.shape[2])
    kept, official = torch.tensor(walk.kept[0]), ARRAYS[f"{name}_indices"]
    if case["returns_none"]:
        assert official.numel() == 0
        assert torch.equal(kept, torch.arange(q.shape[2]).expand_as(kept))
    else:
        assert torch.equal(kept, official)
    groups = q.shape[1] // k.shape[1]
    wide = (x.repeat_interleave(groups, 1) for x in (k, v))
    out = scaled_dot_product_attention(q, *wide, is_causal=True)
    assert torch.allclose(out, ARRAYS[f"{name}_out"], atol=1e-5)
    assert torch.allclose(walk.out[0], ARRAYS[f"{name}_out"], atol=1e-5)
