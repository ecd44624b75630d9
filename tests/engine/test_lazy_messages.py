"""What is refused of stages of phase both, by name and before it is too late."""

import pytest
import tiny
import tiny_text
import torch
from lazy_toys import both
from toys import Content, plan
from transformers import MistralConfig, StaticCache

from btp.core.schedule import Schedule, Stage
from btp.core.selection import MergePlan, Selection
from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.pruners.lazyllm import LazyLLM
from btp.pruners.random import Random

ONE = both(("llm.layer.2", 0.5))


class Asks(LazyLLM):
    """For anything."""

    def __init__(self, *signals):
        self.signals = signals

    def needs(self, stage):
        return self.signals


class Merges(LazyLLM):
    def select(self, tokens, signals, stage):
        keep = super().select(tokens, signals, stage).keep
        everyone = torch.arange(tokens.valid.shape[1]).expand_as(tokens.valid)
        return Selection(keep, MergePlan(keep[:, :1].expand_as(everyone), torch.ones_like(everyone).float()))


CASES = [
    (LazyLLM(), both(("llm.layer.2", 0)), r"schedule\.0\.keep is 0 in phase both, .* Set phase: prefill"),
    (Random(seed=0, salt="none"), both(("llm.layer.0", 0.5)), r"in front of layer 0 there are no keys"),
    (LazyLLM(), plan(("llm.input", 0.5)), r"schedule\.0\.site is llm\.input, but pruner 'lazyllm' ranks by the att"),
    (Random(seed=0, salt="none"), both(("llm.input", 0.5)), r"schedule\.0\.phase is both, which is not built yet"),
    (Random(seed=0, salt="none"), plan(("llm.input", 0.5), phase="decode"), r"phase is decode, which is not built yet"),
    (LazyLLM(), plan(("llm.layer.2", 0.5), phase="decode", settings={"revive": False}), r"revive is false in phase de"),
    (LazyLLM(), plan(("llm.layer.2", 0), phase="decode"), r"schedule\.0\.keep is 0 in phase decode"),
    (Content(), plan(("llm.layer.2", 0.5), phase="decode"), r"ranks tokens by their states, .* has phase decode"),
    (LazyLLM(), plan(("llm.layer.2", 0.5), phase="both", positions="renumber"), r"positions is renumber in phase both"),
    (LazyLLM(), both(("llm.layer.2", 0.5), revive="no"), r"schedule\.0\.revive is 'no'\. Choose from: True, False"),
    (LazyLLM(), both(("llm.layer.2", 0.5), revive=1), r"schedule\.0\.revive is 1\. Choose from: True, False"),
    (LazyLLM(), both(("llm.layer.2", 0.5), first=-1), r"schedule\.0\.first is -1\. Choose from: an int >= 0"),
    (LazyLLM(), both(("llm.layer.2", 0.5), protect="all"), r"protect is 'all'\. Choose from: none, generated"),
    (LazyLLM(), both(("llm.layer.2", 0.5), scope="words"), r"scope is 'words'\. Choose from: all, visual, text, None"),
    (LazyLLM(), both(("llm.layer.2", 0.5), scope="text"), r"scope is text, but LlamaForCausalLM takes text alone"),
    (
        LazyLLM(),
        both(("llm.layer.2", 0.5), protect="generated", revive=False),
        r"protect is generated, which has no effect, because revive is false",
    ),
    (LazyLLM(), both(("llm.layer.2", 0.5), reviv=True), r"schedule\.0\.reviv is set, .* Did you mean revive\?"),
    (LazyLLM(), plan(("llm.layer.2", 0.5), settings={"revive": True}), r"revive is set, but pruner 'lazyllm' has no"),
    (Content(), ONE, r"pruner 'content' ranks tokens by their states, but schedule\.0 has phase both"),
    (Asks(Signal("keys", "llm.layer.1")), ONE, r"asks for keys at llm\.layer\.1 at schedule\.0, a stage of phase both"),
    (Asks(Signal("attention", "llm.layer.0", "last")), ONE, r"attention with rows last at llm\.layer\.1"),
    (
        LazyLLM(),
        Schedule((*both(("llm.layer.1", 0.5)), Stage("llm.layer.3", 0.2))),
        r"schedule\.1 at llm\.layer\.3 has phase prefill behind schedule\.0 at llm\.layer\.1 of phase both",
    ),
    (
        Random(seed=0, salt="none"),
        Schedule((*both(("llm.layer.1", 0.5)), Stage("llm.cache.1", 0.5))),
        r"schedule\.1\.site is llm\.cache\.1, but schedule\.0 at llm\.layer\.1 has phase both",
    ),
    (LazyLLM(), plan(("llm.layer.2", 4), of="alive"), r"schedule\.0\.of is alive, which has no effect: 4 says"),
]


