"""ToMe against what its released functions returned (ToMe at af95e4b), recorded in tome.npz."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from btp.core.selection import MergePlan
from btp.ops.bipartite import match_pairs, merge_to, size_bias
from btp.ops.merge import merge_sizes, merge_states

HERE = Path(__file__).parent
DATA = np.load(HERE / "tome.npz")
NAMES = {key.split("/")[0] for key in DATA.files}
CASES = sorted(name for name in NAMES if re.fullmatch(r"case\d+", name))


def load(key):
    return torch.from_numpy(DATA[key])


def close(found, key):
    torch.testing.assert_close(found, load(key), atol=1e-6, rtol=0)


def merging(metric, size, r, lead, class_token):
    """Keep and plan over the rows behind the first `lead`, in the official order."""
    n = metric.shape[1] - lead
    B = metric.shape[0]
    order = "halves" if class_token else "similar"
    return merge_to(metric[:, lead:], [n] * B, [n - min(r, n // 2)] * B, size, order, lead)


def states(x, keep, plan, lead):
    return torch.cat([x[:, :lead], merge_states(x[:, lead:], keep, plan)], dim=1)


def sizes(size, keep, plan, lead):
    return torch.cat([size[:, :lead], merge_sizes(size[:, lead:], keep, plan)], dim=1)


def owner(keep, plan, lead, rows):
    """[B, rows] which output row each input row is in; the lead stands first."""
    place = torch.zeros(len(keep), rows, dtype=torch.long)
    place.scatter_(1, keep, torch.arange(keep.shape[1]).expand_as(keep) + lead)
    return torch.cat([torch.arange(lead).expand(len(keep), -1), place.gather(1, plan.target)], dim=1)


def test_all_recorded_cases_are_tested():
    """What the json promises is in the file, and nothing in the file is of an unknown kind."""
    recorded = json.loads((HERE / "tome.json").read_text())["recorded_cases_here"]
    assert set(recorded) <= NAMES
    assert set(CASES) | {"chain", "schedule", "propattn", "kth"} >= NAMES


@pytest.mark.parametrize("case", CASES)
def test_matching(case):
    """Means, weighted means, sizes, who is in which row, and the way back."""
    metric, x, size = (load(f"{case}/{name}") for name in ("metric", "x", "size"))
    r, class_token, distill = load(f"{case}/r_cls_dist").tolist()
    lead = class_token + distill
    for weights, name_x, name_size in (
        (size[..., 0], "wavg_x", "wavg_size"),
        (torch.ones_like(size[..., 0]), "wavg_x_from_ones", "size_from_ones"),
    ):
        keep, plan = merging(metric, weights[:, lead:], r, lead, class_token)
        close(states(x, keep, plan, lead), f"{case}/{name_x}")
        close(sizes(weights, keep, plan, lead)[..., None], f"{case}/{name_size}")
    keep, plan = merging(metric, None, r, lead, class_token)
    mean = states(x, keep, plan, lead)
    close(mean, f"{case}/merge_mean")
    into = owner(keep, plan, lead, metric.shape[1] - lead)
    source = torch.nn.functional.one_hot(into, mean.shape[1]).mT
    assert torch.equal(source, load(f"{case}/source").long())
    close(mean.gather(1, into[..., None].expand_as(x)), f"{case}/unmerged")


@pytest.mark.skipif("chain" not in NAMES, reason="chain is not among the recorded cases")
def test_chain():
    """Three steps with sizes carried; each step's metric is given."""
    x = load("chain/x")
    size = torch.ones(x.shape[:2])
    source = torch.eye(x.shape[1])[None]
    first = load("chain/source0")[0, 0]
    class_token = bool(first[0] == 1 and first.sum() == 1)
    lead = int(class_token)
    for step in range(3):
        r = x.shape[1] - load(f"chain/x{step}").shape[1]
        keep, plan = merging(load(f"chain/metric{step}"), size[:, lead:], r, lead, class_token)
        into = owner(keep, plan, lead, x.shape[1] - lead)
        x, size = states(x, keep, plan, lead), sizes(size, keep, plan, lead)
        source = torch.nn.functional.one_hot(into, x.shape[1]).mT.float() @ source
        close(x, f"chain/x{step}")
        close(size[..., None], f"chain/size{step}")
        close(source, f"chain/source{step}")


@pytest.mark.skipif("propattn" not in NAMES, reason="propattn is not among the recorded cases")
def test_proportional_attention():
    """Scaled logits plus log size of the keys."""
    q, k, size = (load(f"propattn/{name}") for name in ("q", "k", "size"))
    logits = q @ k.mT / q.shape[-1] ** 0.5 + size_bias(size[..., 0])[:, None, None]
    close(logits.softmax(-1), "propattn/probs")


@pytest.mark.skipif("kth" not in NAMES, reason="kth is not among the recorded cases")
def test_every_fourth():
    """All others flow into every fourth token, plain mean."""
    x = load("kth/metric_and_x")
    n = x.shape[1]
    keep, target = match_pairs(x, [n], [n - n // 4], "raster", every=4)
    close(merge_states(x, keep, MergePlan(target, torch.ones(target.shape))), "kth/merged_k4")
