"""Stages of phase both: in every step tokens stay behind between layers, and may come back in a later one."""

from itertools import pairwise

import pytest
import tiny_text
import torch
from lazy_toys import Everything, Told, both, rows_per_step
from oracle import alone, steps
from who_saw_whom import dense, worst

from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.engine.decoder.lazy.skipped_states import Parked
from btp.pruners.attention import Attention
from btp.pruners.lazyllm import LazyLLM
from btp.pruners.random import Random

STAGES = both(("llm.layer.1", 0.7), ("llm.layer.2", 0.7), ("llm.layer.3", 0.6))
RANDOM = Random(seed=1, salt="none")
FORMS = [("sdpa", torch.float64, 1e-6), ("eager", torch.float32, 5e-6)]


@pytest.mark.parametrize("method", [LazyLLM(), RANDOM], ids=["lazyllm", "random"])
@pytest.mark.parametrize(("attention", "dtype", "least"), FORMS, ids=["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "opt"])
def test_equals_one_dense_forward(family, attention, dtype, least, method):
    """Every answer token has the logits of ONE forward over the finished sequence, masked per stage by who saw whom."""
    host, inputs = tiny_text.shared(family, attention, dtype), tiny_text.prompts([14, 9])
    with attach(host, method, STAGES) as trace:
        tokens, logits = steps(host, inputs, n=8)
    plain = steps(host, inputs, n=8)[1]
    assert worst(host, trace.last, inputs, tokens, logits) < least * max(1, logits.abs().max())
    assert (logits - plain).abs().max() > 1e-3, "nothing was withdrawn, so nothing was proved"
    assert any(max(record.revived) for step in trace.last.steps for record in step) or method is RANDOM


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_dropping_nothing_changes_nothing(family, attention):
    """Bit-identical tokens and logits; one row a step, nothing parked; the cache as the host has it."""
    host, inputs = tiny_text.shared(family, attention), tiny_text.prompts([14, 9])
    plain = steps(host, inputs, n=5)
    with attach(host, LazyLLM(), both(("llm.layer.1", 1.0), ("llm.layer.3", 1.0))) as trace:
        same = steps(host, inputs, n=5)
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))
    call = trace.last
    assert rows_per_step(call, 0) == [[14, 14, 14], *[[1, 1, 1]] * 4]
    assert rows_per_step(call, 1) == [[9, 9, 9], *[[1, 1, 1]] * 4]
    assert not any(sum(record.parked) for step in call.steps for record in step)
    assert call.slots == [14] * 4
    assert call.fired == {"llm.layer.1": False, "llm.layer.3": False}


def test_a_row_runs_the_same_alone_and_in_a_batch():
    host, inputs = tiny_text.shared("qwen2", "sdpa", torch.float64), tiny_text.prompts([14, 9, 11])
    with attach(host, LazyLLM(), STAGES) as trace:
        tokens, logits = steps(host, inputs, n=8)
    for b in range(3):
        with attach(host, LazyLLM(), STAGES) as single:
            its_tokens, its_logits = steps(host, alone(inputs, b, 1), n=8)
        assert rows_per_step(single.last, 0) == rows_per_step(trace.last, b)
        assert single.last.tokens == [(layer[b],) for layer in trace.last.tokens]
        assert torch.equal(its_tokens[0, -8:], tokens[b, -8:])
        assert torch.allclose(its_logits[:, 0], logits[:, b], atol=1e-6)


