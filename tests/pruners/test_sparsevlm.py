"""SparseVLM: raters, recycling and its counts, the first release's rank, and the second version's kernel."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from checked_selection import check_selection
from hand import HEADS, TEXT, D, published, stage, tokens
from omegaconf import OmegaConf

import btp
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal, Signals
from btp.core.topk import top_k
from btp.ops.merge import merge_sizes, merge_states
from btp.ops.text_raters import choose_raters, text_scores
from btp.pruners.sparsevlm import SparseVLM

CONF = Path(btp.__file__).parents[1] / "conf"
START, WORDS = Signal("hidden", "llm.input", "start"), Signal("hidden", "llm.input", "text")
LOOKS = Signal("attention", "llm.layer.2", "text", "probs")
METHOD = OmegaConf.to_container(OmegaConf.load(CONF / "pruner" / "sparsevlm.yaml"))["method"]
SETTINGS = {key: value for key, value in METHOD.items() if key != "_target_"}
TABLES = {
    "192": (300, 200, 110),
    "128": (303, 110, 36),
    "96": (238, 48, 26),
    "64": (66, 30, 17),
    "plus_192": (300, 200, 118),
    "plus_128": (238, 108, 60),
    "plus_96": (246, 54, 28),
    "plus_64": (66, 34, 20),
}


def sparsevlm(**changed):
    return SparseVLM(**SETTINGS | changed)


def plus(**changed):
    return sparsevlm(score="kernel", heads=2, recycle=0, **changed)


def at(keep=0.5, positions="renumber"):
    return Stage("llm.layer.3", keep, positions)


def sights(pruner, seen, where, started=None, generator=4):
    """What the pruner declares; `started` tokens entered each row."""
    random = torch.Generator().manual_seed(generator)
    B, N, _ = seen.hidden.shape
    started = started or seen.host_alive
    shapes = {
        "hidden": lambda s: (B, max(started) if s.rows == "start" else TEXT, D),
        "attention": lambda s: (B, HEADS, TEXT, N),
        "rotary": lambda s: (2, B, TEXT if s.rows == "text" else N, 8),
    }
    valid = {
        "text": torch.arange(TEXT) < torch.arange(TEXT, TEXT - B, -1).clamp(min=1)[:, None],
        "start": torch.arange(max(started)) < torch.tensor(started)[:, None],
    }
    values = {s: torch.randn(shapes[s.kind](s), generator=random) for s in pruner.needs(where)}
    values = {s: v.softmax(-1) if s.kind == "attention" else v for s, v in values.items()}
    return Signals(values, {s: valid[s.rows] for s in values if s.rows})


def alone(b, seen, values):
    """Row `b` without its padding."""
    n = seen.host_alive[b]
    cut = {name: getattr(seen, name)[b : b + 1, :n] for name in ("hidden", "valid", "index", "size")}
    seen = replace(seen, **cut, total=seen.total[b : b + 1], host_total=None, host_alive=None)
    found, valid = {}, {}
    for s, v in values.items():
        v = v.narrow(1 if s.kind == "rotary" else 0, b, 1)
        if s.rows:
            valid[s] = values.rows_valid(s)[b : b + 1]
            t = int(valid[s].sum())
            valid[s] = valid[s][:, :t]
            v = v[..., :t, :]
        if s.kind == "attention":
            v = v[..., :n]
        found[s] = v[:, :, :n] if s.kind == "rotary" and not s.rows else v
    return seen, Signals(found, valid)


def relation(values):
    """Mean over heads and raters, in a loop over rows."""
    rated = text_scores(values[START], values.rows_valid(START), values[WORDS], values.rows_valid(WORDS))
    raters = choose_raters(rated, values.rows_valid(WORDS))
    return torch.stack([looks[:, who].mean((0, 1)) for looks, who in zip(values[LOOKS], raters, strict=True)])


@pytest.mark.parametrize("name", ["192", "128", "96", "64"])
def test_totals_of_the_tables(name):
    """A total with its cluster means gives back the table's number of tokens kept as they are, from 576 on."""
    pruner, alive = sparsevlm(), 576
    for kept, total in zip(TABLES[name], [s["keep"] for s in stages_of(name)], strict=True):
        assert total == kept + pruner._means(alive - kept)
        assert pruner._kept_as_is(alive, total) == kept
        alive = total


