"""Stages of phase decode: the prompt passes whole, and each step sees some of its tokens; all slots stay."""

import pytest
import tiny
import tiny_text
import torch
from oracle import alone, steps
from toys import plan
from who_saw_whom import dense, worst

from btp.core.pruner import Pruner
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.topk import top_k
from btp.engine.attach import attach
from btp.pruners.attention import Attention
from btp.pruners.dycoke import DyCoke
from btp.pruners.lazyllm import LazyLLM

FORMS = [("sdpa", torch.float64, 1e-6), ("eager", torch.float32, 5e-6)]


def decode(*pairs, of="alive", **settings):
    return Schedule(tuple(Stage(site, keep, phase="decode", of=of, settings=settings) for site, keep in pairs))


@pytest.mark.parametrize(("attention", "dtype", "least"), FORMS, ids=["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_equals_one_dense_forward(family, attention, dtype, least):
    """Every answer token has the logits of ONE forward over the finished sequence, masked by who saw whom."""
    host, inputs = tiny_text.shared(family, attention, dtype), tiny_text.prompts([14, 9])
    with attach(host, LazyLLM(), decode(("llm.layer.1", 0.6), ("llm.layer.3", 0.5))) as trace:
        tokens, logits = steps(host, inputs, n=8)
    plain = steps(host, inputs, n=8)[1]
    call = trace.last
    assert worst(host, call, inputs, tokens, logits) < least * max(1, logits.abs().max())
    assert torch.equal(logits[0], plain[0]), "the prompt passed whole"
    assert (logits - plain).abs().max() > 1e-3, "nothing was hidden, so nothing was proved"
    assert [record.unseen for record in call.steps[0]] == [(0, 0), (0, 0)]
    assert all(min(step[0].unseen) > 0 for step in call.steps[1:])
    assert not any(sum(record.parked) + sum(record.revived) for step in call.steps for record in step)
    assert [record.computed for step in call.steps[1:] for record in step] == [(1, 1)] * 14
    assert call.slots == [14] * 4
    assert call.fired == {"llm.layer.1": True, "llm.layer.3": True}


@pytest.mark.parametrize("similar", ["whole", "kept"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dycoke_hides_pictures_alone(attention, similar):
    """Behind a cut of the prompt: a step sees a share of the visual tokens that are left, and everything else."""
    host = tiny.shared("llava", attention)
    inputs = tiny.prompts(host, [[2, "i", 5], [3, "i", 1, "i", 2]])
    visual = host.visual_mask(inputs)
    stages = Schedule((Stage("llm.input", 0.7), *decode(("llm.layer.2", 0.34))))
    with attach(host, DyCoke(similar=similar, threshold=1.0), stages) as trace:
        tokens, logits = steps(host, inputs, n=6)
    call, S = trace.last, inputs["input_ids"].shape[1]
    left = call.stages[0].after
    assert left == (6, 12)
    for b in range(2):
        real = inputs["attention_mask"][b].bool()
        n, row = int(real.sum()), alone(inputs, b, 9)
        pictured = visual[b, real].nonzero().flatten().tolist()
        gone = {pictured[i] for i in range(len(pictured))} - {pictured[i] for i in call.stages[0].kept[b]}
        for t, (record,) in enumerate(call.steps):
            hidden = set(range(n + t)) - set(record.seen_at[b])
            assert hidden - gone <= set(pictured)
            assert len(hidden - gone) == (0 if t == 0 else int(left[b] * 0.66))
        row = {
            "input_ids": torch.cat([row["input_ids"], tokens[b : b + 1, S:-1]], dim=1),
            "pixel_values": row["pixel_values"],
        }
        total = row["input_ids"].shape[1]
        stay = torch.tensor([j not in gone for j in range(total)])
        cut = torch.eye(total).bool() | (torch.ones(total, total).bool().tril() & stay)
        want = dense(host, call, b, row, [(0, cut)])[n - 1 :]
        assert (want - logits[:, b]).abs().max() < 5e-6 * logits.abs().max()


def test_dycoke_whose_attention_stays_alike():
    """Any two attentions are at least -1 alike: one choice for all steps, or everything from the second step on."""
    host = tiny.shared("llava")
    inputs = tiny.prompts(host, [[2, "i", 5]])
    seen = {}
    for similar in ("whole", "kept"):
        with attach(host, DyCoke(similar=similar, threshold=-1.0), decode(("llm.layer.2", 0.34))) as trace:
            steps(host, inputs, n=5)
        seen[similar] = [record.seen_at[0] for (record,) in trace.last.steps]
    n = inputs["input_ids"].shape[1]
    assert [len(row) for row in seen["whole"]] == [n, n + 1 - 5, n + 2, n + 3, n + 4]
    assert [len(row) - t for t, row in enumerate(seen["kept"])] == [n, *[n - 5] * 4]
    first, *others = [set(row) & set(range(n)) for row in seen["kept"][1:]]
    assert all(row == first for row in others)
    assert set(seen["whole"][1]) & set(range(n)) == first


@pytest.mark.parametrize("family", ["qwen", "qwen3"])
def test_positions_in_three_axes(family):
    """Qwen2.5-VL, and Qwen3-VL with features of the tower behind the stage, which come in the prefill alone."""
    host = tiny.shared(family)
    inputs = tiny.prompts(host, [[2, (3, 4), 3]])
    with attach(host, LazyLLM(), decode(("llm.layer.1", 0.5))) as trace:
        tokens, logits = steps(host, inputs, n=5)
    S = inputs["input_ids"].shape[1]
    more = tokens[:, S:-1]
    whole = inputs | {"input_ids": tokens[:, :-1], "attention_mask": torch.ones_like(tokens[:, :-1])}
    whole["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(more).int()], dim=1)
    want = dense(host, trace.last, 0, whole)[S - 1 :]
    assert (want - logits[:, 0]).abs().max() < 5e-6 * logits.abs().max()
    assert all(record.unseen[0] for (record,) in trace.last.steps[1:])


class Counts(Pruner):
    """Keeps all but those it hid before, and counts how often it saw each token."""

    def __init__(self):
        self.told = []

    def reads_states(self, stage):
        return False

    def select(self, tokens, signals, stage):
        before = tokens.carried.get("asked", torch.zeros_like(tokens.position))
        self.told.append(before.masked_fill(~tokens.valid, -1).tolist())
        keep = top_k(-before.float(), tokens.keep_counts(stage), tokens.valid)
        return Selection(keep, carried={"asked": before + 1})


def test_what_tokens_carry():
    """Numbers come back with the tokens they were given to; tokens that are new have 0, and rows do not mix."""
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([4, 3])
    method = Counts()
    with attach(host, method, decode(("llm.layer.2", 0.5))):
        steps(host, inputs, n=4)
    # the newest is no candidate; the one before it is a new one
    assert method.told == [
        [[0, 0, 0, 0], [0, 0, 0, -1]],
        [[1, 1, 1, 1, 0], [1, 1, 1, 0, -1]],
        [[2, 2, 2, 2, 1, 0], [2, 2, 2, 1, 0, -1]],
    ]


def test_numbers_travel_to_the_next_stage_of_the_prefill():
    """They are those of the tokens that stayed, in their order, beside those that they had already."""
    told = []

    class Counts(Attention):
        def select(self, tokens, signals, stage):
            keep = super().select(tokens, signals, stage).keep
            told.append((tokens.index.clone(), {name: x.clone() for name, x in tokens.carried.items()}))
            numbers = {"place": tokens.index * 10.0} if stage.site.layer == 1 else {"late": tokens.index + 0.5}
            return Selection(keep, carried=numbers)

    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([8])
    method = Counts(score="probs", source="last")
    with attach(host, method, plan(("llm.layer.1", 0.75), ("llm.layer.2", 0.5), ("llm.layer.3", 0.25))):
        steps(host, inputs, n=1)
    first, second, third = told
    assert first[1] == {}
    assert second[1].keys() == {"place"}
    assert torch.equal(second[1]["place"], second[0] * 10.0)
    assert third[1].keys() == {"place", "late"}
    assert torch.equal(third[1]["place"], third[0] * 10.0)
    assert torch.equal(third[1]["late"], third[0] + 0.5)