def test_properties_of_every_step():
    """Seen sets are nested, the newest token is in all of them, and whoever reached a stage is computed or parked."""
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([17, 12])
    with attach(host, LazyLLM(), STAGES) as trace:
        steps(host, inputs, n=10)
    keeps = {str(stage.site): stage.keep for stage in STAGES}
    for b, length in enumerate((17, 12)):
        reached = [set() for _ in STAGES]
        for t, step in enumerate(trace.last.steps):
            before = set(range(length + t))
            front = set(range(length)) if t == 0 else {length + t - 1}
            for record, through in zip(step, reached, strict=True):
                seen, computed = set(record.seen_at[b]), set(record.computed_at[b])
                assert seen <= before
                assert length + t - 1 in seen & computed
                assert computed <= seen
                assert len(before) - len(seen) == int(len(before) * (1 - keeps[str(record.site)]) + 1e-6)
                assert not computed & through, "a token passes a stage once"
                assert record.entered[b] == len(front)
                assert record.computed[b] == len(computed)
                assert record.revived[b] == len(computed - front)
                assert record.parked[b] == len(front - computed)
                through |= computed
                before, front = seen, computed
        held = [record.waiting[b] for record in trace.last.steps[-1]]
        layers = [set(range(length + 9)), *reached]
        assert held == [len(a) - len(z) for a, z in pairwise(layers)]


TOLD = [  # step -> stage -> score of each position; the card's worked trace
    [
        [0.30, 0.02, 0.03, 0.08, 0.01, 0.10, 0.05, 0.06, 0.15, 0.20],
        [0.35, 0, 0, 0.04, 0, 0.02, 0.12, 0.11, 0.16, 0.20],
    ],
    [
        [0.30, 0.09, 0.01, 0.02, 0.12, 0.03, 0.04, 0.07, 0.08, 0.05, 0.19],
        [0.33, 0.06, 0, 0, 0.20, 0.01, 0.02, 0.10, 0.08, 0.03, 0.17],
    ],
    [
        [0.25, 0.01, 0.02, 0.03, 0.14, 0.11, 0.04, 0.06, 0.05, 0.02, 0.10, 0.17],
        [0.30, 0, 0, 0.05, 0.18, 0.12, 0.02, 0.04, 0.03, 0.02, 0.10, 0.14],
    ],
]


@pytest.mark.parametrize("rows", [1, 2])
def test_worked_trace(rows):
    """A prompt of ten tokens, two stages that drop three tenths, two decode steps, followed by hand."""
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([10] * rows)
    with attach(host, Told(TOLD), both(("llm.layer.1", 0.7), ("llm.layer.2", 0.7))) as trace:
        steps(host, inputs, n=3)
    a, b = zip(*trace.last.steps, strict=True)
    for row in range(rows):
        assert [r.seen_at[row] for r in a] == [
            [0, 3, 5, 6, 7, 8, 9],
            [0, 1, 4, 6, 7, 8, 9, 10],
            [0, 3, 4, 5, 6, 7, 8, 10, 11],
        ]
        assert [r.seen_at[row] for r in b] == [[0, 6, 7, 8, 9], [0, 1, 4, 7, 8, 10], [0, 3, 4, 5, 7, 10, 11]]
        assert [r.computed_at[row] for r in a] == [[0, 3, 5, 6, 7, 8, 9], [1, 4, 10], [11]]
        assert [r.computed_at[row] for r in b] == [[0, 6, 7, 8, 9], [1, 4, 10], [3, 5, 11]]
        assert [(r.revived[row], r.parked[row], r.waiting[row]) for r in a] == [(0, 3, 3), (2, 0, 1), (0, 0, 1)]
        assert [(r.revived[row], r.parked[row], r.waiting[row]) for r in b] == [(0, 2, 2), (0, 0, 2), (2, 0, 0)]
        assert rows_per_step(trace.last, row) == [[10, 7, 5], [1, 3, 3], [1, 1, 3]]
    assert trace.last.slots == [10, 7, 5, 5]


def test_all_come_back_at_once():
    """Whoever asks for everything in one step gets exactly what was parked, and nothing is held from then on."""
    host, inputs = tiny_text.shared("qwen2", "sdpa", torch.float64), tiny_text.prompts([12, 8])
    with attach(host, Everything(after=2), STAGES) as trace:
        tokens, logits = steps(host, inputs, n=5)
    before, then, after = trace.last.steps[1:4]
    assert sum(sum(record.waiting) for record in before) > 0
    assert then[0].revived == before[0].waiting
    assert [record.waiting for record in then] == [(0, 0)] * 3
    assert [record.computed for record in after] == [(1, 1)] * 3
    assert [len(record.seen_at[0]) for record in then] == [14] * 3
    assert worst(host, trace.last, inputs, tokens, logits) < 1e-6 * logits.abs().max()


