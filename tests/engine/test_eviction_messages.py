"""What stages at llm.cache refuse, and what they say."""

import pytest
import tiny
import tiny_text
import torch
from oracle import steps
from slot_methods import METHODS, everywhere, paged
from toys import Scatter

from btp.core.cache_pruner import CachePruner, ScoreSlots
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal
from btp.core.slots import SlotSelection
from btp.engine.attach import attach
from btp.pruners.a2sf import A2SF
from btp.pruners.h2o import H2O
from btp.pruners.knorm import KNorm
from btp.pruners.snapkv import SnapKV
from btp.pruners.streaming import Streaming


def one(keep=8, site="llm.cache.*", phase="both", positions="original", **settings):
    return Schedule((Stage(site, keep, positions, phase, settings),))


SNAP = SnapKV(kernel=5, pool="mean")


class Asks(KNorm):
    def __init__(self, signal):
        self.signal = signal

    def needs(self, stage):
        return (self.signal,)


PLANS = {
    "token method": (Scatter(), one(), "'scatter' chooses tokens between layers and no slots"),
    "cache method between layers": (
        KNorm(),
        one(site="llm.layer.2", phase="prefill"),
        "evicts from the K/V cache. Set",
    ),
    "no method": (None, one(), "there is no pruner to decide"),
    "positions": (KNorm(), one(positions="renumber"), "keys lie in the cache as they were turned"),
    "scope": (KNorm(), one(scope="picture"), "scope is 'picture'. Choose from: all, visual, text"),
    "scope of a text model": (KNorm(), one(scope="visual"), "has no pictures: all of its slots are one kind"),
    "every": (KNorm(), one(every=0), "every is 0. Write a number of decode steps"),
    "every without decode": (KNorm(), one(phase="prefill", every=4), "so it has no effect"),
    "setting": (KNorm(), one(frist=4), "Did you mean first?"),
    "first": (KNorm(), one(first=-1), "schedule.0.first is -1. Write an int >= 0"),
    "recent": (KNorm(), one(recent=1.5), "schedule.0.recent is 1.5. Write an int >= 0"),
    "sinks and window": (
        Streaming(),
        one(6, first=4, recent=3),
        "of which the first 4 and the 3 most recent ones are 7",
    ),
    "nothing": (KNorm(), one(0), "leaves a step nothing to attend to"),
    "all named": (
        KNorm(),
        Schedule((*(Stage(f"llm.cache.{i}", 4) for i in range(4)), Stage("llm.cache.*", 4))),
        "names all 4 layers by themselves, so it has no effect",
    ),
    "layer": (KNorm(), one(site="llm.cache.4"), "the llm tower has 4 layers"),
    "window": (SNAP, one(phase="prefill"), "looks from the last rows of the prompt, which stay"),
    "window in decode": (SNAP, one(recent=2), "chooses once, behind the prompt"),
    "rows in decode": (
        Asks(Signal("attention", "llm.cache.1", "window", window=2)),
        one(site="llm.cache.1"),
        "in phase both, but a decode step has one row",
    ),
    "other cache": (Asks(Signal("keys", "llm.cache.1")), one(site="llm.cache.2"), "its stage evicts at llm.cache.2"),
    "layer's signal": (Asks(Signal("keys", "llm.layer.1")), one(site="llm.cache.2"), "that layer's own keys"),
    "page": (paged(), one(8), "keeps 8 slots at llm.cache.*, but needs 9: pages have 3 slots, and the first and"),
}


@pytest.mark.parametrize("name", PLANS)
def test_refused_before_anything_runs(name):
    """At attach, with the key to change."""
    pruner, schedule, message = PLANS[name]
    with pytest.raises(ValueError) as error, attach(tiny_text.shared("llama"), pruner, schedule):
        raise AssertionError("not refused")
    assert message in str(error.value)


def test_a_cache_signal_between_layers():
    class Token(Scatter):
        def needs(self, stage):
            return (Signal("keys", "llm.cache.1"),)

    plan = Schedule((Stage("llm.layer.2", 2),))
    with (
        pytest.raises(ValueError, match=r"Slots are shown to stages at llm\.cache"),
        attach(tiny.shared("llava"), Token(), plan),
    ):
        raise AssertionError("not refused")


def refused(message, pruner, schedule, error=ValueError, host=None, lengths=(20, 14), **more):
    host = tiny_text.shared("llama") if host is None else host
    with pytest.raises(error, match=message), attach(host, pruner, schedule):
        steps(host, tiny_text.prompts(list(lengths)), n=3, **more)


@pytest.mark.parametrize(
    ("message", "more"),
    [
        ("asked to reorder a K/V cache from which a stage at llm.cache evicts", {"num_beams": 2}),
        ("Pruning needs a DynamicCache", {"cache_implementation": "static"}),
        ("this forward has none", {"use_cache": False}),
        ("came at once behind a filled cache", {"prefill_chunk_size": 8}),
        ("assisted decoding", {"prompt_lookup_num_tokens": 2, "lengths": (20,)}),
    ],
)
def test_ways_to_generate(message, more):
    """Beams, static caches, no cache at all, chunks, assisted decoding."""
    refused(message, *METHODS["h2o"], **more)