def stages_of(name):
    return published("sparsevlm_plus" if "plus" in name else "sparsevlm", name.removeprefix("plus_"))


def test_totals_of_192():
    """576 -> 300 + 9, 309 -> 200 + 4, 204 -> 110 + 3."""
    assert [s["keep"] for s in stages_of("192")] == [309, 204, 113]


@pytest.mark.parametrize(("recycle", "per_cluster"), [(0.3, 10), (1.0, 1), (1.0, 3), (0.05, 1), (0.0, 10)])
def test_every_total_is_met(recycle, per_cluster):
    """Each token more that is kept as it is adds one or none; the largest number with the total is taken."""
    pruner = sparsevlm(recycle=recycle, per_cluster=per_cluster)
    for alive in (1, 2, 9, 57, 200):
        sums = [k + pruner._means(alive - k) for k in range(alive + 1)]
        assert all(b - a in (0, 1) for a, b in pairwise(sums))
        assert sums[-1] == alive
        for total in range(1, alive + 1):
            expected = max((k for k, t in enumerate(sums) if t == total), default=0)
            kept = pruner._kept_as_is(alive, total)
            assert kept == expected
            assert 0 <= total - kept <= max(pruner._clustered(alive - kept), 0)


@pytest.mark.parametrize(
    ("name", "average"),
    [("192", 206.53), ("128", 145.4), ("96", 114.1), ("64", 82.25), ("plus_192", 206.75)],
)
def test_published_budgets(name, average):
    """Layer averages of what is computed: the cut layer counts as long as it runs."""
    schedule = Schedule.from_config(stages_of(name))
    assert schedule.tokens_avg(576, 32) == pytest.approx(average, abs=0.05)
    (plus() if "plus" in name else sparsevlm()).check(schedule)


@pytest.mark.parametrize("name", [name for name in TABLES if "plus" in name])
def test_tables_without_recycling(name):
    """The second version's totals are the table itself."""
    assert tuple([s["keep"] for s in stages_of(name)]) == TABLES[name]


@pytest.mark.parametrize(("name", "table"), [("sparsevlm", "192"), ("sparsevlm_plus", "plus_192")])
def test_shape_of_the_yaml(name, table):
    """Its fits stand to each other as the totals of 192."""
    own = OmegaConf.to_container(OmegaConf.load(CONF / "pruner" / f"{name}.yaml"))["schedule"]
    shape = [float(s["keep"].split("*")[1]) for s in own[1:]]
    first, *later = [s["keep"] for s in stages_of(table)]
    assert own[0]["keep"] == "fit"
    assert shape == pytest.approx([t / first for t in later], abs=5e-4)
    assert [s["site"] for s in own] == [f"llm.layer.{n}/32" for n in (3, 7, 16)]
    assert {s["positions"] for s in own} == {"original" if "plus" in name else "renumber"}


def test_signals():
    """Raters from what entered the decoder; attention of the layer before; positions only for the kernel."""
    assert sparsevlm().needs(at()) == (START, WORDS, LOOKS)
    assert plus().needs(at()) == (
        START,
        WORDS,
        LOOKS,
        Signal("rotary", "llm.layer.2", None),
        Signal("rotary", "llm.layer.2", "text"),
    )


def test_without_recycling_it_is_top_k_of_the_raters():
    """The highest mean over heads and raters, ascending, nothing merged."""
    pruner, seen = sparsevlm(recycle=0), tokens(16, 9, 4)
    values = sights(pruner, seen, at())
    selection = pruner.select(seen, values, at())
    assert torch.equal(selection.keep, top_k(relation(values), (8, 4, 2), seen.valid))
    assert (selection.merge, selection.ordered, selection.counts) == (None, False, None)