def test_a_row_that_comes_back_has_its_own_position():
    """Where RoPE tells distances alone, all positions may be moved by a constant."""
    host, inputs = tiny_text.shared("llama", "sdpa", torch.float64), tiny_text.prompts([12])
    ids, S, found = inputs["input_ids"], 12, []
    for shift in (0, 40):
        with torch.no_grad(), attach(host, LazyLLM(), STAGES) as trace:
            out = host(input_ids=ids, position_ids=torch.arange(S)[None] + shift)
            logits = [out.logits[:, -1]]
            for t in range(6):
                place = torch.tensor([[S + t + shift]])
                out = host(input_ids=ids[:, t : t + 1], position_ids=place, past_key_values=out.past_key_values)
                assert out.logits.shape[1] == 1, "one row comes back for the one that came in"
                logits.append(out.logits[:, -1])
        assert sum(record.revived[0] for step in trace.last.steps for record in step) > 0
        found.append(torch.stack(logits))
    assert torch.allclose(*found, atol=1e-6)


@pytest.mark.parametrize("of", ["total", "alive"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_revival_it_is_the_static_cut(attention, of):
    """The tokens chosen in the prefill stay, and nobody is asked later: the engine of phase prefill, another way."""
    host, inputs = tiny_text.shared("llama", attention), tiny_text.prompts([14, 9])
    pairs = [("llm.layer.1", 0.75), ("llm.layer.3", 0.5)]
    method = Attention(score="probs", source="last")
    with attach(host, method, both(*pairs, of=of, revive=False)) as trace:
        tokens, logits = steps(host, inputs, n=5)
    kept = [[(len(row) - 1) for row in stage.seen_at] for stage in trace.last.steps[0]]
    for b in range(2):
        cut = Schedule(tuple(Stage(site, n[b]) for (site, _), n in zip(pairs, kept, strict=True)))
        with attach(host, method, cut) as plain:
            same, same_logits = steps(host, alone(inputs, b, 1), n=5)
        assert [stage.kept[0] for stage in plain.last.stages] == [stage.kept[b] for stage in trace.last.stages]
        assert torch.equal(same[0, -5:], tokens[b, -5:])
        assert torch.allclose(same_logits[:, 0], logits[:, b], atol=1e-5)
    assert [record.waiting for record in trace.last.steps[-1]] == [(0, 0)] * 2
    assert [record.computed for step in trace.last.steps[1:] for record in step] == [(1, 1)] * 8


def test_who_never_leaves():
    """Sinks by `first`, tokens of the answer by `protect`; both still count in the share that goes."""
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([12])
    with attach(host, RANDOM, both(("llm.layer.2", 0.5), first=3, protect="generated")) as trace:
        steps(host, inputs, n=6)
    for t, (record,) in enumerate(trace.last.steps):
        seen = set(record.seen_at[0])
        assert {0, 1, 2, *range(11 if t == 0 else 12, 12 + t)} <= seen
        assert len(seen) == 12 + t - (12 + t) // 2
    with attach(host, RANDOM, both(("llm.layer.2", 0.5))) as trace:
        steps(host, inputs, n=6)
    assert any(not {0, 1, 2} <= set(r.seen_at[0]) for (r,) in trace.last.steps)
    assert any(not set(range(12, 12 + t)) <= set(r.seen_at[0]) for t, (r,) in enumerate(trace.last.steps))


@pytest.mark.parametrize(
    ("keep", "of", "expected"),
    [
        (5, "total", [6, 6, 6, 6]),  # five beside the newest, in every step
        (5, "alive", [6, 7, 7, 8]),  # the share that five and the newest were of the prompt's twelve: one half
        (0.5, "total", [6, 7, 7, 8]),  # of the eleven, twelve, ... tokens beside the newest
        (0.5, "alive", [6, 7, 7, 8]),
    ],
)
def test_how_many_stay(keep, of, expected):
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([12])
    with attach(host, LazyLLM(), both(("llm.layer.2", keep), of=of)) as trace:
        steps(host, inputs, n=4)
    assert [len(record.seen_at[0]) for (record,) in trace.last.steps] == expected


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_behind_a_cut_of_the_prompt(attention):
    """A stage of phase prefill in front: what left there never comes back, what is left does."""
    host, inputs = tiny_text.shared("qwen3", attention), tiny_text.prompts([14, 9])
    method = Attention(score="probs", source="last")
    stages = Schedule((Stage("llm.layer.1", 0.6), *both(("llm.layer.2", 0.7), ("llm.layer.3", 0.7))))
    with attach(host, method, stages) as trace:
        tokens, logits = steps(host, inputs, n=6)
    first = trace.last.stages[0]
    assert first.after == (7, 4)
    for b, real in enumerate(inputs["attention_mask"].bool()):
        length, S = int(real.sum()), inputs["input_ids"].shape[1]
        left = {*first.kept[b], length - 1, *range(length, length + 6)}
        for step in trace.last.steps:
            assert set(step[0].seen_at[b]) <= left
        ids = torch.cat([tokens[b, :S][real], tokens[b, S:]])[None, :-1]
        n = ids.shape[1]
        cut = torch.eye(n).bool() | (torch.ones(n, n).bool().tril() & torch.tensor([j in left for j in range(n)]))
        want = dense(host, trace.last, b, {"input_ids": ids}, [(1, cut)])[length - 1 :]
        assert (want - logits[:, b]).abs().max() < 1e-5 * logits.abs().max()


class Ahead(LazyLLM):
    """Goes by a preview where it acts in the prefill alone."""

    def needs(self, stage):
        return super().needs(stage) if stage.in_decode else (Signal("preview", stage.site, "last"),)


def test_behind_a_stage_with_a_preview():
    """A layer that is looked at ahead is not taken for one that ran."""
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([14])
    stages = Schedule((Stage("llm.layer.1", 0.6), *both(("llm.layer.2", 0.7))))
    with attach(host, Ahead(), stages) as trace:
        tokens, logits = steps(host, inputs, n=5)
    left = torch.tensor([*trace.last.stages[0].kept[0], *range(13, 18)])
    cut = torch.eye(18).bool() | (torch.ones(18, 18).bool().tril() & torch.isin(torch.arange(18), left))
    want = dense(host, trace.last, 0, {"input_ids": tokens[:, :-1]}, [(1, cut)])[13:]
    assert (want - logits[:, 0]).abs().max() < 1e-5 * logits.abs().max()


def test_right_padding():
    """A plain call with padding behind: each row's newest token is the last real one, and comes last."""
    host = tiny_text.shared("llama")
    inputs = tiny_text.prompts([12, 8], "right")
    with torch.no_grad(), attach(host, LazyLLM(), STAGES) as trace:
        logits = host(**inputs).logits
    for b, n in enumerate((12, 8)):
        with torch.no_grad(), attach(host, LazyLLM(), STAGES) as single:
            its = host(**alone(inputs, b, 1)).logits
        assert torch.allclose(its[0, -1], logits[b, -1], atol=1e-5)
        assert [r.seen_at[0] for r in single.last.steps[0]] == [r.seen_at[b] for r in trace.last.steps[0]]
        assert n - 1 in trace.last.steps[0][-1].seen_at[b]


def test_score_is_the_mean_over_heads():
    """Two heads, by hand."""
    last = torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1]])[None, :, None]
    stage = Stage("llm.layer.2", 0.5, phase="both")
    (signal,) = LazyLLM().needs(stage)
    scores = LazyLLM().score(None, {signal: last}, stage)
    assert torch.allclose(scores, torch.tensor([[0.30, 0.15, 0.35, 0.10, 0.10]]))


