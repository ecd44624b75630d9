"""Nothing of the engine stays behind."""

import pytest
import tiny
import torch
from toys import Scatter, Watch, plan
from transformers import AttentionInterface, AttentionMaskInterface

from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.engine.observe import observe


def fingerprint(lvlm):
    """Everything the engine could have left: hooks, attributes, registry entries, implementation names."""
    parts = []
    for name, module in lvlm.model.named_modules():
        kinds = [f"_forward{kind}_hooks{more}" for kind in ("", "_pre") for more in ("", "_with_kwargs")]
        hooks = [len(getattr(module, kind)) for kind in kinds]
        attention = getattr(getattr(module, "config", None), "_attn_implementation", "")
        parts.append((name, hooks, sorted(vars(module)), attention))
    registries = sorted(AttentionInterface._global_mapping), sorted(AttentionMaskInterface._global_mapping)
    return parts, registries, sorted(vars(lvlm))


LAST = Signal("attention", "llm.layer.1", "last")


class Fails(Watch):
    def score(self, tokens, signals, stage):
        raise ArithmeticError("on purpose")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_after_a_run(attention):
    """After a normal run the model is as it was, and can be attached again."""
    lvlm = tiny.llava(attention)
    inputs = tiny.prompts(lvlm, [[2, "i", 2]])
    before = lvlm(**inputs).logits
    mark = fingerprint(lvlm)
    for _ in range(2):
        with attach(lvlm, Watch(LAST), plan(("llm.layer.2", 2))):
            lvlm.generate(**inputs, max_new_tokens=2)
            assert fingerprint(lvlm) != mark
        assert fingerprint(lvlm) == mark
    assert torch.equal(before, lvlm(**inputs).logits)


@pytest.mark.parametrize("enter", [attach, lambda lvlm, *_: observe(lvlm, [LAST])])
def test_after_an_exception(enter):
    """An exception in the block, in the pruner or in the model removes everything too."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [[2, "i", 2]])
    lvlm.generate(**inputs, max_new_tokens=2)  # the host installs hooks of its own in its first run
    mark = fingerprint(lvlm)
    with pytest.raises(KeyError, match="block"), enter(lvlm, Watch(LAST), plan(("llm.layer.2", 2))):
        raise KeyError("block")
    assert fingerprint(lvlm) == mark
    fails = attach(lvlm, Fails(LAST), plan(("llm.layer.2", 2)))
    with pytest.raises(ArithmeticError, match="on purpose"), fails:
        lvlm.generate(**inputs, max_new_tokens=2)
    assert fingerprint(lvlm) == mark
    with pytest.raises(RuntimeError), enter(lvlm, Watch(LAST), plan(("llm.layer.2", 2))):
        lvlm(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"][:, :1])
    assert fingerprint(lvlm) == mark


CLS = Signal("attention", "vision.feature", "cls")
TOWER = plan(("vision.layer.1", 6), ("vision.mlp.1", 5), ("vision.output", 4), ("llm.layer.2", 2))


class Everywhere(Watch):
    """Asks in the tower and for a preview, and may fail at a site."""

    def __init__(self, fails=""):
        super().__init__()
        self.fails = fails

    def needs(self, stage):
        if stage.site.kind == "output":
            return (CLS, Signal("keys", "vision.layer.0"))
        return (Signal("preview", stage.site, "last"), LAST, CLS) if stage.site.tower == "llm" else ()

    def score(self, tokens, signals, stage):
        if str(stage.site) == self.fails:
            raise ArithmeticError("on purpose")
        return super().score(tokens, signals, stage)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_after_a_run_in_the_tower(attention):
    """Hooks and attention names of the tower and of the decoder go too."""
    lvlm = tiny.llava(attention)
    inputs = tiny.prompts(lvlm, [[2, "i", 2]])
    before = lvlm.generate(**inputs, max_new_tokens=2, output_logits=True, return_dict_in_generate=True).logits
    mark = fingerprint(lvlm)
    for _ in range(2):
        with attach(lvlm, Everywhere(), TOWER):
            lvlm.generate(**inputs, max_new_tokens=2)
            assert fingerprint(lvlm) != mark
            assert lvlm.vision.config._attn_implementation.startswith(f"btp_{attention}")
            assert "flash" not in lvlm.vision.config._attn_implementation
        assert fingerprint(lvlm) == mark
        assert lvlm.vision.config._attn_implementation == attention
    after = lvlm.generate(**inputs, max_new_tokens=2, output_logits=True, return_dict_in_generate=True).logits
    assert torch.equal(torch.stack(before), torch.stack(after))


@pytest.mark.parametrize("site", [str(stage.site) for stage in TOWER])
def test_after_an_exception_in_the_tower(site):
    """A pruner that fails anywhere leaves nothing, and a second prompt in the same block starts afresh."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [[2, "i", 2], [1, "i", 1, "i", 2]])
    with torch.no_grad():
        lvlm.generate(**inputs, max_new_tokens=2)
        mark = fingerprint(lvlm)
        with attach(lvlm, Everywhere(), TOWER):
            right = lvlm(**inputs).logits
        with pytest.raises(ArithmeticError, match="on purpose"), attach(lvlm, Everywhere(site), TOWER):
            lvlm.generate(**inputs, max_new_tokens=2)
        assert fingerprint(lvlm) == mark
        pruner = Everywhere(site)
        with attach(lvlm, pruner, TOWER) as trace:
            with pytest.raises(ArithmeticError, match="on purpose"):
                lvlm(**inputs)
            pruner.fails = ""
            assert torch.equal(lvlm(**inputs).logits, right)
            assert [str(record.site) for record in trace.last.stages] == [str(stage.site) for stage in TOWER]
    assert fingerprint(lvlm) == mark


