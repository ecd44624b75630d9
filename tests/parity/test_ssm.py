"""Vim's scan and mixer, PlainMamba's mixer and the released selections of ToP, as recorded in ssm_pruning.npz.

ToP-ViM at b5bc231 holds no aligned scan: what is recorded of its selections is a plain gather and masking. The quirks of
that code (class token, reversed order, batch item 0) are written out here; scores and choices are ours. Cases that are
not in the recorded file are skipped; who has the full file drops it in.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from btp.core.topk import top_k
from btp.models.plainmamba import PlainMambaConfig, PlainMambaMixer, paths
from btp.models.scan import scan
from btp.models.vim import VimConfig, VimMixer
from btp.ops.scan_importance import importance

HERE = Path(__file__).parent
DATA = np.load(HERE / "ssm_pruning.npz")
FACTS = json.loads((HERE / "ssm_pruning.json").read_text())
NAMES = {key.split("__")[0] for key in DATA.files}
GATHERS = sorted(name for name in NAMES if name.startswith("gather_"))
MASKS = sorted(name for name in NAMES if name.startswith("mask_"))
GRIDS = sorted(name for name in NAMES if name.startswith("plain_"))


def load(key):
    return torch.from_numpy(DATA[key])


def near(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def test_all_recorded_cases_are_tested():
    """What the json promises is in the file, and nothing in the file is of an unknown kind."""
    assert set(FACTS["recorded_cases_here"]) <= NAMES
    assert {*GATHERS, *MASKS, *GRIDS, "scan", "mixer", "plainmixer"} >= NAMES


def choose(score, k, first_alone):
    """The k highest of each row; the class token takes part in all rows but the first."""
    middle = score.shape[1] // 2
    score = score.clone()
    score[: 1 if first_alone else None, middle] = -torch.inf
    return top_k(score, [k] * len(score))


@pytest.mark.parametrize("name", GATHERS)
def test_gather(name):
    """Unclipped backward output, read in reversed order; the class token goes back into the middle."""
    y, hidden, residual = (load(f"{name}__{key}") for key in ("y_b", "hidden", "residual"))
    N = hidden.shape[1]
    k = math.ceil((N - 1) * FACTS["gather_cases"]["cases"][name]["keep_ratio"])
    k += k % 2 == 0
    patches = choose(importance(y.mT, "none"), k - 1, first_alone=True)
    middle = torch.full((len(y), 1), N // 2)
    kept = torch.cat([patches[:, : (k - 1) // 2], middle, patches[:, (k - 1) // 2 :]], 1)
    assert torch.equal(kept, load(f"{name}__kept").long())
    for states, key in ((hidden, "hidden_out"), (residual, "residual_out")):
        assert torch.equal(states.gather(1, kept[..., None].expand(-1, -1, states.shape[2])), load(f"{name}__{key}"))


@pytest.mark.parametrize("name", MASKS)
def test_mask(name):
    """Clipped backward output; tokens that are gone stay in place as zeros."""
    hidden, residual = load(f"{name}__hidden"), load(f"{name}__residual")
    B, N = hidden.shape[:2]
    alive, middle = torch.ones(B, N, dtype=torch.bool), N // 2
    ratio = FACTS["mask_cases"]["cases"][name]["keep_ratio"]
    for round_, y in enumerate(load(f"{name}__y_b")):
        score = importance(y.mT, "clip").masked_fill(~alive, -torch.inf)
        k = math.ceil(int(alive[0].sum()) * ratio)
        k += k % 2 == 0
        alive = torch.zeros(B, N, dtype=torch.bool).scatter(1, choose(score, k - 1, first_alone=True), True)
        alive[:, middle] = True
        assert torch.equal(alive, load(f"{name}__mask")[round_].bool())
        hidden, residual = hidden * alive[..., None], residual * alive[..., None]
        near(hidden, load(f"{name}__hidden_out")[round_], 0)
        near(residual, load(f"{name}__residual_out")[round_], 0)


@pytest.mark.skipif("scan" not in NAMES, reason="the scan is not among the recorded cases")
def test_scan():
    """The recurrence, its skip and its gate."""
    u, delta, z, A, B, C, D, bias = (load(f"scan__{k}") for k in ("u", "delta", "z", "A", "B", "C", "D", "delta_bias"))
    step = F.softplus(delta + bias[:, None]).permute(2, 0, 1)  # [L, B, E]
    inputs = (step * u.permute(2, 0, 1))[..., None] * B.permute(2, 0, 1)[:, :, None]
    states = scan(torch.exp(step[..., None] * A), inputs)
    y = torch.einsum("lben,bnl->bel", states, C) + D[:, None] * u
    near(y * F.silu(z), load("scan__y"))
    near(states[-1], load("scan__last_state"))


def weights(name):
    prefix = f"{name}__sd__"
    return {key.removeprefix(prefix): load(key) for key in DATA.files if key.startswith(prefix)}


@pytest.mark.skipif("mixer" not in NAMES, reason="Vim's mixer is not among the recorded cases")
def test_vim_mixer():
    """Whole and with rows of zeros, which is what gap: masked computes; the backward branch in reversed order."""
    about = FACTS["mixer"]["config"]
    shape = {"hidden_size": about["d_model"], "state_size": about["d_state"], "conv_kernel": about["d_conv"]}
    mixer = VimMixer(VimConfig(**shape, expand=about["expand"]))
    mixer.load_state_dict(weights("mixer"))
    x, seen = load("mixer__x"), []
    hook = mixer.join.register_forward_pre_hook(lambda module, args: seen.append(args))
    with torch.no_grad():
        near(mixer(x), load("mixer__out"))
        hook.remove()
        gate, _, backward = (part.transpose(0, 1) for part in seen[0])
        near((backward * gate).flip(1).mT, load("mixer__y_b_raw"))
        near(mixer(load("mixer__x_masked")), load("mixer__out_masked"))
        left = [i for i in range(x.shape[1]) if i not in (1, 2, 5, 9)]
        places = torch.tensor(left).expand(len(x), -1)
        near(mixer(x[:, left], places, x.shape[1], gap="masked"), load("mixer__out_masked")[:, left])


@pytest.mark.parametrize("name", GRIDS)
def test_paths(name):
    """Which patch each step visits, and by which move."""
    rows, columns = map(int, name.removeprefix("plain_").split("x"))
    order, code = paths(rows, columns)
    assert torch.equal(order, load(f"{name}__order").long())
    assert torch.equal(code, load(f"{name}__direction").long())
    assert torch.equal(order.argsort(1), load(f"{name}__inverse").long())


@pytest.mark.skipif("plainmixer" not in NAMES, reason="PlainMamba's mixer is not among the recorded cases")
def test_plainmamba_mixer():
    about = FACTS["plainmamba"]["mixer"]["config"]
    config = PlainMambaConfig(
        hidden_size=about["d_model"],
        state_size=about["d_state"],
        expand=about["expand"],
        conv_size=about["conv_size"],
    )
    mixer = PlainMambaMixer(config)
    mixer.load_state_dict(weights("plainmixer"))
    with torch.no_grad():
        near(mixer(load("plainmixer__x"), tuple(about["hw"])), load("plainmixer__out"))