@pytest.mark.parametrize(("pruner", "schedule", "message"), CASES)
def test_before_anything_runs(pruner, schedule, message):
    with pytest.raises(ValueError, match=message), attach(tiny_text.shared("llama"), pruner, schedule):
        pass


def test_sliding_windows():
    host = tiny_text.text_lm("mistral", sliding_window=6)
    assert isinstance(host.config, MistralConfig)
    with pytest.raises(
        ValueError, match=r"layers of type sliding_attention that see 6 tokens: a token that comes back "
    ):
        attach(host, LazyLLM(), ONE).__enter__()
    with pytest.raises(ValueError, match=r"schedule\.0\.phase is decode, but .* Leave that stage out, or use a model"):
        attach(host, LazyLLM(), plan(("llm.layer.2", 0.5), phase="decode")).__enter__()


def test_features_that_come_between_layers():
    """Qwen3-VL adds features of the tower behind its first layers, which a token that waits would miss."""
    host = tiny.shared("qwen3")
    with pytest.raises(
        ValueError, match=r"adds vision features behind its first 2 layers.*site=llm\.layer\.2 or later"
    ):
        attach(host, LazyLLM(), both(("llm.layer.1", 0.5))).__enter__()
    inputs = tiny.prompts(host, [[2, "i", 4]])
    with torch.no_grad(), attach(host, LazyLLM(), ONE) as trace:
        host.generate(**inputs, max_new_tokens=3)
    assert trace.last.stages[0].after == (5,)


def test_protecting_an_answer_that_is_out_of_scope():
    with pytest.raises(ValueError, match="because generated tokens are out of its scope"):
        attach(tiny.shared("llava"), LazyLLM(), both(("llm.layer.2", 0.5), protect="generated")).__enter__()


def test_of_is_one_of_two():
    with pytest.raises(ValueError, match=r"of is 'all'\. Choose from: total, alive"):
        Stage("llm.layer.2", 0.5, of="all")
    assert Stage("llm.layer.2", 0.5, of="alive").to_config()["of"] == "alive"
    assert "of" not in Stage("llm.layer.2", 0.5).to_config()
    assert Schedule.from_config([Stage("llm.layer.2", 0.5, of="alive").to_config()])[0].of == "alive"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"num_beams": 2}, "asked to reorder a K/V cache .* one of phase both brings tokens back"),
        ({"prompt_lookup_num_tokens": 2}, "asked to crop a K/V cache .* assisted decoding"),
        ({"cache_implementation": "static"}, "Pruning needs a DynamicCache"),
    ],
    ids=str,
)
def test_ways_to_generate(how, message):
    """Beams exchange rows, assistants take tokens back, static caches have one length: each says what to change."""
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([12])
    with pytest.raises(ValueError, match=message), attach(host, LazyLLM(), ONE):
        host.generate(**inputs, max_new_tokens=5, do_sample=False, **how)


def test_chunks_and_caches_that_nobody_follows():
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([12])
    with attach(host, LazyLLM(), ONE), torch.no_grad():
        cache = host(**inputs).past_key_values
        with pytest.raises(ValueError, match="3 tokens came at once behind a filled cache"):
            host(input_ids=inputs["input_ids"][:, :3], past_key_values=cache)
    with pytest.raises(ValueError, match="pruned inside an attach and is continued outside"), torch.no_grad():
        host(input_ids=inputs["input_ids"][:, :1], past_key_values=cache)
    with attach(host, LazyLLM(), ONE), torch.no_grad():
        with pytest.raises(ValueError, match="Pruning needs a DynamicCache"):
            host(**inputs, past_key_values=StaticCache(config=host.config, max_cache_len=32))
        with pytest.raises(ValueError, match="asked to crop a K/V cache"):
            host(**inputs).past_key_values.crop(3)


def test_merging():
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([12])
    with (
        pytest.raises(
            ValueError, match=r"'merges' merges, exchanges or reorders tokens at llm\.layer\.2, a stage of ph"
        ),
        attach(host, Merges(), ONE),
        torch.no_grad(),
    ):
        host(**inputs)


def test_a_share_of_those_alive_beside_a_budget():
    from btp.schedules.solve import solve_fit

    mixed = Schedule((Stage("llm.layer.1", "fit"), Stage("llm.layer.2", 0.5, of="alive")))
    with pytest.raises(ValueError, match=r"schedule\.1\.keep is 0\.5 of the tokens alive, while a budget solves other"):
        solve_fit(mixed, 100, 4, 40)
