"""FasterVLM against its released code: scores, kept patches, and their order in the prompt."""

import pytest
import torch
from pruners.hand import tokens

from btp.core.schedule import Stage
from btp.core.signals import Signal, Signals
from btp.engine.hooks.attention_rows import tower_rows
from btp.pruners.fastervlm import FasterVLM
from parity.plain_llama import recorded

ARRAYS, FACTS = recorded("fastervlm")
PICTURES = [case for case in "abc" if f"{case}_k_tokens" in ARRAYS]
CLS = Signal("attention", "vision.feature", "cls", "probs")
PRUNER = FasterVLM(heads="mean", score="cls")
SIDE = 12  # patches of a tile of case c, which lies 2 x 2 beside a base tile


def of(case):
    """The arrays of a case, without its name."""
    return {key.removeprefix(f"{case}_"): value for key, value in ARRAYS.items() if key.startswith(f"{case}_")}


def choose(attention, k):
    """[P, N] scores and [P, k] kept patches from [P, H, 1, N]."""
    P, _, _, N = attention.shape
    seen, values, stage = tokens(*[N] * P), Signals({CLS: attention}), Stage("vision.output", k, "renumber")
    return PRUNER.score(seen, values, stage), PRUNER.select(seen, values, stage).keep


def rows(official):
    """What the class token looks at, from its query and all keys, as the engine computes it."""
    q, k = official["q_cls"][:, :, None], official["k"]
    return tower_rows(q, k, None, q.shape[-1] ** -0.5, "cls", "probs", 1)


@pytest.mark.parametrize("case", PICTURES)
def test_one_row(case):
    """One row from q and k: the official score, mask and kept patches; gathered, then projected."""
    official = of(case)
    score, kept = choose(rows(official), int(official["k_tokens"]))
    assert torch.allclose(score, official["score"], atol=1e-6)
    assert torch.equal(kept, official["kept"])
    assert torch.equal(torch.zeros_like(official["mask"]).scatter(1, kept, True), official["mask"])
    features = official["hidden"].gather(1, kept[..., None].expand(-1, -1, official["hidden"].shape[2]))
    assert torch.allclose(features @ official["W"], official["kept_projected"], atol=1e-5)


@pytest.mark.skipif("a_attn" not in ARRAYS, reason="not among the recorded cases")
def test_whole_map():
    """The class token's row of the eager attention."""
    official = of("a")
    whole = official["attn"][:, :, :1, 1:]
    assert torch.allclose(rows(official), whole, atol=1e-6)
    assert torch.equal(choose(whole, int(official["k_tokens"]))[1], official["kept"])


@pytest.mark.skipif("c_sequence_tile" not in ARRAYS, reason="not among the recorded cases")
def test_tiles_in_order_of_the_picture():
    """Kept tokens in the order of their places: base tile, then the mosaic row by row across its tiles."""
    official = of("c")
    kept = choose(rows(official), int(official["k_tokens"]))[1]
    tile = torch.arange(len(kept))[:, None].expand_as(kept).flatten()
    patch = kept.flatten()
    down, across = (tile - 1).clamp(min=0) // 2, (tile - 1).clamp(min=0) % 2
    mosaic = (down * SIDE + patch // SIDE) * 2 * SIDE + across * SIDE + patch % SIDE
    place = torch.where(tile == 0, patch, SIDE * SIDE + mosaic)
    order = place.argsort()
    assert tile[order].tolist() == official["sequence_tile"].tolist()
    assert patch[order].tolist() == official["sequence_patch"].tolist()
    projected = official["hidden"][tile, patch] @ official["W"]
    assert torch.allclose(projected[order], official["sequence_embeds"], atol=1e-5)


@pytest.mark.skipif("v_kept" not in ARRAYS, reason="not among the recorded cases")
def test_frames():
    """A video's frames are pictures, each with its own k."""
    official = of("v")
    attention = official["cls_attn"][0][:, :, None]  # [T, M, 1, N]
    kept = choose(attention, official["kept"].shape[1])[1]
    assert torch.equal(kept, official["kept"])
    hidden = official["hidden"][0]
    features = hidden.gather(1, kept[..., None].expand(-1, -1, hidden.shape[2]))
    assert torch.allclose(features, official["kept_features"][0], atol=1e-5)
