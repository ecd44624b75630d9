"""Models inside of what other libraries put around them."""

import copy

import pytest
import tiny
import torch
from toys import Content, plan

from btp.core.host import unwrapped
from btp.engine.attach import attach
from btp.models.lvlm import LVLM

STAGE = plan(("llm.layer.1", 0.3))


class Tuner(torch.nn.Module):
    """Between peft's wrapper and the model, whose forward some versions call by its name."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return self.model.forward(*args, **kwargs)


class Wrapper(torch.nn.Module):
    """As peft's own: what it lacks, the module inside has."""

    def __init__(self, base, kind=None):
        super().__init__()
        self.base_model, self.active_peft_config = base, kind

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model.model, name)

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)


Tuner.__module__ = Wrapper.__module__ = "peft.stand_in"


class Learned:
    """The config of learned tokens in the prompt."""

    is_prompt_learning = True


def held(wrapper, lvlm):
    """Inside an attach every way to call it is pruned, and the same."""
    inputs = tiny.prompts(lvlm, [[2, "i", 5]])
    with torch.no_grad(), attach(lvlm, Content(), STAGE) as trace:
        logits = [call(**inputs).logits for call in (wrapper, lvlm, lvlm.model, lvlm.model.forward)]
        said = [x.generate(**inputs, max_new_tokens=3, do_sample=False) for x in (wrapper, lvlm)]
    assert all(torch.equal(logits[0], x) for x in logits)
    assert torch.equal(*said)
    assert trace.fired == {"llm.layer.1": True}
    assert len(trace) == 6


@pytest.mark.parametrize(
    "wrap", [lambda m: Wrapper(Tuner(m)), torch.compile, lambda m: torch.compile(Wrapper(Tuner(m)))]
)
@pytest.mark.filterwarnings("ignore:.*is compiled")
def test_wrappers_are_taken_off(wrap):
    """The engine works on the model inside; the wrapper may still be called."""
    model = tiny.llava().model
    wrapper = wrap(model)
    lvlm = LVLM(wrapper)
    assert lvlm.model is unwrapped(wrapper) is model
    held(wrapper, lvlm)
    with attach(lvlm), pytest.raises(RuntimeError, match="attached already"), attach(LVLM(model)):
        pass


def test_data_parallel():
    """Its module, on its own."""
    model = tiny.llava().model
    assert LVLM(torch.nn.DataParallel(model)).model is model


def test_a_wrapper_of_ones_own():
    """Nothing says what it does: the model inside is asked for, when the host is made or when it runs past it."""

    class Own(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

    class Forwards(Wrapper):
        pass

    Forwards.__module__ = "somebody"
    with pytest.raises(ValueError, match=r"Own is no model of transformers.*LVLM\(wrapper\.model\)"):
        LVLM(Own(tiny.llava().model))
    lvlm = LVLM(Forwards(Tuner(tiny.llava().model)).eval())
    inputs = tiny.prompts(tiny.shared("llava"), [[2, "i", 5]])
    with (
        attach(lvlm, Content(), STAGE),
        pytest.raises(RuntimeError, match=r"ran outside Forwards\.forward.*the one inside"),
    ):
        lvlm.generate(**inputs, max_new_tokens=2)


def test_learned_prompts_are_refused():
    """By the adapter's kind, where the host is made."""
    with pytest.raises(ValueError, match="Wrapper holds an adapter of kind Learned, which puts learned tokens into"):
        LVLM(Wrapper(tiny.llava().model, Learned()))


def test_a_lora_of_peft():
    """The real library, where it is installed."""
    peft = pytest.importorskip("peft")
    model = tiny.llava().model
    plain = LVLM(copy.deepcopy(model))
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    lvlm = LVLM(adapted)
    held(adapted, lvlm)
    inputs = tiny.prompts(lvlm, [[2, "i", 5]])
    with torch.no_grad():
        assert not torch.allclose(lvlm(**inputs).logits, plain(**inputs).logits)
    learned = peft.PromptTuningConfig(
        num_virtual_tokens=3, task_type="CAUSAL_LM", num_layers=4, token_dim=32, num_attention_heads=4
    )
    with pytest.raises(ValueError, match="adapter of kind PromptTuningConfig"):
        LVLM(peft.get_peft_model(plain.model, learned))
