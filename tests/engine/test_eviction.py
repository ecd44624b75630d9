"""Evicting slots equals hiding them: per layer and kv head, behind the prompt and in every decode step."""

import pytest
import tiny
import tiny_text
import torch
from oracle import steps
from slot_methods import METHODS, everywhere, paged
from slot_oracle import dense, scale
from test_detach import fingerprint
from toys import Content, Scatter

from btp.core.cache_pruner import CachePruner
from btp.core.schedule import Schedule, Stage
from btp.core.slots import SlotSelection
from btp.core.topk import keep_best
from btp.engine.attach import attach
from btp.engine.cache.layer_slots import Held
from btp.engine.cache.scope import restricted
from btp.pruners.a2sf import A2SF
from btp.pruners.btp import BTP
from btp.pruners.composition import Chain
from btp.pruners.fastv import FastV
from btp.pruners.h2o import H2O
from btp.pruners.knorm import KNorm
from btp.pruners.random import Random
from btp.pruners.random_slots import RandomSlots
from btp.pruners.snapkv import SnapKV

STEPS = 6


def evict(host, inputs, pruner, schedule, n=STEPS, **more):
    """Tokens, logits and the call of a run with eviction, and how far it is from the plain one."""
    with attach(host, pruner, schedule) as trace:
        tokens, logits = steps(host, inputs, n=n, **more)
    return tokens, logits, trace.last


def check(host, inputs, pruner, schedule, entered=None, bound=2e-6):
    """Held against the dense forward; something must have left."""
    tokens, logits, call = evict(host, inputs, pruner, schedule)
    hidden = dense(host, inputs, tokens, call, None if entered is None else lambda at, b: entered(call, at, b))
    assert (logits - hidden).abs().max() < bound * scale(hidden), float((logits - hidden).abs().max())
    assert torch.equal(logits.argmax(-1), hidden.argmax(-1))
    assert (logits - steps(host, inputs, n=STEPS)[1]).abs().max() > 1e-3, "nothing left, so nothing was proved"
    return call


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", METHODS)
def test_evicting_equals_hiding(name, attention):
    """Two rows, one of them padded on the left; grouped heads."""
    host, inputs = tiny_text.shared("llama", attention), tiny_text.prompts([20, 14])
    check(host, inputs, *METHODS[name])


