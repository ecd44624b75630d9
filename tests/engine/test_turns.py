"""Prompts that are under way at the same time do not mix."""

import gc
import threading
import weakref

import pytest
import tiny
import torch
from families import kit
from oracle import steps
from toys import Content, Watch, plan

from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.engine.observe import observe

TOWER = plan(("vision.layer.1", 6), ("vision.output", 4), ("llm.layer.2", 2))
LLM = plan(("llm.input", 7), ("llm.layer.1", 0.3))


class Looks(Content):
    """Ranks by what the tower showed of the pictures, which another thread's must not take the place of."""

    def needs(self, stage):
        return (Signal("keys", "vision.layer.0"),) if stage.site.tower == "llm" else ()

    def score(self, tokens, signals, stage):
        base = super().score(tokens, signals, stage)
        if stage.site.tower != "llm":
            return base
        keys = signals[self.needs(stage)[0]].mean((1, 3))  # [P, N]
        return keys[tokens.picture.clamp(min=0), tokens.slot.clamp(min=0)].masked_fill(~tokens.valid, -9) + 0 * base


def together(lvlm, asked, rounds, **more):
    """What threads generate at the same time, round by round."""
    found = []
    for _ in range(rounds):
        out = {}

        def go(k, out=out):
            try:
                out[k] = steps(lvlm, asked[k], 6, **more)[1]
            except Exception as error:
                out[k] = error

        threads = [threading.Thread(target=go, args=(k,)) for k in asked]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found.append(out)
    return found


@pytest.mark.parametrize(("pruner", "schedule"), [(Content, LLM), (Looks, TOWER)], ids=["decoder", "tower"])
def test_threads(pruner, schedule):
    """Three threads generate in one attach: each gets what it would get alone."""
    lvlm = tiny.shared("llava_deep") if schedule is TOWER else tiny.shared("llava")
    asked = {k: tiny.prompts(lvlm, [[4, "i", 5, "i", k]], seed=k) for k in (1, 2, 3)}
    with attach(lvlm, pruner(), schedule) as trace:
        alone = {k: steps(lvlm, inputs, 6)[1] for k, inputs in asked.items()}
        for out in together(lvlm, asked, 8):
            for k, logits in out.items():
                assert torch.is_tensor(logits), logits
                torch.testing.assert_close(logits, alone[k])
    assert len(trace) == 3 + 3 * 8
    assert all(call.decode_steps == 5 for call in trace)


@pytest.mark.parametrize(("name", "rows"), [("llava_next", "one row"), ("qwen25vl", "one row")])
def test_threads_of_packed_families(name, rows):
    """Sizes and grids that a generate() encoded belong to the thread that did."""
    lvlm = kit.loaded(name).host
    asked = {k: kit.batch(name, kit.rows(name)[rows], first=10 * k) for k in (1, 2)}
    with attach(lvlm, Content(), LLM):
        alone = {k: steps(lvlm, inputs, 6)[1] for k, inputs in asked.items()}
        for out in together(lvlm, asked, 3):
            for k, logits in out.items():
                assert torch.is_tensor(logits), logits
                torch.testing.assert_close(logits, alone[k])


def test_threads_under_observe():
    """Each Look has the signals of its own prompt."""
    lvlm, signal = tiny.shared("llava"), Signal("keys", "llm.layer.2")
    asked = {k: tiny.prompts(lvlm, [[4, "i", k]], seed=k) for k in (1, 2, 3)}
    alone = {}
    with torch.no_grad():
        for k, inputs in asked.items():
            with observe(lvlm, [signal]) as looks:
                lvlm(**inputs)
            alone[k] = looks[0].signals[signal]
        with observe(lvlm, [signal]) as looks:
            together(lvlm, asked, 4)
    assert len(looks) == 12
    for look in looks:
        assert any(torch.allclose(look.signals[signal], value, atol=1e-5) for value in alone.values())