def test_last_row_as_only_rater_is_fastv():
    """Where the prompt's last token alone stands out, its attention ranks, as in FastV."""
    pruner, seen = sparsevlm(recycle=0), tokens(12)
    values = sights(pruner, seen, at())
    words = torch.zeros(1, TEXT, D)
    words[:, -1] = values[START].mean(1) * 50
    values = Signals(dict(values) | {WORDS: words}, {s: values.rows_valid(s) for s in values if s.rows and s != LOOKS})
    last = values[LOOKS][:, :, -1].mean(1)
    assert torch.equal(pruner.select(seen, values, at()).keep, top_k(last, (6,), seen.valid))


def test_raters_come_from_all_that_entered():
    """Tokens that are gone by now still chose the raters."""
    pruner, seen = sparsevlm(recycle=0), tokens(6, total=(40,))
    where = at(0.1)
    values = sights(pruner, seen, where, started=(40,))
    rated = text_scores(values[START], values.rows_valid(START), values[WORDS], values.rows_valid(WORDS))
    raters = choose_raters(rated, values.rows_valid(WORDS))[0]
    scores = values[LOOKS][0][:, raters].mean((0, 1))
    assert pruner.select(seen, values, where).keep.tolist() == [sorted(scores.topk(4).indices.tolist())]


def test_order_behind_a_stage():
    """Kept tokens ascending, then the cluster means, which take clustered tokens in and nothing else."""
    pruner, seen = sparsevlm(recycle=1.0, per_cluster=6), tokens(40)
    where = at(16)
    values = sights(pruner, seen, where)
    selection = pruner.select(seen, values, where)
    check_selection(selection, (16,), seen.host_alive, "sparsevlm", where.site)
    kept = pruner._kept_as_is(40, 16)
    means = 16 - kept
    assert (kept, means) == (11, 5)  # 29 removed, all clustered: int(29 / 6) + 1
    order, scores = selection.keep[0].tolist(), relation(values)[0]
    assert order[:kept] == sorted(scores.topk(kept).indices.tolist())
    assert selection.ordered
    target = selection.merge.target[0]
    assert all(target[i] == i for i in order)
    groups = [[i for i in range(40) if target[i] == centre] for centre in order[kept:]]
    assert sorted(sum(groups, order[:kept])) == list(range(40))
    states = merge_states(seen.hidden, selection.keep, selection.merge)[0]
    assert torch.equal(states[:kept], seen.hidden[0, order[:kept]])
    for state, group in zip(states[kept:], groups, strict=True):
        assert torch.allclose(state, seen.hidden[0, group].mean(0), atol=1e-6)
    assert merge_sizes(seen.size, selection.keep, selection.merge).sum() == 40


def test_only_the_best_of_the_removed_are_recycled():
    """int(0.3 R) + 1 of them flow into means; the others leave no trace."""
    pruner, seen = sparsevlm(), tokens(60)
    where = at(20)
    values = sights(pruner, seen, where)
    selection = pruner.select(seen, values, where)
    kept = pruner._kept_as_is(60, 20)
    number = int(0.3 * (60 - kept)) + 1
    assert (kept, number) == (18, 13)
    ranked = relation(values)[0].argsort(descending=True).tolist()
    target = selection.merge.target[0]
    assert sorted(torch.nonzero(target >= 0).flatten().tolist()) == sorted(ranked[: kept + number])
    means = set(selection.keep[0, kept:].tolist())
    assert {target[i].item() for i in ranked[kept : kept + number]} == means


