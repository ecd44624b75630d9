"""STA against what its released selection and its whole ViT returned (Mark12Ding/STA at faf10be), in sta.npz.

Cases that are not in the recorded file are skipped; who has the full file drops it in.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from btp.core.pruner import Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal, Signals
from btp.engine.attach import attach
from btp.models.backbone import Backbone
from btp.ops.temporal_accumulation import accumulate, most_alike
from btp.pruners.sta import STA

HERE = Path(__file__).parent
DATA = np.load(HERE / "sta.npz")
FACTS = json.loads((HERE / "sta.json").read_text())
CASES = [case for case in FACTS["cases"] if f"{case['name']}__x" in DATA.files]
WHOLE = "e2e__video_u8" in DATA.files


def load(key):
    return torch.from_numpy(DATA[key])


def test_all_recorded_cases_are_tested():
    """What the json promises is in the file, and nothing in the file is of an unknown kind."""
    names = {key.split("__")[0] for key in DATA.files}
    assert set(FACTS["recorded_cases_here"]) <= names <= {case["name"] for case in FACTS["cases"]} | {"e2e"}


def is_backwards(case):
    return case["index"] == case["depth"] // 3


def shown(case):
    """Tokens and signals of a case: a chunk is a frame, its places a row."""
    x, k = load(f"{case['name']}__x"), load(f"{case['name']}__k")
    B, T, N = case["B"], case["T"], case["N"]
    index = torch.arange(T * N).expand(B, -1)
    coord = torch.stack([index // N, torch.zeros_like(index), index % N], -1)
    tokens = Tokens(
        hidden=x,
        position=index,
        coord=coord,
        image=torch.zeros_like(index),
        size=torch.ones_like(index),
        valid=torch.ones_like(index, dtype=torch.bool),
        total=torch.full((B,), T * N),
        index=index,
    )
    return tokens, Signals({Signal("keys", "vision.layer.0"): k[:, None]})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_selection(case):
    """Kept tokens in the official order, their states, and the scores on the way."""
    name, B, T, N, r = (case[key] for key in ("name", "B", "T", "N", "r"))
    tokens, signals = shown(case)
    settings = {"span": 1, "backwards": is_backwards(case)}
    stage = Stage("vision.layer.1", T * (N - r), positions="renumber", settings=settings)
    found = STA(order="official", first_predecessors="all").select(tokens, signals, stage)
    assert torch.equal(found.keep, load(f"{name}__kept").long())
    states = tokens.hidden.gather(1, found.keep[..., None].expand(-1, -1, case["C"]))
    assert torch.equal(states, load(f"{name}__out"))
    keys, real = load(f"{name}__k").view(B, T, N, -1), torch.ones(B, T, N, dtype=torch.bool)
    keep = [[N - r] * T] * B
    _, scores = accumulate(keys, tokens.hidden.view(B, T, N, -1), real, keep, is_backwards(case), "all")
    torch.testing.assert_close(torch.stack(scores, 1), load(f"{name}__score"), atol=1e-5, rtol=0)
    first = normalize(keys[:, -1 if is_backwards(case) else 0], dim=-1)
    _, alike = most_alike(first, real[:, 0], [r] * B)
    torch.testing.assert_close(alike, load(f"{name}__first_sim"), atol=1e-5, rtol=0)


def renamed(weights, depth):
    """Official parameter names as those of transformers."""
    found = {}
    for i in range(depth):
        ours, theirs = f"videomae.encoder.layer.{i}", f"blocks.{i}"
        for part, rows in zip(
            ("query", "key", "value"), weights.pop(f"{theirs}.attn.qkv.weight").chunk(3), strict=True
        ):
            found[f"{ours}.attention.attention.{part}.weight"] = rows
        for part, name in (("query", "q_bias"), ("value", "v_bias")):
            found[f"{ours}.attention.attention.{name}"] = weights.pop(f"{theirs}.attn.{name}")
        table = {
            "attn.proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
        }
        for old, new in table.items():
            for kind in ("weight", "bias"):
                found[f"{ours}.{new}.{kind}"] = weights.pop(f"{theirs}.{old}.{kind}")
    ends = {
        "patch_embed.proj": "videomae.embeddings.patch_embeddings.projection",
        "fc_norm": "fc_norm",
        "head": "classifier",
    }
    for old, new in ends.items():
        for kind in ("weight", "bias"):
            found[f"{new}.{kind}"] = weights.pop(f"{old}.{kind}")
    assert not weights, f"not read: {sorted(weights)}"
    return found


@pytest.mark.skipif(not WHOLE, reason="the whole ViT is not among the recorded cases")
def test_whole_vit():
    """Every stage's tokens, the states behind every block and the logits, through attach on transformers' VideoMAE."""
    cfg = FACTS["e2e"]["cfg"]
    config = VideoMAEConfig(
        image_size=cfg["img_size"],
        patch_size=cfg["patch_size"],
        num_frames=cfg["all_frames"],
        tubelet_size=cfg["tubelet_size"],
        hidden_size=cfg["embed_dim"],
        num_hidden_layers=cfg["depth"],
        num_attention_heads=cfg["num_heads"],
        intermediate_size=cfg["embed_dim"] * cfg["mlp_ratio"],
        num_labels=cfg["num_classes"],
        use_mean_pooling=True,
        layer_norm_eps=1e-6,
    )
    model = VideoMAEForVideoClassification(config).eval()
    prefix = "e2e__sd__"
    weights = {key.removeprefix(prefix): load(key) for key in DATA.files if key.startswith(prefix)}
    lost, strange = model.load_state_dict(renamed(weights, cfg["depth"]), strict=False)
    assert not strange
    assert all("position" in name for name in lost), lost
    model.fc_norm.eps = 1e-6
    host = Backbone(model)
    video = (load("e2e__video_u8").float() / 127.5 - 1).transpose(1, 2)
    with torch.no_grad():
        near(host(pixel_values=video).logits, load("e2e__logits_unpruned"), 1e-4)
    r, total = cfg["r"], 8 * (cfg["img_size"] // cfg["patch_size"]) ** 2
    stages = []
    for block, span, back in zip(FACTS["e2e"]["stage_blocks"], (1, 2, 4), (False, True, False), strict=True):
        total -= 8 // span * r
        settings = {"span": span, "backwards": back}
        stages.append(Stage(f"vision.layer.{block + 1}", total, positions="renumber", settings=settings))

    class Recording(STA):
        def select(self, tokens, signals, stage):
            found = super().select(tokens, signals, stage)
            kept.append(found.keep)
            return found

    kept, left = [], []
    hooks = [layer.register_forward_pre_hook(lambda m, args: left.append(args[0])) for layer in host.layers[1:]]
    with torch.no_grad(), attach(host, Recording(order="official", first_predecessors="all"), Schedule(tuple(stages))):
        for hook in hooks:
            hook.remove()
        hooks = [layer.register_forward_pre_hook(lambda m, args: left.append(args[0])) for layer in host.layers[1:]]
        logits = host(pixel_values=video).logits
    for hook in hooks:
        hook.remove()
    for i, found in enumerate(kept, 1):
        assert torch.equal(found, load(f"e2e__kept_stage{i}").long())
    for block, states in enumerate(left):
        near(states, load(f"e2e__block{block}_out"), 1e-4)
    near(logits, load("e2e__logits"), 1e-4)


def near(found, expected, atol):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)