def test_prompts_in_turns_in_one_thread():
    """Two prompts decode step by step, one after the other: a cache goes on with its own prompt."""
    lvlm = tiny.shared("llava")
    asked = [tiny.prompts(lvlm, [[n, "i", 5]], seed=n) for n in (2, 4)]
    with torch.no_grad(), attach(lvlm, Content(), LLM) as trace:
        alone = [steps(lvlm, inputs, 3)[1] for inputs in asked]
        outs = [lvlm(**inputs, use_cache=True) for inputs in asked]
        for step in range(1, 3):
            for i, inputs in enumerate(asked):
                at = {"position_ids": torch.tensor([[inputs["input_ids"].shape[1] + step - 1]])}
                token = alone[i][step - 1].argmax(-1)[:, None]
                outs[i] = lvlm(input_ids=token, **at, **{tiny.CACHE: outs[i][tiny.CACHE]})
                torch.testing.assert_close(outs[i].logits[:, -1], alone[i][step])
    assert [call.decode_steps for call in trace] == [2, 2, 2, 2]


def test_a_prompt_inside_a_prompt_is_refused():
    """A pruner that calls the model; the engine is well again behind it."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[2, "i", 5]])

    class Calls(Content):
        on = True

        def score(self, tokens, signals, stage):
            if self.on:
                lvlm(**inputs)
            return super().score(tokens, signals, stage)

    pruner = Calls()
    with torch.no_grad(), attach(lvlm, pruner, LLM):
        with pytest.raises(RuntimeError, match="called inside its own forward"):
            lvlm(**inputs)
        pruner.on = False
        lvlm(**inputs)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_forward_gives_its_turn_back(error):
    """In the same block, to the same thread and to another."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[2, "i", 5]])

    class Stops(Content):
        on = True

        def score(self, tokens, signals, stage):
            if self.on:
                raise error("on purpose")
            return super().score(tokens, signals, stage)

    pruner = Stops()
    with torch.no_grad(), attach(lvlm, pruner, LLM):
        with pytest.raises(error, match="on purpose"):
            lvlm(**inputs)
        pruner.on = False
        expected = steps(lvlm, inputs, 6)[1]
        assert torch.equal(together(lvlm, {1: inputs}, 1)[0][1], expected)


def test_forward_by_its_name():
    """What a wrapper such as peft's does: no hook of the root would run."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [[2, "i", 5]])
    own = lvlm.model.forward
    with torch.no_grad():
        with attach(lvlm, Content(), LLM) as trace:
            expected = lvlm(**inputs).logits
            assert torch.equal(lvlm.model.forward(**inputs).logits, expected)
            assert torch.equal(lvlm.model.forward(inputs["input_ids"], inputs["pixel_values"]).logits, expected)
            kept = lvlm.model.forward
        assert len(trace) == 3
        assert lvlm.model.forward == own
        assert torch.equal(kept(**inputs).logits, lvlm(**inputs).logits)  # a reference that outlives the attach


def test_what_others_put_over_forward_inside_stays():
    """The attach takes away its own function alone."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [[2, "i", 5]])
    with torch.no_grad():
        unpruned = lvlm(**inputs).logits
        with attach(lvlm, Content(), LLM):
            inner = lvlm.model.forward
            lvlm.model.forward = theirs = lambda *args, **kwargs: inner(*args, **kwargs)
            assert lvlm(**inputs).logits.shape != unpruned.shape
        assert lvlm.model.forward is theirs
        assert torch.equal(lvlm(**inputs).logits, unpruned)


def test_prompts_leave_with_their_caches():
    """A long evaluation in one attach does not pile up caches."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[2, "i", 5]])
    with torch.no_grad(), attach(lvlm, Watch(), LLM):
        out = lvlm(**inputs, use_cache=True)
        cache = weakref.ref(out[tiny.CACHE])
        del out
        gc.collect()
        assert cache() is None
