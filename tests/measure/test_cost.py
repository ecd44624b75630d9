"""One report per arm, from runs of a tiny model under a clock that ticks at each reading."""

import itertools
import json
from dataclasses import replace

import pytest
import tiny

from btp.core.pruner import ScorePruner
from btp.core.schedule import Schedule
from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.measure import segments
from btp.measure.architecture import architecture
from btp.measure.cost import Subject, measure
from btp.measure.flops import visual_pdrop
from btp.measure.timed_pruner import timed

CUT = Schedule.from_config([{"site": "llm.layer.1", "keep": 5}, {"site": "llm.layer.3", "keep": 2}])


class Alike(ScorePruner):
    """Ranks by attention and by likeness: signals and products to be counted."""

    def needs(self, stage):
        """The attention of the layer before."""
        return (Signal("attention", stage.site.previous_layer, "last"),)

    def score(self, tokens, signals, stage):
        """[B, N]."""
        return signals[self.needs(stage)[0]].mean((1, 2)) + (tokens.hidden @ tokens.hidden.mT).sum(-1)


def ticks():
    """A clock that moves by one second at each reading."""
    count = itertools.count()
    return lambda: float(next(count))


def subject(rows, log=None):
    """A tiny model with a batch; `log` notes the lengths asked for."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, rows)
    sizes = architecture(lvlm.config)

    def generate(n):
        if log is not None:
            log.append(n)
        return lvlm.generate(**inputs, min_new_tokens=n, max_new_tokens=n, do_sample=False)

    runs = segments.square(sizes.vision, inputs["pixel_values"].shape[0])
    return lvlm, Subject(generate, sizes, runs, lvlm.vision, lvlm.decoder, lvlm.device, lvlm.dtype)


@pytest.fixture(scope="module")
def report():
    """An arm that cuts twice, and the lengths that were generated for it; the clock ticks fast at first."""
    log, time = [], [0.0]

    def now():
        time[0] += 1 if len(log) > 5 + 6 else 100  # four counts, two checks, one round of warm-up
        return time[0]

    lvlm, what = subject([[2, "i", 5], [3, "i", 4]], log)
    pruner = timed(Alike())
    rounds = {"new_tokens": 3, "repeats": 6, "warmup": 1}
    return measure(what, lambda: attach(lvlm, pruner, CUT), pruner=pruner, **rounds, now=now), log


def test_counts(report):
    """Tokens as they ran, operations computed as measured, a cache as computed."""
    found, _ = report
    assert (found["method"], found["rows"]) == ("alike", 2)
    assert found["tokens_per_layer"] == [9, 5, 5, 2]
    assert found["tokens_avg"] == 21 / 4
    assert found["flops_visual_pdrop"] == 2 * visual_pdrop([9, 5, 5, 2], 32, 48)
    assert found["flops_selection"] == 2 * 2 * 32 * (9 * 9 + 5 * 5)
    assert found["flops_signals"] == 2 * 2 * 32 * (16 + 12)
    assert found["flops_prefill"] == found["flops_prefill_measured"]
    kv = found["kv_bytes_per_layer"]
    assert kv["computed"] == kv["measured"] == [2 * 16 * 4 * 2 * n for n in (16, 12, 12, 9)]
    assert found["kv_mib"] == sum(kv["measured"]) / 2**20


def test_the_plain_model_stands_beside_it(report):
    """The same counts without a cut, held against a count of the model with nothing attached."""
    plain = report[0]["unpruned"]
    assert plain["tokens_per_layer"] == [9] * 4
    assert plain["flops_visual_pdrop"] == 2 * visual_pdrop([9] * 4, 32, 48)
    assert plain["flops_prefill"] == plain["flops_prefill_measured"] > report[0]["flops_prefill"]
    assert plain["kv_bytes_per_layer"] == {"computed": [2 * 16 * 4 * 2 * 16] * 4, "measured": None}


def test_latency(report):
    """Behind the warm-up each reading of the clock is a second: phases hold the readings made inside them."""
    times = report[0]["latency"]
    for name in ("vision_ms", "decoder_ms"):
        assert times[name]["baseline"] == {"median_ms": 1000, "p10_ms": 1000, "p90_ms": 1000}
    assert times["vision_ms"]["candidate"]["median_ms"] == 1000
    assert times["selection_ms"]["baseline"] is None
    assert times["selection_ms"]["candidate"]["median_ms"] == 2000  # two stages
    assert times["decoder_ms"]["candidate"]["median_ms"] == 5000  # and the four readings around them
    assert times["prefill_ms"]["baseline"]["median_ms"] == times["prefill_ms"]["candidate"]["median_ms"] == 1000
    assert times["prefill_ms"]["candidate_over_baseline"] == {"median": 1, "low": 1, "high": 1, "pairs": 6}
    assert times["per_token_ms"]["baseline"]["median_ms"] == 0
    assert times["per_token_ms"]["candidate_over_baseline"]["median"] is None
    assert (times["repeats"], times["warmup"], times["new_tokens"]) == (6, 1, 3)


def test_how_often_it_runs(report):
    """Four counts, two checks of length, and per round three runs of each side."""
    _, log = report
    assert log.count(1) == 2 + 7 * 4
    assert log.count(3) == 2 + 2 + 7 * 2
    assert len(log) == log.count(1) + log.count(3)


def test_json(report):
    """It survives JSON; memory is not made up on a CPU; the machine is named."""
    found, _ = report
    assert json.loads(json.dumps(found)) == found
    assert found["peak_memory_mib"] is None
    assert found["hardware"]["device"] == "cpu"


def test_an_arm_without_a_method():
    """An empty schedule: nothing selected, nothing less than the plain model."""
    lvlm, what = subject([[2, "i", 5]])
    found = measure(what, lambda: attach(lvlm), pruner=None, new_tokens=2, repeats=1, warmup=0, now=ticks())
    assert found["method"] == "none"
    assert found["flops_selection"] == found["flops_signals"] == 0
    assert found["flops_prefill_measured"] == found["unpruned"]["flops_prefill_measured"]
    assert found["kv_mib"] == found["unpruned"]["kv_mib"]
    assert found["latency"]["selection_ms"] == {"baseline": None, "candidate": None}


def test_an_architecture_that_is_counted():
    """Without a formula for the tower, operations of a prefill are those that were counted, on both sides."""
    lvlm, what = subject([[2, "i", 5]])
    sizes = replace(what.architecture, vision=None, projector=(), counted=True)
    pruner = timed(Alike())
    rounds = {"new_tokens": 2, "repeats": 1, "warmup": 0, "now": ticks()}
    known = measure(what, lambda: attach(lvlm, pruner, CUT), pruner=pruner, **rounds)
    unknown = replace(what, architecture=sizes, segments=())
    found = measure(unknown, lambda: attach(lvlm, pruner, CUT), pruner=pruner, **rounds)
    for one, other in ((found, known), (found["unpruned"], known["unpruned"])):
        assert one["flops_prefill"] == one["flops_prefill_measured"] == other["flops_prefill"]
        assert one["flops_visual_pdrop"] == other["flops_visual_pdrop"]


def test_time_per_token_is_of_the_tokens_asked_for():
    """A clock that only generated tokens move: one second each."""
    lvlm, what = subject([[2, "i", 5]])
    clock = [0.0]
    hook = lvlm.decoder.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 1))
    found = measure(what, lambda: attach(lvlm), pruner=None, new_tokens=4, repeats=1, warmup=0, now=lambda: clock[0])
    hook.remove()
    assert found["latency"]["prefill_ms"]["candidate"]["median_ms"] == 1000
    assert found["latency"]["per_token_ms"]["candidate"]["median_ms"] == 1000
    assert found["latency"]["per_token_ms"]["candidate_over_baseline"]["median"] == 1


def test_messages():
    """Too few tokens, and a generate that makes another number than asked."""
    lvlm, what = subject([[2, "i", 5]])
    rounds = {"pruner": None, "repeats": 1, "warmup": 0}
    with pytest.raises(ValueError, match=r"new_tokens is 1\. The time per token needs at least 2"):
        measure(what, lambda: attach(lvlm), new_tokens=1, **rounds)
    short = replace(what, generate=lambda n: what.generate(min(n, 2)))
    with pytest.raises(RuntimeError, match=r"generate\(3\) called the decoder 2 times.*min_new_tokens"):
        measure(short, lambda: attach(lvlm), new_tokens=3, **rounds)
