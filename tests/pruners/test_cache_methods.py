"""Cache methods by hand: the worked examples of their papers' rules, and what each keeps of a few slots."""

from itertools import pairwise

import pytest
import torch
from evicted_mask import evicted_mask
from slot_walk import SlotWalk

from btp.core.schedule import Stage
from btp.pruners.a2sf import A2SF
from btp.pruners.h2o import H2O
from btp.pruners.keydiff import KeyDiff
from btp.pruners.knorm import KNorm
from btp.pruners.pagedeviction import PagedEviction
from btp.pruners.pyramidkv import PyramidKV, falling
from btp.pruners.random_slots import RandomSlots
from btp.pruners.snapkv import SnapKV
from btp.pruners.streaming import Streaming
from btp.pruners.tova import TOVA

ROWS = [
    [1],
    [0.45, 0.55],
    [0.5, 0.1, 0.4],
    [0.3, 0.1, 0.4, 0.2],
    [0.2, 0.1, 0.1, 0.3, 0.3],
    [0.2, 0.1, 0.1, 0.3, 0.2, 0.1],
]


def stage(keep, phase="both", **settings):
    return Stage("llm.cache.0", keep, phase=phase, settings=settings)


def attention(rows):
    """Queries and keys [1, 1, T, T] whose causal attention has these rows of probabilities."""
    T = len(rows)
    logits = torch.zeros(T, T)
    for t, row in enumerate(rows):
        logits[t, : t + 1] = torch.tensor(row).log()
    return logits[None, None] * T**0.5, torch.eye(T)[None, None]


def walk(method, at, rows, prompt):
    q, k = attention(rows)
    return SlotWalk(method, at, q, k, k, prompt)


def normed(keys, values):
    """[1, 1, T, 2] keys and values of these norms."""
    k, v = (torch.stack([torch.tensor(x), torch.zeros(len(x))], dim=-1)[None, None] for x in (keys, values))
    return k, v


TRACES = {
    1.0: ([{0: 1.95, 1: 0.65}, {0: 2.45, 1: 0.8167}, {0: 2.7833, 1: 0.9833}], [2, 3, 4]),
    0.5: ([{0: 0.975, 2: 0.4}, {0: 0.8208, 2: 0.6444}, {0: 0.7437, 4: 0.5}], [1, 3, 2]),
}


@pytest.mark.parametrize("decay", TRACES)
def test_a2sf_online(decay):
    """Two slots, one eviction a row: who goes, and the scores of those that stay."""
    scores, gone = TRACES[decay]
    ran = walk(A2SF(decay=decay, history="always"), stage(2), ROWS[:5], prompt=1)
    for step, (expected, lost) in enumerate(zip(scores, gone, strict=True), start=2):
        assert ran.kept[step][0][0] == sorted(expected)
        assert lost not in ran.kept[step][0][0]
        found = ran.scores[step][0][0]
        assert {p: found[p] for p in expected} == pytest.approx(expected, abs=1e-4)
    q, k = attention(ROWS[:5])
    mask = evicted_mask(q @ k.mT / 5**0.5, 0, 2, 0, decay)
    assert mask[0, 0, 4, :4].nonzero().flatten().tolist() == ran.kept[3][0][0]


@pytest.mark.parametrize(
    ("decay", "kept", "scores"),
    [(0.5, [0, 3, 5], [0.4969, 0.2219, 0.3, 0.5, 0.35, 0.1]), (1.0, [0, 2, 5], [2.65, 0.95, 1.0, 0.8, 0.5, 0.1])],
)
def test_a2sf_behind_the_prompt(decay, kept, scores):
    """One recent slot is protected, two are chosen; and what was scored."""
    ran = walk(A2SF(decay=decay, history="always"), stage(3, "prefill", recent=1), ROWS, prompt=6)
    assert ran.kept[0][0][0] == kept
    whole = walk(A2SF(decay=decay, history="always"), stage(6, "prefill"), ROWS, prompt=6)
    assert [whole.scores[0][0][0][p] for p in range(6)] == pytest.approx(scores, abs=1e-4)