def test_after_a_model_that_fails_inside_a_layer():
    """The model itself may fail between an MLP's norm and its end, or while a layer is looked at ahead."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [[2, "i", 2]])
    with torch.no_grad():
        lvlm(**inputs)
        mark = fingerprint(lvlm)
        with attach(lvlm, Everywhere(), TOWER):
            right = lvlm(**inputs).logits
        for module in (lvlm.vision.encoder.layers[1].mlp.fc1, lvlm.layers[2].self_attn.k_proj):
            old = module.forward
            with attach(lvlm, Everywhere(), TOWER):
                module.forward = lambda x: x.no_such_thing
                with pytest.raises(AttributeError, match="no_such_thing"):
                    lvlm(**inputs)
                del module.forward
                assert module.forward == old
                assert torch.equal(lvlm(**inputs).logits, right)
            assert fingerprint(lvlm) == mark


def test_after_a_refused_plan():
    """A plan that is refused leaves nothing, not even the hold on the model."""
    lvlm = tiny.llava()
    mark = fingerprint(lvlm)
    refused = attach(lvlm, Scatter(), plan(("llm.layer.9", 2)))
    with pytest.raises(ValueError, match="the llm tower has 4 layers"), refused:
        pass
    assert fingerprint(lvlm) == mark
    with attach(lvlm, Scatter(), plan(("llm.layer.1", 2))):
        pass


def test_second_attach():
    """A model carries one engine at a time, through whatever wrapper; two models are independent."""
    lvlm = tiny.llava()
    again = type(lvlm)(lvlm.model)
    with attach(lvlm):
        with pytest.raises(RuntimeError, match="attached already"), attach(again):
            pass
        with pytest.raises(RuntimeError, match="attached already"), observe(again, [LAST]):
            pass
        with attach(tiny.llava(), Watch(LAST), plan(("llm.layer.2", 2))):
            pass


def test_hooks_only_where_something_happens():
    """Layers in front of the first stage carry no hook; the baseline carries none in any layer."""
    lvlm = tiny.llava()

    def hooked():
        return [len(layer._forward_pre_hooks) for layer in lvlm.layers]

    with attach(lvlm):
        assert hooked() == [0, 0, 0, 0]
    with attach(lvlm, Watch(LAST), plan(("llm.layer.2", 2))):
        assert hooked() == [0, 0, 1, 1]
        assert lvlm.decoder.config._attn_implementation.startswith("btp_sdpa")
    with attach(lvlm, Scatter(), plan(("llm.layer.2", 2))):
        assert lvlm.decoder.config._attn_implementation == "sdpa"
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in lvlm.vision.modules())
    with attach(lvlm, Watch(CLS), plan(("llm.layer.2", 2))):
        assert lvlm.decoder.config._attn_implementation == "sdpa"
        assert lvlm.vision.config._attn_implementation.startswith("btp_sdpa")
