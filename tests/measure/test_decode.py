"""Operations of decode steps by formula, held against what the counter saw and against sums by hand."""

import pytest
import tiny_text
import torch
from lazy_toys import both
from slot_methods import everywhere, paged

from btp.core.schedule import Schedule, Stage
from btp.engine.attach import attach
from btp.measure.architecture import architecture
from btp.measure.cost import Subject, measure
from btp.measure.decode import attended, decode
from btp.measure.flops import layer
from btp.measure.timed_pruner import timed
from btp.pruners.fastv import FastV
from btp.pruners.lazyllm import LazyLLM
from btp.pruners.random import Random
from btp.pruners.tova import TOVA

NEW = 5
LAZY = both(("llm.layer.1", 0.7), ("llm.layer.3", 0.6))
ARMS = {
    "none": (None, Schedule(())),
    "cut in the prefill": (FastV(score="probs", query="last", seed=0), Schedule((Stage("llm.layer.2", 4),))),
    "evicted": (TOVA(), everywhere(8)),
    "evicted once": (TOVA(), everywhere(8, "prefill")),
    "pages": (paged(), everywhere(9)),
}


def subject(lengths):
    host, inputs = tiny_text.text_lm("llama"), tiny_text.prompts(lengths)

    def generate(n):
        return host.generate(**inputs, min_new_tokens=n, max_new_tokens=n, do_sample=False)

    sizes = architecture(host.config, strict=False)
    return host, Subject(generate, sizes, (), None, host.decoder, host.device, host.dtype)


@pytest.mark.parametrize("arm", ARMS)
def test_formula_and_counter_agree(arm):
    """One prompt without padding: matrix products as they ran, those of the choice included."""
    pruner, schedule = ARMS[arm]
    host, what = subject([17])
    pruner = None if pruner is None else timed(pruner)
    found = measure(what, lambda: attach(host, pruner, schedule), pruner=pruner, new_tokens=NEW, repeats=1, warmup=0)
    assert found["flops_decode"] == pytest.approx(found["flops_decode_measured"], rel=1e-9)
    assert found["unpruned"]["flops_decode"] == pytest.approx(found["unpruned"]["flops_decode_measured"], rel=1e-9)
    assert (found["flops_decode"] < found["unpruned"]["flops_decode"]) is (pruner is not None)


def test_lazyllm():
    """Rows that came back are computed too; the machine multiplies by slots that are hidden, the formula does not."""
    host, what = subject([17])
    pruner = timed(LazyLLM())
    found = measure(what, lambda: attach(host, pruner, LAZY), pruner=pruner, new_tokens=NEW, repeats=1, warmup=0)
    assert 0.7 * found["flops_decode_measured"] < found["flops_decode"] < found["flops_decode_measured"]
    with attach(host, LazyLLM(), LAZY) as trace:
        what.generate(NEW)
    call, decoder = trace.last, what.architecture.decoder
    by_hand = 0
    for t, (first, second) in enumerate(call.steps[1:], 1):
        rows = [1, first.computed[0], first.computed[0], second.computed[0]]
        seen = [17 + t, len(first.seen_at[0]), len(first.seen_at[0]), len(second.seen_at[0])]
        by_hand += sum(layer(decoder, r, r * n) for r, n in zip(rows, seen, strict=True))
        by_hand += 2 * (seen[0] + seen[2]) * decoder.heads * decoder.head_dim  # what the newest token looks at
    by_hand = by_hand / (NEW - 1) + 2 * decoder.hidden * what.architecture.vocab
    assert decode(what.architecture, call, looked={0, 2}) == pytest.approx(by_hand)
    assert any(max(record.revived) for step in call.steps[1:] for record in step)


def test_who_is_not_asked_in_a_step_looks_at_nothing():
    """Static pruning and random drops have no attention row in a step."""
    host, what = subject([17])
    for method, schedule in (
        (LazyLLM(), both(("llm.layer.2", 0.6), revive=False)),
        (Random(seed=0, salt="none"), LAZY),
    ):
        pruner = timed(method)
        found = measure(
            what, lambda p=pruner, s=schedule: attach(host, p, s), pruner=pruner, new_tokens=NEW, repeats=1, warmup=0
        )
        with attach(host, method, schedule) as trace:
            what.generate(NEW)
        assert found["flops_decode"] == pytest.approx(decode(what.architecture, trace.last), rel=1e-3)


def test_rows_of_a_batch():
    """Each row by its own length; slots that leave are seen once more."""
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([14, 9])
    with torch.no_grad(), attach(host, TOVA(), everywhere(8)) as trace:
        host.generate(**inputs, max_new_tokens=3, do_sample=False)
    for step, layers in enumerate(attended(trace.last), 1):
        assert layers == [[(1, 9), (1, 9)]] * 4, step
    with torch.no_grad(), attach(host, None, Schedule(())) as trace:
        host.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert [step[0] for step in attended(trace.last)] == [[(1, 15), (1, 10)], [(1, 16), (1, 11)]]
    with torch.no_grad(), attach(host, None, Schedule(())) as trace:
        host.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert decode(architecture(host.config, strict=False), trace.last) is None