def test_short_prompts():
    """A share that comes to less than what is protected, and one below a page."""
    refused(
        "keeps 3 slots at llm.cache.0, of which the first 0 and the 4", Streaming(), one(0.25, recent=4), lengths=(14,)
    )
    refused("keeps 7 slots at llm.cache.0, but needs 9", paged(), one(0.5))


def test_windows():
    """Layers that forget by themselves are refused from where they do; until then they are followed."""
    host = tiny_text.text_lm("mistral", sliding_window=22)
    refused(
        "Layer 0 sees 22 tokens .* and forgets older ones by itself, but prompt and answer have 22",
        KNorm(),
        one(),
        host=host,
    )
    with attach(host, KNorm(), one()):
        steps(host, tiny_text.prompts([12]), n=3)


def test_a_step_that_hides_itself_or_does_not_say_where_it_stands():
    """Positions are known by counting, and the host would count slots."""
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([20])
    with torch.no_grad(), attach(host, KNorm(), one()):
        out = host(**inputs, use_cache=True)
        step = {"input_ids": torch.tensor([[5]]), tiny.CACHE: out[tiny.CACHE]}
        mask = torch.ones(1, 21, dtype=torch.long)
        with pytest.raises(ValueError, match="Pass position_ids of the unpruned sequence"):
            host(**step, attention_mask=mask)
    with torch.no_grad(), attach(host, KNorm(), one()):
        step[tiny.CACHE] = host(**inputs, use_cache=True)[tiny.CACHE]
        mask[0, -1] = 0
        with pytest.raises(ValueError, match="hides the step's own token"):
            host(**step, attention_mask=mask, position_ids=torch.tensor([[20]]))


class Answers(CachePruner):
    """Hands back what it is told to."""

    def __init__(self, answer, adaptive=False):
        self.answer, self.adaptive = answer, adaptive

    def evict(self, slots, signals, stage):
        return self.answer(slots)


def index(*places):
    return torch.tensor(places).expand(2, 2, -1)


ANSWERS = {
    "kind": (lambda s: index(0), TypeError, "returned Tensor at llm.cache.0. Return a btp.core.slots.SlotSelection"),
    "dtype": (lambda s: SlotSelection(index(0.0)), TypeError, "Return int64"),
    "shape": (lambda s: SlotSelection(index(7, 8, 9)), ValueError, r"kept slots of shape \(2, 2, 3\)"),
    "everything": (lambda s: SlotSelection(None), ValueError, "kept every slot at llm.cache.0"),
    "order": (lambda s: SlotSelection(index(9, 8)), ValueError, "not ascending, unique and valid"),
    "padding": (lambda s: SlotSelection(index(2, 8)), ValueError, "not ascending, unique and valid"),
    "counts": (lambda s: SlotSelection(index(8), (1, 1)), ValueError, "it is not adaptive"),
    "carried": (
        lambda s: SlotSelection(index(8, 9), carried={"x": torch.zeros(2, 2, 2)}),
        ValueError,
        r"returned carried.x of shape \(2, 2, 2\)",
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_that_break_the_contract(name):
    """In the words of who wrote the method."""
    answer, error, message = ANSWERS[name]
    refused(message, Answers(answer), one(2), error)
    refused("decided to keep", Answers(lambda s: SlotSelection(index(8), (30, 1)), adaptive=True), one(2))


def test_scores_are_finite():
    """Of real slots; named with the rows."""

    class Odd(ScoreSlots):
        def score(self, slots, signals, stage):
            return slots.position.float().masked_fill(slots.position == 15, torch.nan)  # the first row alone has 15

    refused(r"pruner 'odd' scored tokens with NaN at llm.cache.0, in row 0 of the batch", Odd(), one())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: A2SF(decay=1.1, history="always"), "pruner.method.decay is 1.1"),
        (lambda: A2SF(decay=0.5, history="never"), "pruner.method.history is 'never'"),
        (lambda: SnapKV(kernel=4, pool="mean"), "pruner.method.kernel is 4. Write an odd number"),
        (lambda: SnapKV(kernel=5, pool="sum"), "pruner.method.pool is 'sum'"),
        (lambda: paged(score="v"), "pruner.method.score is 'v'"),
        (lambda: paged(page=0), "pruner.method.page is 0"),
        (lambda: paged(page="all"), "pruner.method.page is 'all'"),
        (lambda: paged(candidates="some"), "pruner.method.candidates is 'some'"),
    ],
)
def test_settings_of_methods(make, message):
    """Named by their config keys."""
    with pytest.raises(ValueError, match=message):
        make()


def test_a_cache_of_evicted_slots_is_not_continued_elsewhere():
    """As a cut one."""
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([20])
    with torch.no_grad():
        with attach(host, H2O(), everywhere()):
            cache = host(**inputs, use_cache=True)[tiny.CACHE]
        with pytest.raises(ValueError, match="pruned inside an attach and is continued outside"):
            host(input_ids=torch.tensor([[5]]), position_ids=torch.tensor([[20]]), **{tiny.CACHE: cache})
        for change in (lambda: cache.crop(-1), lambda: cache.batch_repeat_interleave(2)):
            with pytest.raises(ValueError, match="use greedy search or sampling"):
                change()
        with pytest.raises(ValueError, match="asked to select rows of"):
            cache.batch_select_indices(torch.tensor([0]))
