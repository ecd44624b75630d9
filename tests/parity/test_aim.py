"""AIM against what its released code returned (AIM at edc24e9), recorded in aim.npz and, where there, aim_e2e.npz.

The released code hides pruned tokens and goes on computing them, so the walk is given all rows and the columns that
it left visible.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import linear, silu

from btp.core.topk import top_k
from btp.ops.bipartite import merge_to
from btp.ops.merge import merge_states
from btp.ops.pagerank import walk_scores

HERE = Path(__file__).parent
DATA = np.load(HERE / "aim.npz")
NAMES = {key.split("_")[0] for key in DATA.files}
SETTINGS = {"tau": 0.1, "iterations": 5, "damping": 0.0}
TINY = 1e-21  # the recorded scores square in float32, which loses what is smaller
E2E = HERE / "aim_e2e.npz"


def load(key):
    return torch.from_numpy(DATA[key])


def recorded(case):
    return pytest.mark.skipif(case not in NAMES, reason=f"{case} is not among the recorded cases")


def merged(x, metric, left):
    n = x.shape[1]
    keep, plan = merge_to(metric, [n] * len(x), [left] * len(x), None, "similar")
    return merge_states(x, keep, plan)


def close(found, key):
    torch.testing.assert_close(found, load(key), atol=1e-5, rtol=0)


def survivors(scores, visible, first, last, rate):
    """[S] bool: what the schedule leaves visible, by the scores of the picture's tokens still there."""
    S = len(scores)
    alive = visible[first:last].nonzero().flatten() + first
    text = S - (last - first)
    keep = top_k(scores[alive][None], [int((S - text) * rate + text) - text])[0]
    left = torch.ones(S, dtype=torch.bool)
    left[first:last] = False
    left[alive[keep]] = True
    return left


def test_all_recorded_cases_are_tested():
    """What the json promises is in the file, and nothing in the file is of an unknown kind."""
    promised = json.loads((HERE / "aim.json").read_text())["recorded_cases_here"]
    assert set(promised) <= NAMES
    assert {"m1", "m2", "m3", "p1", "p2"} >= NAMES


@recorded("m1")
def test_video_merging():
    """196 tokens of each frame to 98 to 49, compared by themselves; in two calls and in one."""
    x = load("m1_x")
    half = merged(x, x, 98)
    close(half, "m1_after1")
    close(merged(half, half, 49), "m1_after2")
    close(merged(x, x, 49), "m1_after2")


@recorded("m2")
def test_image_merging():
    """576 to 288 to 252, compared by keys, which merge with themselves; in two calls and in one."""
    x, metric = load("m2_x"), load("m2_metric")
    half, half_metric = merged(x, metric, 288), merged(metric, metric, 288)
    close(half, "m2_after1")
    close(half_metric, "m2_metric_after1")
    close(merged(half, half_metric, 252), "m2_after2")
    close(merged(x, metric, 252), "m2_after2")
    close(merged(metric, metric, 252), "m2_metric_after2")


@recorded("m3")
def test_odd_count():
    """65 tokens, of which 10 go."""
    x = load("m3_x")
    close(merged(x, x, 65 - int(load("m3_r"))), "m3_after")


@pytest.mark.parametrize("case", sorted(NAMES & {"p1", "p2"}))
def test_pruning(case):
    """Layer by layer with the mask in force: scores, then exactly the tokens that stay visible."""
    logits, scores, masks = (load(f"{case}_{name}") for name in ("logits", "score", "mask_after"))
    first, last, S = load(f"{case}_bounds").tolist()
    visible = torch.ones(S, dtype=torch.bool)
    eye = torch.eye(S).expand(1, logits.shape[1], S, S)
    for layer, rate in enumerate(load(f"{case}_retain_rate").tolist()):
        found = walk_scores(logits[layer][None].float(), eye, **SETTINGS, columns=visible[None])[0]
        torch.testing.assert_close(found.exp(), scores[layer], rtol=1e-4, atol=TINY)
        visible = survivors(found, visible, first, last, rate)
        assert torch.equal(visible, masks[layer])


def rms(x, weight):
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight


def rotated(x, angle):
    a, b = x.chunk(2, dim=-1)
    return x * angle.cos() + torch.cat([-b, a], dim=-1) * angle.sin()


def decoder(weights, x, on_layer, heads=4, kv=2, layers=28):
    """A small Qwen2 in plain torch. `on_layer(i, queries, keys) -> [S] bool` sets what layer i + 1 may look at."""
    S, d = x.shape[1], x.shape[2] // heads
    inverse = 1e6 ** -(torch.arange(0, d, 2) / d)
    angle = torch.outer(torch.arange(S).float(), inverse).repeat(1, 2)
    causal = torch.ones(S, S, dtype=torch.bool).tril()
    visible = torch.ones(S, dtype=torch.bool)
    for i in range(layers):
        part = {k.split(f"layers.{i}.")[1]: v for k, v in weights.items() if f"layers.{i}." in k}

        def project(name, h, count, part=part):
            out = linear(h, part[f"self_attn.{name}_proj.weight"], part[f"self_attn.{name}_proj.bias"])
            return out.view(1, S, count, d).transpose(1, 2)

        h = rms(x, part["input_layernorm.weight"])
        q, k = rotated(project("q", h, heads), angle) * d**-0.5, rotated(project("k", h, kv), angle)
        logits = q @ k.repeat_interleave(heads // kv, 1).mT
        probs = logits.masked_fill(~(causal & visible), torch.finfo(logits.dtype).min).softmax(-1)
        mixed = probs @ project("v", h, kv).repeat_interleave(heads // kv, 1)
        x = x + linear(mixed.transpose(1, 2).flatten(2), part["self_attn.o_proj.weight"])
        h = rms(x, part["post_attention_layernorm.weight"])
        gate, up, down = (part[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = x + linear(silu(linear(h, gate)) * linear(h, up), down)
        visible = on_layer(i, q, k, visible)
    return linear(rms(x, weights["model.norm.weight"]), weights["lm_head.weight"])


@pytest.mark.skipif(not E2E.exists(), reason="aim_e2e.npz is not among the recorded cases")
def test_whole_decoder():
    """28 layers: the scores and masks of each, and the logits behind the last."""
    data = {key: torch.from_numpy(value) for key, value in np.load(E2E).items()}
    weights = {key[2:]: value for key, value in data.items() if key.startswith("w/")}
    first, last, _ = data["bounds"].tolist()

    def on_layer(i, q, k, visible):
        rate = 1.0 if i < 14 else min(max(1 - (i - 13) / 8, 0.0), 1.0)
        found = walk_scores(q, k, **SETTINGS, columns=visible[None])[0]
        torch.testing.assert_close(found.exp(), data["score"][i], rtol=1e-4, atol=TINY)
        left = survivors(found, visible, first, last, rate)
        assert torch.equal(left, data["mask_after"][i])
        return left

    logits = decoder(weights, data["inputs_embeds"], on_layer)
    torch.testing.assert_close(logits, data["logits_prefill"], atol=1e-4, rtol=0)