def test_a2sf_without_memory_is_the_newest_row():
    ran = walk(A2SF(decay=0.0, history="always"), stage(3, "prefill"), ROWS, prompt=6)
    assert ran.kept[0][0][0] == [0, 3, 4]


K = [2.0, 1, 4, 1, 2, 1, 2, 4, 1, 2, 1]
V = [1.0, 1, 1, 2, 3, 0.5, 4, 2, 0.6, 1, 1]


def paged(**more):
    known = {"score": "v_over_k", "heads": "mean", "page": 2, "candidates": "all", "protect": True}
    return PagedEviction(**known | more)


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        (paged(protect=False), [1, 3, 4, 6, 8, 10]),
        (paged(), [0, 1, 3, 6, 8, 9, 10]),
        (paged(score="value"), [0, 1, 4, 6, 8, 9, 10]),
    ],
)
def test_pagedeviction_behind_the_prompt(method, kept):
    """The literal rule, whole pages with what does not fill one, and the norm of values."""
    k, v = normed(K, V)
    assert SlotWalk(method, stage(6), k, k, v, 11).kept[0][0][0] == kept


def test_pagedeviction_in_decode():
    """A page whenever the newest is full: the lowest mean, but neither the first nor the newest page."""
    k, v = normed(K + [1.0] * 5, [*V, 0.8, 0.9, 1.1, 0.3, 0.7])
    kept = [row[0][0] for row in SlotWalk(paged(), stage(6), k, k, v, 11).kept]
    assert kept[1] == [0, 1, 3, 6, 10, 11]
    assert kept[2] == [0, 1, 3, 6, 10, 11, 12]
    assert kept[3] == [0, 1, 3, 6, 12, 13]
    assert kept[5] == [0, 1, 3, 6, 14, 15]
    oldest = SlotWalk(paged(candidates=1), stage(6), k, k, v, 11)
    assert oldest.kept[1][0][0] == [0, 1, 8, 9, 10, 11]


def test_pagedeviction_scores_do_not_turn():
    """Longer values of all change no choice; norms are those of turned keys too."""
    torch.manual_seed(0)
    k, v = torch.randn(1, 2, 30, 8), torch.randn(1, 2, 30, 8)
    swapped = torch.cat([-k[..., 4:], k[..., :4]], dim=-1)
    for heads in ("mean", "concat", "each"):
        runs = [SlotWalk(paged(heads=heads), stage(8), x, x, y, 20).kept for x, y in ((k, v), (k, 3 * v), (swapped, v))]
        assert runs[0] == runs[1] == runs[2]
    assert SlotWalk(paged(heads="each"), stage(8), k, k, v, 20).kept[0][0][0] != runs[0][0][0][1]


def test_h2o_and_tova():
    """H2O adds up whole rows and keeps the newest half; TOVA asks the newest row alone."""
    assert walk(H2O(), stage(4, recent=0.5), ROWS, prompt=6).kept[0][0][0] == [0, 2, 4, 5]
    assert walk(TOVA(), stage(3), ROWS, prompt=6).kept[0][0][0] == [0, 3, 4]
    assert [row[0][0] for row in walk(TOVA(), stage(3), ROWS, prompt=4).kept] == [[0, 2, 3], [0, 3, 4], [0, 3, 4]]


def test_streaming():
    """The first two and the newest two, behind the prompt and in every step."""
    kept = [row[0][0] for row in walk(Streaming(), stage(4, first=2), ROWS, prompt=5).kept]
    assert kept == [[0, 1, 3, 4], [0, 1, 4, 5]]


def test_snapkv():
    """The last two rows look; what lies beside what they look at most stays with it, and the window is no neighbour."""
    rows = [[1 / (t + 1)] * (t + 1) for t in range(6)]
    rows += [[0.02, 0.02, 0.4, 0.02, 0.02, 0.02, 0.5], [0.02, 0.02, 0.4, 0.02, 0.02, 0.02, 0.25, 0.25]]
    for pool in ("mean", "max"):
        assert walk(SnapKV(kernel=3, pool=pool), stage(5, "prefill", recent=2), rows, 8).kept[0][0][0] == [
            1,
            2,
            3,
            6,
            7,
        ]
    assert walk(SnapKV(kernel=1, pool="mean"), stage(4, "prefill", recent=2), rows, 8).kept[0][0][0] == [0, 2, 6, 7]


