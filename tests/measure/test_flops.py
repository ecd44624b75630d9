"""The formulas give what papers print, and what torch counts while a model runs."""

import pytest
import tiny
import torch

from btp.core.pruner import ScorePruner
from btp.core.schedule import Schedule
from btp.engine.attach import attach
from btp.measure import segments
from btp.measure.architecture import Stack, architecture
from btp.measure.flops import attention_signal, layer, measured, prefill, vision, visual_pdrop

VICUNA_7B = {"hidden": 4096, "ffn": 11008}
VICUNA_13B = {"hidden": 5120, "ffn": 13824}


@pytest.mark.parametrize(
    ("tflops", "tokens", "sizes"),
    [
        (3.82, [576] * 32, VICUNA_7B),  # LLaVA-1.5-7B, unpruned
        (0.85, [576] * 3 + [288] * 3 + [144] * 8 + [48] * 8 + [0] * 10, VICUNA_7B),  # BTP
        (1.67, [576] * 14 + [0] * 18, VICUNA_7B),  # VTW as BTP's table 1 has it
        (0.83, [128] * 32, VICUNA_7B),  # DivPrune at 128 tokens
        (2.01, [576] * 2 + [288] * 30, VICUNA_7B),  # FastV, K = 2, R = 50 %
        (1.78, [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8, VICUNA_7B),  # PyramidDrop, lambda 0.5
        (1.54, [576] * 8 + [230] * 8 + [92] * 8 + [36] * 8, VICUNA_7B),  # lambda 0.4
        (2.06, [576] * 8 + [345] * 8 + [207] * 8 + [124] * 8, VICUNA_7B),  # lambda 0.6
        (1.56, [576] * 7 + [504] * 2 + [360] * 3 + [72] * 20, VICUNA_7B),  # TransPrune, High
        (7.44, [576] * 40, VICUNA_13B),  # LLaVA-1.5-13B, unpruned
        (20.83, [2880] * 32, VICUNA_7B),  # LLaVA-NeXT-7B, five tiles
        (9.46, [2880] * 8 + [1440] * 8 + [720] * 8 + [360] * 8, VICUNA_7B),  # PyramidDrop on it
    ],
)
def test_published(tflops, tokens, sizes):
    """The figures of PyramidDrop, BTP and TransPrune, to the digits they print.

    BTP's table prints 236 tokens beside VTW's 1.67; by the formula 1.67 is a cut at layer 14 (252 tokens).
    Its FastV row (172 tokens, 1.65) is left out: the formula gives 1.12. So is its PyramidDrop row (192
    tokens, 1.30), whose schedule is not known.
    """
    assert visual_pdrop(tokens, **sizes) / 1e12 == pytest.approx(tflops, abs=0.0051)


def test_unpruned_to_three_digits():
    """LLaVA-1.5-7B: 3.817e12."""
    assert visual_pdrop([576] * 32, 4096, 11008) == 3_817_152_184_320


def test_layer_by_hand():
    """Five tokens, D 4, m 6, two query heads and one key head of size 3."""
    stack = Stack(layers=1, hidden=4, ffn=6, heads=2, kv_heads=1, head_dim=3, gated=True)
    q_and_out, k_and_v, mlp, attention = 2 * 5 * 4 * 6, 2 * 5 * 4 * 3, 3 * 5 * 4 * 6, 2 * 5 * 5 * 6
    assert layer(stack, 5, 25) == 2 * (q_and_out + k_and_v + mlp + attention)
    plain = Stack(layers=1, hidden=4, ffn=6, heads=2, kv_heads=1, head_dim=3, gated=False)
    assert layer(stack, 5, 25) - layer(plain, 5, 25) == 2 * 5 * 4 * 6


def test_the_formulas_are_relatives():
    """Without grouping, our layer is twice the field's."""
    stack = Stack(layers=1, hidden=12, ffn=20, heads=3, kv_heads=3, head_dim=4, gated=True)
    assert layer(stack, 7, 49) == 2 * visual_pdrop([7], 12, 20)


class Similar(ScorePruner):
    """Keeps the tokens most like all others: a matrix product in its selection, no signal."""

    def score(self, tokens, signals, stage):
        """[B, N] summed products."""
        return (tokens.hidden @ tokens.hidden.mT).sum(-1)


def subject(family, attention, rows):
    """A tiny model, its prefill, its sizes and what its vision tower runs over."""
    lvlm = tiny.FAMILIES[family](attention)
    inputs = tiny.prompts(lvlm, rows)
    sizes = architecture(lvlm.config)
    if family == "qwen":
        runs = segments.packed(sizes.vision, inputs["image_grid_thw"].tolist())
    else:
        runs = segments.square(sizes.vision, inputs["pixel_values"].shape[0])
    return lvlm, sizes, runs, lambda: lvlm.generate(**inputs, max_new_tokens=1, do_sample=False)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_measured_is_computed(family, attention):
    """Unpruned, one picture and two: the counter and the formula agree to the last operation.

    On CPU the counter is told of the fused attention kernel; without that it would miss all attention.
    """
    for rows in ([[2, "i", 5]], [[2, "i", 5, "i"]]):
        lvlm, sizes, runs, run = subject(family, attention, rows)
        with attach(lvlm) as trace:
            counted = measured(run)
        assert counted == measured(run)  # an attached engine with nothing to do computes nothing
        assert counted == prefill(sizes, trace.last.tokens, runs)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_measured_is_computed_when_cut(family):
    """Tokens cut before layers 1 and 2, all withdrawn before layer 3; the selection is counted with it."""
    lvlm, sizes, runs, run = subject(family, "sdpa", [[2, "i", 5], [4, "i", 3]])
    stages = [{"site": f"llm.layer.{i}", "keep": keep} for i, keep in ((1, 5), (2, 3), (3, 0))]
    with attach(lvlm, Similar(), Schedule.from_config(stages)) as trace:
        counted = measured(run)
    assert trace.last.visual == [(9, 9), (5, 5), (3, 3), (0, 0)]
    selection = 2 * (2 * 9 * 9 * 32) + 2 * (2 * 5 * 5 * 32)
    assert counted == prefill(sizes, trace.last.tokens, runs, selection=selection)
    assert counted < measured(run)


def test_padding_is_computed_but_not_counted():
    """A ragged batch runs filled up: the machine does more than the real tokens need, by just the filling."""
    lvlm, sizes, runs, run = subject("llava", "sdpa", [[2, "i", 5], [1, "i", 2]])
    with attach(lvlm) as trace:
        counted = measured(run)
    assert trace.last.tokens[0] == (16, 12)
    assert prefill(sizes, trace.last.tokens, runs) < counted
    assert prefill(sizes, [(16, 16)] * 4, runs) == counted


def test_logits_of_all_tokens():
    """A plain forward takes logits of every token, generation of the last one."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [[2, "i", 5]])
    sizes = architecture(lvlm.config)
    with torch.inference_mode():
        counted = measured(lambda: lvlm(**inputs))
    assert counted == prefill(sizes, [(16,)] * 4, segments.square(sizes.vision, 1), logit_rows=16)


def test_text_alone_costs_no_vision():
    """Without a picture the encoder does not run."""
    sizes = architecture(tiny.llava().config)
    assert vision(sizes, ()) == vision(sizes, segments.square(sizes.vision, 0)) == 0
    assert vision(sizes, segments.square(sizes.vision, 2)) == 2 * vision(sizes, [[10]] * 2)


def test_attention_rows():
    """Three rows of attention over 7 and 5 keys, four heads of size 8."""
    assert attention_signal(architecture(tiny.llava().config).decoder, (7, 5), 3) == 2 * 3 * 12 * 32


def test_messages():
    """Counts of another model are refused."""
    sizes = architecture(tiny.llava().config)
    with pytest.raises(ValueError, match="tokens has 3 layers, but the architecture has 4"):
        prefill(sizes, [(5,)] * 3)
    with pytest.raises(ValueError, match="segments has 3 layers, but the architecture has 2 vision layers"):
        prefill(sizes, [(5,)] * 4, [[10]] * 3)
    with pytest.raises(ValueError, match="but the architecture has no vision tower"):
        prefill(architecture(tiny.llava().config.text_config), [(5,)] * 4, [[10]] * 2)