@pytest.mark.parametrize("keep", [0.5, 0.3, 9, 2, 1, 1.0])
@pytest.mark.parametrize("make", [sparsevlm, plus, lambda: sparsevlm(recycle=1.0, per_cluster=2)])
def test_rows_are_apart(make, keep):
    """Different lengths, numbers of means and texts: each row as alone, whatever padding holds."""
    pruner, seen, where = make(), tokens(33, 20, 7), at(keep)
    values = sights(pruner, seen, where, started=(40, 20, 9))
    seen = replace(seen, hidden=seen.hidden.masked_fill(~seen.valid[..., None], 30.0))
    loud = {s: v.clone() for s, v in values.items()}
    loud[LOOKS].masked_fill_(~seen.valid[:, None, None], 9.0)
    loud[LOOKS].masked_fill_(~values.rows_valid(LOOKS)[:, None, :, None], 9.0)
    for s in (START, WORDS):
        loud[s].masked_fill_(~values.rows_valid(s)[..., None], 30.0)
    for s in loud:
        if s.kind == "rotary":
            loud[s].masked_fill_(~(values.rows_valid(s) if s.rows else seen.valid)[..., None], 0.0)
    loud = Signals(loud, {s: values.rows_valid(s) for s in values if s.rows})
    counts = seen.keep_counts(where)
    selection = pruner.select(seen, loud, where)
    check_selection(selection, counts, seen.host_alive, "sparsevlm", where.site)
    for b, (count, n) in enumerate(zip(counts, seen.host_alive, strict=True)):
        single = pruner.select(*alone(b, seen, values), where)
        assert selection.keep[b].tolist() == single.keep[0].tolist() + [-1] * (selection.keep.shape[1] - count)
        if single.merge is not None:
            assert selection.merge.target[b].tolist() == single.merge.target[0].tolist() + [-1] * (33 - n)
        elif selection.merge is not None:
            assert selection.merge.target[b, :n].tolist() == list(range(n))


def test_keeping_everything_moves_nothing():
    """All tokens, in their order, no merge: the inertness control stays bit-identical."""
    for pruner in (sparsevlm(), plus(), sparsevlm(count="rank")):
        seen = tokens(9, 6)
        selection = pruner.select(seen, sights(pruner, seen, at(1.0)), at(1.0))
        assert selection.keep.tolist() == [list(range(9)), [*range(6), -1, -1, -1]]
        assert (selection.merge, selection.ordered) == (None, False)


def test_a_total_below_the_means():
    """Then means are all there is, as many as the total."""
    pruner, seen = sparsevlm(recycle=1.0, per_cluster=4), tokens(20)
    selection = pruner.select(seen, sights(pruner, seen, at(3)), at(3))
    check_selection(selection, (3,), seen.host_alive, "sparsevlm", at(3).site)
    assert (selection.merge.target[0] >= 0).all()
    assert set(selection.merge.target[0].tolist()) == set(selection.keep[0].tolist())


def ranked(ranks, N):
    """Attention of five raters, all text, of the given rank per row."""
    random = torch.Generator().manual_seed(2)
    blocks = [torch.rand(TEXT, r, generator=random) @ torch.rand(r, N, generator=random) for r in ranks]
    looks = torch.stack(blocks)[:, None].expand(-1, HEADS, -1, -1)
    B = len(ranks)
    everyone = torch.ones(B, TEXT, dtype=torch.bool)
    return Signals(
        {START: torch.zeros(B, N, D), WORDS: torch.ones(B, TEXT, D), LOOKS: looks},
        {START: torch.ones(B, N, dtype=torch.bool), WORDS: everyone, LOOKS: everyone},
    )


def test_rank_decides_how_many():
    """min(int(rank scale + bias), N - 1) as they are and the means of the rest; all where the rank is N."""
    pruner = sparsevlm(count="rank", scale=2.5, bias=1)
    assert pruner.adaptive
    assert not sparsevlm().adaptive
    seen = tokens(30, 30)
    selection = pruner.select(seen, ranked((2, 5), 30), at())
    assert selection.counts == (6 + 1, 13 + 1)
    check_selection(selection, selection.counts, seen.host_alive, "sparsevlm", at().site)
    few = tokens(5, 5)
    selection = pruner.select(few, ranked((3, 5), 5), at())
    assert selection.counts == (5, 5)  # four and the one that went as its own mean; the full rank cuts nothing
    assert selection.merge.target[1].tolist() == [0, 1, 2, 3, 4]
    assert selection.keep[1].tolist() == [0, 1, 2, 3, 4]
    low = sparsevlm(count="rank", scale=1, bias=-9).select(seen, ranked((2, 5), 30), at())
    assert low.counts == (2, 2)