def test_shares_of_those_alive_round_what_goes():
    stage = Stage("llm.layer.2", 0.7, of="alive")
    assert [stage.kept(10, n) for n in (10, 7, 5)] == [7, 5, 4]
    assert [Stage("llm.layer.2", 0.7).kept(10, n) for n in (10, 7, 5)] == [7, 7, 5]
    assert Schedule(tuple(both(("llm.layer.2", 0.7), ("llm.layer.4", 0.7)))).tokens_per_layer(10, 6) == [
        10,
        10,
        7,
        7,
        5,
        5,
    ]


def test_parked_states_use_free_places_again():
    """What is put in comes out under its column; places that were freed are filled before there are new ones."""
    slab = Parked()
    slab.put(torch.tensor([[3, 5], [2, -1]]), torch.tensor([[[3.0], [5.0]], [[2.0], [0.0]]]), (2, 1))
    out = slab.take(torch.tensor([[5], [-1]]), 9, (1, 0))
    assert out[0].tolist() == [[5.0]]
    assert slab.counts == (1, 1)
    slab.put(torch.tensor([[7], [8]]), torch.tensor([[[7.0]], [[8.0]]]), (1, 1))
    assert slab.states.shape[1] == 2
    slab.put(torch.tensor([[1, 0], [4, -1]]), torch.tensor([[[1.0], [0.5]], [[4.0], [0.0]]]), (2, 1))
    assert slab.counts == (4, 3)
    out = slab.take(torch.tensor([[0, 1, 3, 7], [-1, 2, 4, 8]]), 9, (4, 3))
    assert out[0].flatten().tolist() == [0.5, 1.0, 3.0, 7.0]
    assert out[1, 1:].flatten().tolist() == [2.0, 4.0, 8.0]
    assert slab.counts == (0, 0)
    assert (slab.column == -1).all()