def test_pyramidkv():
    """Slots fall over layers and add up; each layer keeps its window."""
    for layers, mean, beta in ((4, 6, 5), (32, 100, 20), (3, 7, 2), (1, 9, 20)):
        found = [falling(mean, layer, layers, beta) for layer in range(layers)]
        assert sum(found) == mean * layers
        assert found == sorted(found, reverse=True)
        assert layers == 1 or found[-1] == pytest.approx(mean / beta, abs=1)
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 30, 4), torch.randn(1, 2, 30, 4)
    method, at = PyramidKV(kernel=3, pool="mean", beta=4), stage(10, "prefill", recent=2)
    kept = [SlotWalk(method, at, q, k, k, 30, layer, 4).kept[0][0] for layer in range(4)]
    assert [len(heads[0]) for heads in kept] == [2 + falling(8, layer, 4, 4) for layer in range(4)]
    assert all({28, 29} <= set(head) for heads in kept for head in heads)


def test_keys():
    """KNorm keeps short keys, KeyDiff those that point elsewhere, each head by itself."""
    k, v = normed(K, V)
    assert SlotWalk(KNorm(), stage(5), k, k, v, 11).kept[0][0][0] == [1, 3, 5, 8, 10]
    k = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [5, 0], [-1, 0], [1, -0.1]])[None, None]
    assert SlotWalk(KeyDiff(), stage(2), k, k, k, 6).kept[0][0][0] == [2, 4]
    unit = torch.nn.functional.normalize(k, dim=-1)
    mean = unit.mean(2, keepdim=True)
    plain = -torch.cosine_similarity(k, mean, dim=-1)
    assert plain[0, 0].topk(3).indices.sort().values.tolist() == SlotWalk(KeyDiff(), stage(3), k, k, k, 6).kept[0][0][0]


@pytest.mark.parametrize("phase", ["both", "decode"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_running_mean_chooses_as_one_made_anew(phase, dtype):
    """KeyDiff, for 200 steps: each forward's slots are those that cosines to the mean of all unit keys choose."""
    torch.manual_seed(0)
    keys = torch.randn(2, 2, 260, 16).to(dtype)
    walk = SlotWalk(KeyDiff(), stage(40, phase), keys, keys, keys, 60)
    for b, h in ((b, h) for b in range(2) for h in range(2)):
        unit = torch.nn.functional.normalize(keys[b, h].double(), dim=-1)
        held = list(range(60))
        for forward, kept in enumerate(walk.kept):
            held = held if forward == 0 else [*held, 59 + forward]
            if forward or phase == "both":
                mine = unit[held]
                best = (-(mine @ mine.mean(0))).topk(40).indices.tolist()
                held = sorted(held[i] for i in best)
            assert kept[b][h] == held, forward


def test_what_runs_along_is_the_sum_of_what_is_held():
    """Also where steps add without evicting, where several leave at once, and where a row has nothing to lose."""
    torch.manual_seed(0)
    keys = torch.randn(2, 2, 50, 8)
    for keep, every in ((12, 1), (12, 3), (90, 1)):
        walk = SlotWalk(KeyDiff(), stage(keep, "both", every=every), keys, keys, keys, 20)
        unit = torch.nn.functional.normalize(walk.cache.keys, dim=-1).double()
        torch.testing.assert_close(walk.held.running["sum"], unit.sum(2), atol=1e-5, rtol=0)


def test_random_slots():
    """Other slots for other seeds, layers and heads; the same again; a step adds one and takes one."""
    k = torch.zeros(1, 2, 40, 2)

    def kept(seed, layer=0):
        return [row[0] for row in SlotWalk(RandomSlots(seed=seed), stage(10), k, k, k, 30, layer, 4).kept]

    one = kept(0)
    assert one == kept(0)
    assert len({str(x[0]) for x in (one, kept(1), kept(0, 1))} | {str(one[0][::-1])}) == 4
    assert all(len(head) == 10 for row in one for head in row)
    assert all(len(set(b[0]) - set(a[0])) <= 1 for a, b in pairwise(one))