def test_kernel_divides_before_heads_are_chosen():
    """The second version: attention over the positions' own product, its loudest heads, then the mean."""
    pruner, seen = plus(), tokens(14)
    values = sights(pruner, seen, at())
    visual, text = values[pruner.needs(at())[3]], values[pruner.needs(at())[4]]
    cos, sin = visual
    key = cos + torch.cat([-sin[..., :4], sin[..., 4:]], dim=-1)
    cos, sin = text
    query = cos + torch.cat([-sin[..., :4], sin[..., 4:]], dim=-1)
    rated = text_scores(values[START], values.rows_valid(START), values[WORDS], values.rows_valid(WORDS))
    raters = choose_raters(rated, values.rows_valid(WORDS))[0]
    divided = (values[LOOKS] / (query @ key.mT / 8**0.5)[:, None])[0][:, raters]  # [H, R, N]
    heads = divided.sum((1, 2)).topk(2).indices
    scores = divided[heads].mean((0, 1))
    assert pruner.select(seen, values, at()).keep.tolist() == [sorted(scores.topk(7).indices.tolist())]


def test_guard_bounds_the_divisor():
    """A divisor near zero makes one token win; a guard gives it its attention back."""
    seen, pruner, words = tokens(6), plus(), torch.zeros(2, 1, TEXT, 8)
    words[0], visual = 1, torch.ones(2, 1, 6, 8)  # cosine 1, sine 0 for the text
    visual[1] = 0
    visual[0, 0, 5] = 1e-6
    looks = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.09, 0.01]).expand(1, HEADS, TEXT, 6)
    values = sights(pruner, seen, at())
    both = dict(zip(pruner.needs(at())[2:], (looks, visual, words), strict=True))
    values = Signals(dict(values) | both, {s: values.rows_valid(s) for s in values if s.rows})
    assert pruner.select(seen, values, at(2)).keep.tolist() == [[0, 5]]
    assert plus(guard=1.0).select(seen, values, at(2)).keep.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"site": "llm.layer.0", "keep": 0.5, "positions": "renumber"}], r"there is none. Set schedule.0.site to"),
        ([{"site": "llm.input", "keep": 0.5, "positions": "renumber"}], r"schedule.0.site is llm.input"),
        (
            [{"site": "llm.layer.3", "keep": 0.5}],
            r"schedule.0.positions is original, .* Set schedule.0.positions to renumber, or pruner.method.recycle=0",
        ),
        (
            [{"site": "llm.layer.3", "keep": 0.5, "positions": "renumber", "balance": 1}],
            r"schedule.0.balance is set, but pruner 'sparsevlm' has no such setting",
        ),
    ],
)
def test_stage_messages(stages, message):
    """What a stage cannot mean is refused with its key."""
    with pytest.raises(ValueError, match=message):
        sparsevlm().check(Schedule.from_config(stages))


def test_accepted_schedules():
    """Without recycling positions may stay; a withdrawing stage needs nothing."""
    sparsevlm(recycle=0).check(Schedule.from_config([{"site": "llm.layer.3", "keep": 0.5}]))
    sparsevlm().check(Schedule.from_config([{"site": "llm.layer.3", "keep": 0}]))
    assert stage().positions == "original"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("score", "logits", r"pruner.method.score is 'logits'. Choose from: attention, kernel."),
        ("count", "free", r"pruner.method.count is 'free'. Choose from: table, rank."),
        ("guard", -1, r"pruner.method.guard is -1. Write a number of 0 or more."),
        ("guard", 0.1, r"pruner.method.guard is 0.1, but only score: kernel divides"),
        ("recycle", 1.2, r"pruner.method.recycle is 1.2. Write a number in \[0, 1\]."),
        ("recycle", False, r"pruner.method.recycle is False"),
        ("per_cluster", 0, r"pruner.method.per_cluster is 0. Write an int of 1 or more."),
        ("scale", None, r"pruner.method.scale is None. Write a number."),
        ("bias", "0", r"pruner.method.bias is '0'. Write a number."),
        ("heads", 0, r"pruner.method.heads is 0. Write an int, a share as a float, or null for all."),
        ("heads", "fit", r"pruner.method.heads is 'fit'. Write an int"),
        ("heads", -2, r"pruner.method.heads is -2"),
    ],
)
def test_method_messages(key, value, message):
    """The same for the method's own settings."""
    with pytest.raises(ValueError, match=message):
        sparsevlm(**{key: value})
