"""VFlowOpt against what its released code returned (129eeef), recorded in vflowopt.npz.

Hidden states of the language model are not compared: in the recorded ones a layer attends in both directions.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from btp.core.pruner import Tokens
from btp.core.schedule import Stage
from btp.core.signals import Signal, Signals
from btp.ops.attention_received import qualifying_rows, received_attention
from btp.ops.entropy import gray_levels, patch_entropy
from btp.ops.merge import merge_states
from btp.pruners.vflowopt import VFlowOpt

HERE = Path(__file__).parent
DATA = np.load(HERE / "vflowopt.npz")
FACTS = json.loads((HERE / "vflowopt.json").read_text())
GIVEN = FACTS["hyperparameters"]
KINDS = {"maps": r"imp\d+", "anyres": r"s1[a-z]", "video": r"s1vid", "several": r"s1multi", "llm": r"llm[a-z]"}
FOUND = {key.split("/")[0] for key in DATA.files}
METHOD = {
    "t": 1.0,
    "alpha": 0.0,
    "m": 15.0,
    "rows": "mean",
    "entropy": "official",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "recycle": True,
    "recycle_several": False,
    "exact": False,
}


def cases(kind):
    return sorted(name for name in FOUND if re.fullmatch(KINDS[kind], name))


def load(case, name):
    return torch.from_numpy(DATA[f"{case}/{name}"])


class Worth(VFlowOpt):
    """The method with a map that was worked out before."""

    def __init__(self, worth, **changed):
        super().__init__(**METHOD | changed)
        self.worth = worth

    def importance(self, tokens, signals, stage):
        return self.worth[0, tokens.index]


def tokens(hidden, coord, image):
    """One row; coord [T, 3], image [T]."""
    T = len(coord)
    index = torch.arange(T)[None]
    return Tokens(
        hidden=hidden[None],
        position=index,
        coord=coord[None],
        image=image[None],
        size=torch.ones_like(index),
        valid=index >= 0,
        total=torch.tensor([T]),
        index=index,
        picture=torch.zeros_like(index),
        slot=index,
        host_total=(T,),
        host_alive=(T,),
    )


def grid(rows, columns, frame=0):
    at = torch.arange(rows * columns)
    return torch.stack([torch.full_like(at, frame), at // columns, at % columns], dim=1)


def test_all_recorded_cases_are_tested():
    """What the json promises is in the file, and nothing in the file is of an unknown kind."""
    assert set(FACTS["recorded_cases_here"]) <= FOUND
    assert {name for kind in KINDS for name in cases(kind)} | {"llm"} >= FOUND


@pytest.mark.parametrize("name", [f"{c}/{k}" for c in cases("maps") for k in GIVEN if k.startswith(f"{c}.")])
def test_maps(name):
    """Rows exactly, maps as they were; where none qualified the record is NaN, and ours is one row of the attention."""
    case, key = name.split("/")
    number, settings = key.split(".")[1], GIVEN[key]
    q, k, picture = (load(case, part)[None] for part in ("q", "k", "image_uint8"))
    q = q * q.shape[-1] ** -0.5
    torch.testing.assert_close((q @ k.mT).softmax(-1)[0], load(case, "A"), atol=1e-5, rtol=0)
    rows = qualifying_rows(received_attention(q, k), settings["t"])[0].nonzero().flatten()
    wanted, recorded = load(case, f"{number}/map"), load(case, f"{number}/K").long()
    side = int(len(wanted) ** 0.5)
    seen = tokens(torch.zeros(len(wanted), 1), grid(side, side), torch.zeros(len(wanted), dtype=torch.long))
    pixels = (picture.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    pruner, stage = VFlowOpt(**METHOD | settings), Stage("llm.input", 0.5)
    values = dict(zip(pruner.needs(stage), (q, k, pixels), strict=False))
    found = pruner.importance(seen, Signals(values), stage)[0]
    if len(recorded):
        assert torch.equal(rows, recorded)
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    else:
        assert wanted.isnan().all()
        assert len(rows) == 1
        torch.testing.assert_close(found, load(case, "A").mean(0)[rows[0]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", cases("maps"))
def test_entropy(case):
    """The released gray, and the paper's, which is much like it on these pictures."""
    pixels = (load(case, "image_uint8").permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    wanted = load(case, "entropy_official")
    official, paper = (
        patch_entropy(gray_levels(pixels, gray, (0.5,) * 3, (0.5,) * 3), len(wanted))[0]
        for gray in ("official", "paper")
    )
    torch.testing.assert_close(official, wanted, atol=1e-5, rtol=0)
    assert 0.95 < torch.corrcoef(torch.stack([official, paper]))[0, 1] < 0.98


def stitched(crops, given, newline):
    """[h, w + 1, D] the tiles as one picture without its padded margin, a newline behind each row."""
    (wide, high), D = given["image_size_wh"], crops.shape[-1]
    x = crops.view(given["grid_h"], given["grid_w"], 27, 27, D).transpose(1, 2)
    x = x.reshape(given["grid_h"] * 27, given["grid_w"] * 27, D)
    h, w = x.shape[:2]
    if wide / high > w / h:
        margin = (h - int(high * w / wide)) // 2
        x = x[margin : h - margin]
    else:
        margin = (w - int(wide * h / high)) // 2
        x = x[:, margin : w - margin]
    times = (x.shape[0] * x.shape[1] / (9 * 27**2)) ** 0.5
    if times > 1.1:
        size = (int(x.shape[0] / times), int(x.shape[1] / times))
        x = interpolate(x.permute(2, 0, 1)[None], size, mode="bilinear")[0].permute(1, 2, 0)
    return torch.cat([x, newline.expand(len(x), 1, D)], dim=1)


@pytest.mark.parametrize("case", cases("anyres"))
def test_first_stage_of_one_image(case):
    """The thumbnail and the tiles are two regions; masks, tokens and map of what stays."""
    given = GIVEN[case]
    features, maps = load(case, "features").float(), load(case, "maps")
    local = stitched(features[1:], given, load(case, "newline").float())
    worth = stitched(maps[1:, :, None], given, torch.ones(1)).flatten()
    h, w, _ = local.shape
    coord = grid(h, w)
    coord[coord[:, 2] == w - 1] = -1
    hidden, worth = torch.cat([features[0], local.flatten(0, 1)]), torch.cat([maps[0], worth])
    image = torch.cat([torch.zeros(729, dtype=torch.long), torch.ones(h * w, dtype=torch.long)])
    seen = tokens(hidden, torch.cat([grid(27, 27), coord]), image)
    T = len(hidden)
    stage = Stage("llm.input", T - round(T * (1 - given["r"])), "renumber")
    selection = Worth(worth[None], m=given["m"], recycle_several=True).select(seen, Signals(), stage)
    keep = selection.keep[0]
    assert torch.equal(keep, load(case, "keep_mask").nonzero().flatten())
    direct = T - len(load(case, "low_k"))
    assert selection.counts == (direct + int(load(case, "n_groups")),)
    torch.testing.assert_close(worth[keep], load(case, "out_map"), atol=1e-6, rtol=0)
    merged = merge_states(seen.hidden, selection.keep, selection.merge)[0]
    torch.testing.assert_close(merged, load(case, "out_tokens"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", cases("video"))
def test_first_stage_of_a_video(case):
    """Frames are pooled, ranked together, and nothing is recycled."""
    maps, features = load(case, "maps")[..., None], load(case, "features").float()
    both = torch.cat([features, maps], dim=-1).view(-1, 27, 27, features.shape[-1] + 1).permute(0, 3, 1, 2)
    both = interpolate(both, (14, 14), mode="bilinear").permute(0, 2, 3, 1)
    hidden = torch.cat([both[..., :-1].flatten(0, 2), load(case, "newline").float()[None]])
    worth = torch.cat([both[..., -1].flatten(), torch.ones(1)])
    coord = torch.cat([*(grid(14, 14, frame) for frame in range(len(both))), torch.full((1, 3), -1)])
    seen = tokens(hidden, coord, torch.zeros(len(hidden), dtype=torch.long))
    T = len(hidden)
    stage = Stage("llm.input", T - round(T * (1 - GIVEN[case]["r"])), "renumber")
    selection = Worth(worth[None], m=GIVEN[case]["m"]).select(seen, Signals(), stage)
    keep = selection.keep[0]
    assert torch.equal(keep, load(case, "keep_mask").nonzero().flatten())
    torch.testing.assert_close(worth[keep], load(case, "out_map"), atol=1e-6, rtol=0)
    merged = merge_states(seen.hidden, selection.keep, selection.merge)[0]
    torch.testing.assert_close(merged, load(case, "out_tokens"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", cases("several"))
def test_first_stage_of_several_images(case):
    """Each image keeps as many, and nothing is recycled."""
    features, maps = load(case, "features").float(), load(case, "maps")
    images, N, _ = features.shape
    image = torch.arange(images).repeat_interleave(N)
    seen = tokens(features.flatten(0, 1), grid(27, 27).repeat(images, 1), image)
    each = N - round(N * (1 - GIVEN[case]["r"]))
    stage = Stage("llm.input", images * each, "renumber")
    selection = Worth(maps.flatten()[None], m=GIVEN[case]["m"]).select(seen, Signals(), stage)
    keep = selection.keep[0]
    assert torch.equal(keep, load(case, "keep_mask").flatten().nonzero().flatten())
    torch.testing.assert_close(maps.flatten()[keep], load(case, "out_map"), atol=1e-6, rtol=0)
    merged = merge_states(seen.hidden, selection.keep, selection.merge)[0]
    torch.testing.assert_close(merged, load(case, "out_tokens"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", cases("llm"))
def test_stages_inside_the_language_model(case):
    """Masks over the sequence alive at each stage, and the lengths of the caches."""
    given, worth = GIVEN[case], load(case, "map")
    N, S = given["N"], given["prefix"] + given["N"] + given["suffix"]
    seen = tokens(torch.zeros(N, 1), grid(1, N), torch.zeros(N, dtype=torch.long))
    lengths, first = [S] * GIVEN["llm_model"]["num_layers"], given["prefix"]
    for i, (layer, r) in enumerate(zip(given["prune_before_layers_0based"], given["keep_ratio_of_alive"], strict=True)):
        n = seen.valid.shape[1]
        stage = Stage(f"llm.layer.{layer}", n - round(n * (1 - r)))
        keep = Worth(worth[None]).select(seen, Signals(), stage).keep
        mask = torch.ones(first + n + given["suffix"], dtype=torch.bool)
        mask[first : first + n] = False
        mask[first + keep[0]] = True
        assert torch.equal(mask, load(case, f"keep_mask{i}"))
        lengths[layer:] = [int(mask.sum())] * (len(lengths) - layer)
        alive = {k: getattr(seen, k)[:, keep[0]] for k in ("index", "valid", "coord", "image")}
        seen = replace(seen, **alive, host_alive=(keep.shape[1],))
    assert lengths == load(case, "kv_len_per_layer").tolist()


def test_signals_are_those_of_the_layer_that_the_projector_reads():
    """Queries and keys, and pixels only where the entropy counts."""
    stage = Stage("llm.input", 0.5)
    flow = (Signal("queries", "vision.feature"), Signal("keys", "vision.feature", "all"))
    assert VFlowOpt(**METHOD).needs(stage) == flow
    assert VFlowOpt(**METHOD | {"alpha": 0.1}).needs(stage) == (*flow, Signal("pixels", "vision.output"))