class Fails(LazyLLM):
    """Fails in a decode step."""

    def score(self, tokens, signals, stage):
        if int(tokens.position.max()) > 12:
            raise ArithmeticError("on purpose")
        return super().score(tokens, signals, stage)


def test_nothing_stays_behind():
    """Neither after a run nor after an exception in the prefill, in a decode step or in the block."""
    from test_detach import fingerprint

    host, inputs = tiny_text.text_lm("llama"), tiny_text.prompts([12, 8])
    plain = steps(host, inputs, n=4)
    mark = fingerprint(host)
    with attach(host, LazyLLM(), STAGES):
        steps(host, inputs, n=4)
        assert fingerprint(host) != mark
    assert fingerprint(host) == mark
    with pytest.raises(ArithmeticError, match="on purpose"), attach(host, Fails(), STAGES):
        steps(host, inputs, n=6)
    assert fingerprint(host) == mark
    with pytest.raises(KeyError), attach(host, LazyLLM(), STAGES):
        raise KeyError
    assert fingerprint(host) == mark
    again = steps(host, inputs, n=4)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_two_prompts_in_turn():
    """A second prompt in the same block starts afresh, and the first cache goes on where it was."""
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([12])
    other = tiny_text.prompts([9], seed=5)
    with torch.no_grad(), attach(host, LazyLLM(), STAGES) as trace:
        alone_tokens = steps(host, inputs, n=4)[0]
        out = host(**inputs)
        first = [out.logits[:, -1].argmax(-1)]
        host.generate(**other, max_new_tokens=3)
        for t in range(3):
            place = torch.tensor([[12 + t]])
            step = {"input_ids": first[-1][:, None], "position_ids": place, "past_key_values": out.past_key_values}
            out = host(**step)
            first.append(out.logits[:, -1].argmax(-1))
    assert torch.equal(torch.stack(first, 1)[0], alone_tokens[0, 12:])
    assert [len(call.steps) for call in trace] == [4, 4, 3]
