"""Signals of towers that join patches into visual tokens, held against attention over all patches at once."""

import itertools
import sys

import pytest
import torch
from families import kit
from oracle import steps
from test_detach import fingerprint
from toys import Scatter, Watch, plan
from transformers.modeling_outputs import BaseModelOutputWithPooling

from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.pruners.fastervlm import FasterVLM

NAMES = ("qwen2vl", "qwen25vl", "qwen3vl")
OUT = Signal("hidden", "vision.output")
ROWS = [["a ", kit.Picture(24, 16), "red ", kit.Picture(40, 32), "square"], ["what"], [kit.Picture(16, 16), "is it?"]]
COUNTS = (6, 20, 4)
TOKENS = [(0, i, j) for i, n in enumerate(COUNTS[:2]) for j in range(n)] + [(2, 2, j) for j in range(4)]


def by_hand(lvlm, inputs, layer, counts=COUNTS):
    """Attention received [H, N], keys and queries [H, N, d] of each visual token, pictures in turn, in a layer.

    Where a group of patches ends up is read off the tower's own output: rows of the merger are found again in it.
    """
    got, merged = {}, []
    attention = lvlm.vision.blocks[layer].attn

    def look(module, args, kwargs):
        got.update(kwargs, hidden_states=args[0] if args else kwargs["hidden_states"])

    hooks = [
        attention.register_forward_pre_hook(look, with_kwargs=True),
        lvlm.projector.register_forward_hook(lambda module, args, output: merged.append(output)),
    ]
    with torch.no_grad():
        if "pixel_values" in inputs:
            out = lvlm.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        else:
            out = lvlm.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    for hook in hooks:
        hook.remove()
    features = torch.cat(tuple(out.pooler_output))
    home = torch.tensor([int((features == row).all(1).nonzero()) for row in merged[0]])  # of each group
    x, (cos, sin), ends = got["hidden_states"], got["position_embeddings"], got["cu_seqlens"].tolist()
    query, key, _ = attention.qkv(x).view(len(x), 3, attention.num_heads, -1).unbind(1)
    turn = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision
    query, key = (y.transpose(0, 1) for y in turn(query, key, cos, sin))  # [H, T, d]
    seen = torch.full((len(x), len(x)), -torch.inf)
    for start, end in itertools.pairwise(ends):
        seen[start:end, start:end] = 0
    probs = (query @ key.mT * query.shape[-1] ** -0.5 + seen).softmax(-1)
    picture = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))[home].repeat_interleave(4)
    received = torch.zeros(len(query), sum(counts))
    keys = torch.zeros(len(query), sum(counts), key.shape[-1])
    queries = torch.zeros_like(keys)
    for patch in range(len(x)):
        token = home[patch // 4]
        received[:, token] += probs[:, picture == picture[patch], patch].mean(1)
        keys[:, token] += key[:, patch] / 4
        queries[:, token] += query[:, patch] * query.shape[-1] ** -0.5 / 4
    return received, keys, features, queries


@pytest.mark.parametrize("layer", [0, 1, "feature"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_signals(name, attention, layer):
    """Windowed and full layers, pictures of unequal sizes, a row without one; as a stage of the prompt sees them."""
    lvlm, inputs = kit.loaded(name, attention).host, kit.batch(name, ROWS)
    site = "vision.feature" if layer == "feature" else f"vision.layer.{layer}"
    signals = Signal("attention", site, "mean"), Signal("keys", site), OUT, Signal("queries", site)
    pruner = Watch(*signals)
    plain = steps(lvlm, inputs)
    with attach(lvlm, pruner, plan(("llm.input", 1.0))):
        same = steps(lvlm, inputs)
    assert torch.equal(plain[1], same[1])
    _, tokens, seen = pruner.seen[0]
    at = len(lvlm.vision.blocks) - 1 if layer == "feature" else layer
    wanted = by_hand(lvlm, inputs, at)
    assert [seen[s].shape[0] for s in signals] == [3] * 4
    first = (0, 6, 26)
    for b, p, j in TOKENS:
        row = (tokens.picture[b] == p) & (tokens.slot[b] == j)
        assert int(row.sum()) == 1
        n = first[p] + j
        assert torch.allclose(seen[signals[0]][p, :, 0, j], wanted[0][:, n], atol=1e-6)
        assert torch.allclose(seen[signals[1]][p, :, j], wanted[1][:, n], atol=1e-5)
        assert torch.allclose(seen[signals[3]][p, :, j], wanted[3][:, n], atol=1e-5)
        assert torch.equal(seen[OUT][p, j], wanted[2][n])
        assert torch.equal(tokens.hidden[b, row][0], wanted[2][n])
    for p, n in enumerate(COUNTS):
        assert torch.allclose(seen[signals[0]][p].sum(-1), torch.tensor(1.0))
        assert not seen[signals[0]][p, ..., n:].any()


@pytest.mark.parametrize("name", NAMES)
def test_fastervlm(name):
    """The patches that get most attention stay; in a plain call and in a generate with beams alike."""
    lvlm, inputs = kit.loaded(name).host, kit.batch(name, ROWS)
    received = by_hand(lvlm, inputs, len(lvlm.vision.blocks) - 1)[0].mean(0)
    wanted = [sorted(received[:26].topk(5).indices.tolist()), [], sorted(received[26:].topk(3).indices.tolist())]
    pruner = FasterVLM(heads="mean", score="received")
    before = fingerprint(lvlm)
    with torch.no_grad(), attach(lvlm, pruner, plan(("llm.input", 5), ("llm.layer.2", 0))) as trace:
        lvlm(**inputs)
        lvlm.generate(**inputs, num_beams=2, do_sample=False, max_new_tokens=2)
    assert fingerprint(lvlm) == before
    wanted[2] = sorted(received[26:].topk(4).indices.tolist())
    assert [sorted(kept) for kept in trace[0].stages[0].kept] == wanted
    assert [sorted(kept) for kept in trace[1].stages[0].kept] == [kept for kept in wanted for _ in range(2)]


def refused(name, message, pruner, site="llm.input", rows=None):
    """Running or planning this says so."""
    lvlm = kit.loaded(name).host
    inputs = kit.batch(name, rows or ROWS)
    with pytest.raises((ValueError, RuntimeError), match=message), attach(lvlm, pruner, plan((site, 3))):
        steps(lvlm, inputs)


@pytest.mark.parametrize("name", NAMES)
def test_videos(name):
    """A video passes as one picture of several frames; beside pictures, which pass in another turn, it is refused."""
    lvlm, inputs = kit.loaded(name).host, kit.batch(name, [["a ", kit.Video(4, 24, 16), "what?"]])
    total = int(lvlm.visual_mask(inputs).sum())
    wanted = by_hand(lvlm, inputs, len(lvlm.vision.blocks) - 1, (total,))
    signals = Signal("attention", "vision.feature", "mean"), Signal("keys", "vision.feature"), OUT
    pruner = Watch(*signals)
    with attach(lvlm, pruner, plan(("llm.input", 1.0))):
        steps(lvlm, inputs)
    _, tokens, seen = pruner.seen[0]
    assert tokens.picture.tolist() == [[0] * total]
    assert tokens.slot.tolist() == [list(range(total))]
    assert torch.allclose(seen[signals[0]][0, :, 0], wanted[0], atol=1e-6)
    assert torch.allclose(seen[signals[1]][0], wanted[1], atol=1e-5)
    assert torch.equal(seen[OUT][0], tokens.hidden[0])
    rows = [[kit.Video(4, 24, 16), "what?"], [kit.Picture(24, 16), "what?"]]
    refused(name, "The batch has pictures and videos, and a signal of the vision tower", Watch(OUT), rows=rows)


@pytest.mark.parametrize(
    "signal",
    [
        Signal("values", "vision.feature"),
        Signal("attention", "vision.feature", "cls", "logits"),
        Signal("hidden", "vision.layer.1"),
        Signal("pixels", "vision.output"),
    ],
)
def test_what_cannot_be_put_together(signal):
    """Refused before anything runs, with what can be."""
    refused("qwen25vl", "the merger joins several.*attention .rows mean, form probs., queries and keys", Watch(signal))


def test_other_refusals():
    """Class tokens, cuts inside the tower, an implementation without windows, features of another."""
    refused("qwen2vl", "has no class token.*score=received", FasterVLM(heads="mean", score="cls"))
    for site in ("vision.output", "vision.layer.1"):
        refused("qwen2vl", "the merger joins several of the tower's tokens into each visual token", Scatter(), site)
    lvlm, received = kit.loaded("qwen2vl").host, FasterVLM(heads="mean", score="received")
    config, inputs = lvlm.vision.config, kit.batch("qwen2vl", ROWS)
    used, config._attn_implementation = config._attn_implementation, "flash_attention_2"
    try:
        refused("qwen2vl", "implementation 'flash_attention_2', which takes all pictures in one call", received)
    finally:
        config._attn_implementation = used
    with torch.no_grad():
        ready = lvlm.model.get_image_features(inputs.pop("pixel_values"), inputs["image_grid_thw"])
    given = BaseModelOutputWithPooling(pooler_output=ready.pooler_output)
    message = "did not pass the vision tower while the engine was"
    with pytest.raises(RuntimeError, match=message), attach(lvlm, received, plan(("llm.input", 3))):
        lvlm(**inputs, mm_encoder_outputs={"image": given})
