"""The cache methods that kvpress has too keep the same slots; its presses' rules are written down here by hand.

Where kvpress can be imported, its own presses are asked as well.
"""

import math

import pytest
import torch
from torch.nn.functional import avg_pool1d, cosine_similarity, normalize, pad

from experiments.speed.kvpress import KERNEL, OURS, SINKS, WINDOW, Layer, ours, places, theirs

SLOTS, HEADS, GROUPS, SIZE = 160, 2, 3, 16


def last_rows(layer, rows):
    """[1, Hq, rows, n] causal attention of the last rows."""
    n = layer.keys.shape[2]
    logits = layer.query[:, :, -rows:] @ layer.keys.repeat_interleave(GROUPS, 1).mT / math.sqrt(SIZE)
    ahead = torch.arange(n) > torch.arange(n - rows, n)[:, None]
    return logits.masked_fill(ahead, -torch.inf).softmax(-1)


def snapkv(layer, keep):
    """Window attention to what is before the window, averaged over rows, pooled, averaged over the group."""
    seen = last_rows(layer, WINDOW)[..., :-WINDOW].mean(2)
    seen = avg_pool1d(seen, KERNEL, stride=1, padding=KERNEL // 2)
    return pad(seen.view(1, HEADS, GROUPS, -1).mean(2), (0, WINDOW), value=float(seen.max()) + 1)


def knorm(layer, keep):
    """Short keys stay."""
    return -layer.keys.norm(dim=-1)


def keydiff(layer, keep):
    """Keys unlike the mean of all unit keys stay."""
    return -cosine_similarity(layer.keys, normalize(layer.keys, dim=-1).mean(2, keepdim=True), dim=-1)


def streaming(layer, keep):
    """The sinks, and the newest."""
    score = torch.ones(1, HEADS, SLOTS)
    score[:, :, SINKS : SINKS + SLOTS - keep] = 0
    return score


def tova(layer, keep):
    """What the last row looks at, over all heads; itself always."""
    seen = last_rows(layer, 1)[:, :, 0, :-1].mean(1, keepdim=True).expand(1, HEADS, -1)
    return pad(seen, (0, 1), value=2.0)


RULES = {
    "SnapKVPress": snapkv,
    "KnormPress": knorm,
    "KeyDiffPress": keydiff,
    "StreamingLLMPress": streaming,
    "TOVAPress": tova,
}


@pytest.mark.parametrize("keep", [70, 120])
@pytest.mark.parametrize("name", OURS)
def test_same_slots(name, keep):
    """Each head's set, and the keys at these slots."""
    with torch.inference_mode():
        layer = Layer(SLOTS, HEADS, GROUPS, SIZE)
        found, keys = ours(layer, *OURS[name], keep)
        expected = RULES[name](layer, keep).topk(keep, dim=-1).indices[0]
        assert [sorted(row) for row in found.tolist()] == [sorted(row) for row in expected.tolist()]
        assert torch.equal(keys[0], torch.stack([layer.keys[0, h, row] for h, row in enumerate(found)]))
        assert places(keys, layer.keys) == [sorted(row) for row in found.tolist()]


@pytest.mark.parametrize("name", OURS)
def test_the_press_itself(name):
    kvpress = pytest.importorskip("kvpress")
    with torch.inference_mode():
        layer = Layer(SLOTS, HEADS, GROUPS, SIZE)
        _, kept = theirs(layer, getattr(kvpress, name)(compression_ratio=0.5))
        mine = ours(layer, *OURS[name], SLOTS // 2)[0]
    assert places(kept, layer.keys) == [sorted(row) for row in mine.tolist()]