@pytest.mark.parametrize("name", ["h2o", "snapkv", "paged"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral"])
def test_families(family, name):
    """Other decoders."""
    check(tiny_text.shared(family), tiny_text.prompts([20, 14]), *METHODS[name])


def test_padding_on_the_right():
    """A plain call on right padding keeps the same slots as the rows alone."""
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([20, 14], padding="right")
    alone = tiny_text.prompts([14], seed=1)
    alone["input_ids"] = inputs["input_ids"][1:, :14]
    for name in ("a2sf", "snapkv", "keydiff"):
        gone = []
        for given in (inputs, alone):
            with torch.no_grad(), attach(host, *METHODS[name]) as trace:
                host(**given)
            gone.append(trace.last.gone("llm.cache.2")[-1])
        assert gone[0] == gone[1] != [set(), set()]


@pytest.mark.parametrize("name", METHODS)
def test_a_row_keeps_the_same_alone_and_in_a_batch(name):
    """Batching changes neither what leaves nor what is said."""
    host, together = tiny_text.shared("llama"), tiny_text.prompts([20, 14])
    tokens, logits, call = evict(host, together, *METHODS[name])
    for b, n in enumerate((20, 14)):
        row = {k: v[b : b + 1, -n:] for k, v in together.items()}
        own, its, single = evict(host, row, *METHODS[name])
        assert torch.equal(own[0, -STEPS:], tokens[b, -STEPS:])
        assert torch.allclose(its[:, 0], logits[:, b], atol=1e-5)
        for at in range(1, 4):  # in layer 0 keys of equal tokens have equal norms, but for rounding
            mine, its = single.gone(f"llm.cache.{at}")[0], call.gone(f"llm.cache.{at}")[b]
            assert mine == its[: len(mine)]
        assert single.slots_avg[0] == call.slots_avg[b]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["a2sf online", "snapkv", "paged"])
def test_keeping_everything_changes_nothing(name, attention):
    """Bit for bit, with padding and without; also where the budget is never reached."""
    pruner, schedule = METHODS[name]
    for lengths in ([20, 14], [16]):
        host, inputs = tiny_text.shared("llama", attention), tiny_text.prompts(lengths)
        plain = steps(host, inputs, n=4)
        for keep in (1.0, 600):
            kept = Schedule((Stage("llm.cache.*", keep, phase=schedule[0].phase, settings=schedule[0].settings),))
            with attach(host, pruner, kept) as trace:
                tokens, logits = steps(host, inputs, n=4)
            assert torch.equal(tokens, plain[0])
            assert torch.equal(logits, plain[1])
            assert trace.last.evicted == []


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_stays_behind(fails):
    """No hook, attribute or registry entry, also behind an exception inside the attention function."""

    class Fails(KNorm):
        def score(self, slots, signals, stage):
            raise ArithmeticError("on purpose")

    host, inputs = tiny_text.text_lm("llama"), tiny_text.prompts([20, 14])
    plain = steps(host, inputs)[1]
    mark = fingerprint(host)
    if fails:
        with pytest.raises(ArithmeticError), attach(host, Fails(), everywhere()):
            steps(host, inputs)
    else:
        evict(host, inputs, *METHODS["h2o"])
    assert fingerprint(host) == mark
    assert torch.equal(plain, steps(host, inputs)[1])


LVLM_ROWS = [[2, "i", 9], [1, "i", 1, "i", 2]]


@pytest.mark.parametrize("scope", ["all", "visual", "text"])
@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_on_lvlms(family, scope):
    """The same on vision-language models: of all slots, of the picture's, of the text's."""
    lvlm = tiny.shared(family)
    inputs = tiny.prompts(lvlm, LVLM_ROWS[:1])  # one row: its dense forward gets the picture alone
    stage = {"all": (9, {}), "visual": (4, {"scope": "visual"}), "text": (6, {"scope": "text", "recent": 2})}[scope]
    schedule = Schedule((Stage("llm.cache.*", stage[0], phase="both", settings=stage[1]),))
    call = check(lvlm, inputs, H2O(), schedule)
    visual = set(lvlm.visual_mask(inputs)[0].nonzero().flatten().tolist())
    for at in range(4):
        for gone in call.gone(f"llm.cache.{at}")[0]:
            if scope != "all":
                assert gone <= visual if scope == "visual" else not gone & visual
    assert call.held == [{"all": (9,), "visual": (4 + 13 - 2 * (family != "qwen"),), "text": (6 + 9,)}[scope]] * 4


@pytest.mark.parametrize(
    ("scope", "shown"), [("text", [[0, 2, 3, 4], [-1, -1, 2, 3]]), ("visual", [[-1, 1], [0, 1]]), ("all", None)]
)
def test_the_newest_slot_is_the_last_of_its_scope(scope, shown):
    """Rows of unequal length are filled in front: methods that look at what is new look at the end."""
    visual = torch.tensor([[[0, 1, 0, 0]], [[0, 1, 1, 0]]]).bool()
    held = Held(torch.tensor([[[0, 1, 2, 3]], [[-1, 0, 1, 2]]]), visual, (4, 3), (1, 2), {"size": torch.rand(2, 1, 4)})
    held.grow(torch.tensor([[4], [3]]))
    found, back = restricted(held, scope)
    assert found.position[:, 0].tolist() == (shown or held.position[:, 0].tolist())
    before = held.carried["size"].clone()
    back.carry(held, found)
    inside = (held.position >= 0) & {"text": ~held.visual, "visual": held.visual, "all": held.position >= 0}[scope]
    assert torch.equal(held.carried["size"][inside], before[inside])


def test_withdrawing_a_picture_from_caches():
    """keep 0 of the visual slots asks nobody; layers without a stage keep theirs."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, LVLM_ROWS)
    gone = Schedule(tuple(Stage(f"llm.cache.{at}", 0, settings={"scope": "visual"}) for at in (1, 3)))
    _, logits, call = evict(lvlm, inputs, None, gone)
    assert call.held == [(20, 22), (11, 4), (20, 22), (11, 4)]
    assert (logits - steps(lvlm, inputs, n=STEPS)[1]).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_composed_with_pruning(attention):
    """A picture pruned between layers, then slots of what is left; one layer's cache has no stage."""
    lvlm = tiny.shared("llava", attention)
    inputs = tiny.prompts(lvlm, LVLM_ROWS[:1])
    both = Chain(parts={"cut": Scatter(), "kv": SnapKV(kernel=3, pool="mean")})
    more = {"by": "kv", "recent": 4}
    cut, caches = (
        Stage("llm.layer.1", 5, settings={"by": "cut"}),
        [Stage(f"llm.cache.{at}", 9, settings=more) for at in (0, 2, 3)],
    )
    schedule = Schedule(tuple(sorted([cut, *caches], key=lambda stage: stage.site)))

    def entered(call, at, b):
        text = [p for p in range(20 + STEPS) if not 2 <= p < 11]
        return range(20 + STEPS) if at < 1 else sorted([*text, *(2 + i for i in call.stages[0].kept[b])])

    call = check(lvlm, inputs, both, schedule, entered)
    assert call.held == [(9,), (16,), (9,), (9,)]
    assert call.visual == [(9,), (5,), (5,), (5,)]


def test_named_layers_go_before_every_layer():
    """llm.cache.0 has its own stage, llm.cache.* is all others."""
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([20])
    schedule = Schedule((Stage("llm.cache.0", 1.0), Stage("llm.cache.2", 15), Stage("llm.cache.*", 8)))
    _, _, call = evict(host, inputs, KNorm(), schedule)
    assert call.held == [(20,), (8,), (15,), (8,)]
    assert call.slots_prefill == ((20 + 8 + 15 + 8) / 4,)
    assert call.slots_avg == ((20 + 8 + 15 + 8) / 4 + sum(range(STEPS)) / STEPS,)


def test_what_is_held_without_a_stage():
    """The trace counts slots of unpruned and of pruned runs, too."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, LVLM_ROWS)
    with attach(lvlm) as trace:
        steps(lvlm, inputs, n=3)
    assert trace.last.slots_prefill == (20, 22)
    assert trace.last.slots_avg == (21, 23)
    with attach(lvlm, Content(), Schedule((Stage("llm.layer.2", 3),))) as trace:
        steps(lvlm, inputs, n=1)
    assert trace.last.slots_avg == ((20 + 20 + 14 + 14) / 4, (22 + 22 + 7 + 7) / 4)


class Sees(CachePruner):
    """Remembers what it is shown, and keeps the newest; order as asked."""

    accumulates = True

    def __init__(self, in_order):
        self.in_order, self.seen = in_order, []

    def evict(self, slots, signals, stage):
        self.seen.append(slots)
        counts = slots.keep_counts(stage)
        mark = slots.position.float()  # a number that travels: what it is must stay with its slot
        mine = slots.carried.get("place", mark)
        mine = torch.where((mine == 0) & slots.valid, mark, mine)
        assert torch.equal(mine[slots.valid], mark[slots.valid])
        keep = None
        if counts != slots.host_alive:
            score = torch.sin(slots.position * 2.7 + torch.arange(slots.position.shape[1])[:, None])
            keep = keep_best(score, counts, slots.valid, slots.host_alive)
        return SlotSelection(keep, carried={"place": mine})


@pytest.mark.parametrize("in_order", [True, False])
def test_numbers_travel_with_slots(in_order):
    """What a method gave to a slot comes back with it, whichever slots leave; in order where it asks for that."""
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([20, 14])
    method = Sees(in_order)
    check(host, inputs, method, everywhere(0.5))
    rows = [slots.position[slots.position[:, :1].expand_as(slots.position) >= 0] for slots in method.seen]
    assert len(rows) == 4 * STEPS
    if in_order:
        for slots in method.seen:
            for head in slots.position.flatten(0, 1).tolist():
                real = [p for p in head if p >= 0]
                assert real == sorted(real)
    assert all(slots.due for slots in method.seen)
    assert method.seen[0].prefill
    assert method.seen[-1].host_length == (20 + STEPS - 1, 14 + STEPS - 1)


def test_h2o_is_a2sf_without_forgetting():
    """The same slots at the same settings."""
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([20, 14])
    gone = []
    for method in (H2O(), A2SF(decay=1.0, history="always")):
        call = evict(host, inputs, method, everywhere(recent=5))[2]
        gone.append([call.gone(f"llm.cache.{at}") for at in range(4)])
    assert gone[0] == gone[1]


def test_random_slots_are_the_same_choice_in_every_step():
    """What stays of all that came is what a choice from all of it at the end would keep."""
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([20])
    late = evict(host, inputs, RandomSlots(seed=3), everywhere(8, every=STEPS - 1))[2]
    each = evict(host, inputs, RandomSlots(seed=3), everywhere(8))[2]
    assert late.gone("llm.cache.1") == each.gone("llm.cache.1")


def test_the_random_control_of_a_composition():
    """Random tokens between layers and random slots of the caches, by one method."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, LVLM_ROWS)
    schedule = Schedule((Stage("llm.layer.1", 3), Stage("llm.cache.*", 8, phase="both", settings={"every": 2})))
    _, _, call = evict(lvlm, inputs, Random(seed=0, salt="content"), schedule)
    assert call.visual == [(9, 18), (3, 3), (3, 3), (3, 3)]
    assert call.held == [(8, 8), (8, 7), (8, 7), (8, 7)]
    with pytest.raises(
        ValueError, match=r"every is set at llm\.layer\.1, but pruner 'random' has no such setting there"
    ):
        evict(lvlm, inputs, Random(seed=0, salt="none"), Schedule((Stage("llm.layer.1", 3, settings={"every": 2}),)))


CUTS = {
    "fastv": (FastV(score="probs", query="last", seed=0), [("llm.layer.2", 4, {})]),
    "btp": (
        BTP(score="probs", source="last", over=1.5, split="half", seed=0.25, distance="manhattan"),
        [("llm.layer.1", 6, {"balance": 0.6}), ("llm.layer.3", 3, {"balance": 0.6})],
    ),
}
CACHES = {
    "snapkv": (SnapKV(kernel=3, pool="mean"), 9, "prefill", {"recent": 4}),
    "h2o": (H2O(), 8, "both", {"recent": 0.5}),
    "paged": (paged(), 9, "both", {}),
    "visual slots": (KNorm(), 2, "both", {"scope": "visual"}),
}


@pytest.mark.parametrize("family", ["llava", "qwen"])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("cut", CUTS)
def test_published_methods_composed(cut, cache, family):
    """`pruner=[fastv,snapkv]` and its like: what was cut between layers, and then left each cache, is hidden."""
    lvlm = tiny.shared(family)
    inputs = tiny.prompts(lvlm, LVLM_ROWS[:1])
    visual = lvlm.visual_mask(inputs)[0].nonzero().flatten().tolist()
    (prune, stages), (evicts, keep, phase, more) = CUTS[cut], CACHES[cache]
    both = Chain(parts={"cut": prune, "kv": evicts})
    listed = [Stage(site, n, settings={"by": "cut", **own}) for site, n, own in stages]
    listed += [Stage(f"llm.cache.{at}", keep, phase=phase, settings={"by": "kv", **more}) for at in range(4)]
    schedule = Schedule(tuple(sorted(listed, key=lambda stage: stage.site)))
    length = int(inputs["attention_mask"].sum()) + STEPS

    def entered(call, at, b):
        behind = [stage for stage in call.stages if stage.site.layer <= at]
        gone = set(visual) - {visual[i] for i in behind[-1].kept[b]} if behind else set()
        return [place for place in range(length) if place not in gone]

    call = check(lvlm, inputs, both, schedule, entered)
    assert [stage.after for stage in call.stages] == [(n,) for _, n, _ in stages]
    assert all(record.before > record.after for record in call.evicted)
