"""Compiled models are pruned as they would be uncompiled, in whatever way they were compiled."""

import warnings

import pytest
import tiny
import torch
from toys import Content, Scatter, plan

from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.engine.hooks.torch_compile import compiled_part
from btp.engine.observe import observe
from btp.models.lvlm import LVLM

STAGE = plan(("llm.layer.1", 0.3))


def forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def layer(model):
    layers = model.model.language_model.layers
    layers[2] = torch.compile(layers[2], backend="eager")
    return model


def decoder(model):
    model.model.language_model = torch.compile(model.model.language_model, backend="eager")
    return model


def whole(model):
    return torch.compile(model, backend="eager")


def method(part):
    def compiled(model):
        part(model).compile(backend="eager")
        return model

    return compiled


WAYS = {
    "model.forward": forward,
    "model.compile": method(lambda model: model),
    "decoder.compile": method(lambda model: model.model.language_model),
    "layer.compile": method(lambda model: model.model.language_model.layers[1]),
    "a compiled layer": layer,
    "a compiled decoder": decoder,
    "a compiled model": whole,
}


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


CASES = [*((way, True) for way in WAYS), ("model.compile", False), ("layer.compile", False)]


@pytest.mark.long
@pytest.mark.parametrize(("way", "warm"), CASES, ids=[f"{way}{' called before' * warm}" for way, warm in CASES])
def test_every_way(way, warm):
    """The same logits and answers as uncompiled, pruned inside and unpruned outside, before and behind."""
    plain = tiny.llava()
    inputs = tiny.prompts(plain, [[4, "i", 5]])
    with torch.no_grad(), attach(plain, Content(), STAGE):
        pruned = plain(**inputs).logits
        said = plain.generate(**inputs, max_new_tokens=3, do_sample=False)
    with torch.no_grad():
        unpruned = plain(**inputs).logits
    model = WAYS[way](tiny.llava().model)
    lvlm = LVLM(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if warm:
            torch.testing.assert_close(model(**inputs).logits, unpruned)
        with attach(lvlm, Content(), STAGE) as trace:
            for call in (model, lvlm):
                assert torch.equal(call(**inputs).logits, pruned)
                assert torch.equal(call.generate(**inputs, max_new_tokens=3, do_sample=False), said)
        assert trace.fired == {"llm.layer.1": True}
        assert len(trace) == 4
        torch.testing.assert_close(model(**inputs).logits, unpruned)


def test_it_is_said_where_it_can_be_seen():
    """By the module's name; a plain model says nothing."""
    lvlm = tiny.llava()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with attach(lvlm):
            pass
    lvlm.decoder.compile(backend="eager")
    assert compiled_part(lvlm.model) == "model.language_model"
    with (
        pytest.warns(UserWarning, match=r"model\.language_model is compiled.*everything runs uncompiled"),
        attach(lvlm),
    ):
        pass


@pytest.mark.long
def test_observe_sees_a_compiled_model():
    """What calibration is built on."""
    lvlm, signal = tiny.llava(), Signal("keys", "llm.layer.2")
    inputs = tiny.prompts(lvlm, [[4, "i", 5]])
    with torch.no_grad():
        with observe(lvlm, [signal]) as plain:
            lvlm(**inputs)
        lvlm.model.compile(backend="eager")
        lvlm(**inputs)
        with pytest.warns(UserWarning, match="is compiled"), observe(lvlm, [signal]) as seen:
            lvlm(**inputs)
    assert torch.equal(seen[0].signals[signal], plain[0].signals[signal])


def test_two_attaches_left_in_any_order():
    """The compiler goes back to work when the last engine has left."""
    stance = torch._dynamo.eval_frame._stance
    a, b = attach(tiny.llava()), attach(tiny.llava())
    a.__enter__()
    b.__enter__()
    a.__exit__(None, None, None)
    assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    b.__exit__(None, None, None)
    assert torch._dynamo.eval_frame._stance == stance


def test_compiled_code_that_runs_all_the_same_is_an_error():
    """Somebody lets the compiler work inside: its code has no hooks, and the stage does not run."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [[4, "i", 5]])
    lvlm.decoder.compile(backend="eager")
    with torch.no_grad():
        lvlm(**inputs)
        message = r"schedule\.0 at llm\.layer\.1 was passed over in a forward of LlavaFor.*torch.compiler.set_stance"
        with pytest.warns(UserWarning, match="is compiled"), attach(lvlm, Content(), STAGE):  # noqa: PT031
            torch.compiler.set_stance("default")
            with pytest.raises(RuntimeError, match=message):
                lvlm(**inputs)


class Bare(torch.nn.Module):
    """A layer that calls another one's forward, past its hooks."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args, **kwargs):
        return self.layer.forward(*args, **kwargs)


@pytest.mark.parametrize(("at", "named"), [(1, r"schedule\.0 at llm\.layer\.1"), (3, "decoder layer 3")])
def test_exchanged_layers_are_an_error(at, named):
    """In the prefill and, behind it, in a decode step."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [[4, "i", 5]])
    keep_all = plan(("llm.layer.1", 1.0))  # shapes do not give it away
    with torch.no_grad(), attach(lvlm, Scatter(), keep_all):
        layer = lvlm.layers[at]
        lvlm.layers[at] = Bare(layer)
        with pytest.raises(RuntimeError, match=f"{named} was passed over"):
            lvlm(**inputs)
        lvlm.layers[at] = layer
        out = lvlm(**inputs)
        lvlm.layers[at] = Bare(layer)
        with pytest.raises(RuntimeError, match=f"decoder layer {at} was passed over"):
            lvlm(input_ids=torch.tensor([[5]]), **{tiny.CACHE: out[tiny.CACHE]})


def test_observe_says_what_it_did_not_see():
    """A layer that was exchanged shows nothing."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [[4, "i", 5]])
    message = r"observe asks for hidden at llm\.layer\.2.*ran without the hook that looks"
    with torch.no_grad(), observe(lvlm, [Signal("hidden", "llm.layer.2")]):
        lvlm.layers[2] = Bare(lvlm.layers[2])
        with pytest.raises(RuntimeError, match=message):
            lvlm(**inputs)
