"""What the engine refuses about vision towers, sub-blocks and the order of sites."""

from dataclasses import replace

import pytest
import tiny
import torch
from oracle import steps
from toys import Content, Fold, Scatter, Watch, plan

from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.models.lvlm import LVLM

CLS = Signal("attention", "vision.feature", "cls")
OUTPUT = plan(("vision.output", 4))


def refuse(message, lvlm, pruner, schedule):
    """Attaching alone must raise."""
    with pytest.raises(ValueError, match=message), attach(lvlm, pruner, schedule):
        pass


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (plan(("vision.layer.3", 2)), "the vision tower has 3 layers"),
        (plan(("vision.mlp.3", 2)), "the vision tower has 3 layers"),
        (
            plan(("vision.layer.2", 2)),
            r"schedule\.0\.site is vision\.layer\.2, but the projector reads the output of vision layer 1, so a cut",
        ),
        (plan(("vision.mlp.2", 2)), r"Choose vision\.layer\.1 or earlier, or vision\.output"),
        (plan(("vision.feature", 2)), r"vision\.feature, where nothing can be cut. Set it to vision\.output"),
        (plan(("vision.layer.1", 2), phase="decode"), r"schedule\.0\.phase is decode"),
        (plan(("vision.output", "fit")), r"schedule\.0\.keep is still fit"),
    ],
)
def test_sites(schedule, message):
    """A stage behind the layer that is read, or where there is none."""
    refuse(message, tiny.shared("llava_deep"), Content(), schedule)


@pytest.mark.parametrize(
    ("signal", "site", "message"),
    [
        (Signal("hidden", "llm.input"), "vision.output", r"Set schedule\.0\.site to llm\.input or later"),
        (Signal("keys", "llm.layer.0"), "vision.output", r"Set schedule\.0\.site to llm\.layer\.1 or later"),
        (CLS, "vision.layer.1", r"Set schedule\.0\.site to vision\.output or later"),
        (CLS, "vision.mlp.1", r"Set schedule\.0\.site to vision\.output or later"),
        (Signal("pixels", "vision.output"), "vision.mlp.1", r"Set schedule\.0\.site to vision\.output or later"),
        (Signal("keys", "vision.layer.0"), "vision.layer.0", r"Set schedule\.0\.site to vision\.layer\.1 or later"),
        (Signal("hidden", "vision.layer.1"), "vision.mlp.0", r"Set schedule\.0\.site to vision\.layer\.1 or later"),
    ],
)
def test_signals_from_behind(signal, site, message):
    """The first site where a signal would be there is named."""
    refuse(message, tiny.shared("llava_deep"), Watch(signal), plan((site, 2)))


def test_no_layer_in_front():
    """Nothing ran in front of the first layer of the tower."""

    class Before(Scatter):
        def needs(self, stage):
            return (Signal("keys", stage.site.previous_layer),)

    message = r"cannot work at schedule\.0\.site: No layer of the vision tower comes before vision\.layer\.0"
    refuse(message, tiny.shared("llava"), Before(), plan(("vision.layer.0", 2)))


def without_tower():
    lvlm = tiny.llava()
    del lvlm.towers["vision"]
    return lvlm


def reading_two_layers():
    lvlm = tiny.llava()
    lvlm.config.vision_feature_layer = [-1, -2]
    return LVLM(lvlm.model)


def reading_class_tokens():
    lvlm = tiny.llava()
    lvlm.config.vision_feature_select_strategy = "full"
    return LVLM(lvlm.model)


def reading_embeddings():
    lvlm = tiny.llava()
    lvlm.config.vision_feature_layer = 0
    return LVLM(lvlm.model)


def without_projector():
    lvlm = tiny.llava()
    lvlm.projector = None
    return lvlm


def packed_and_unknown():
    class General(LVLM):
        """As a family that btp has no adapter for."""

    return General(tiny.qwen().model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (without_tower, "LlavaForConditionalGeneration has no vision tower "),
        (
            packed_and_unknown,
            "Qwen2_5_VLForConditionalGeneration has a vision tower whose tokens cannot be followed yet",
        ),
        (reading_two_layers, "cannot be followed yet"),
        (reading_class_tokens, "cannot be followed yet"),
        (reading_embeddings, "cannot be followed yet"),
        (without_projector, "cannot be followed yet"),
    ],
)
def test_towers(make, message):
    """Stages and signals alike need a tower whose patches lead to the prompt."""
    lvlm = make()
    refuse(rf"schedule\.0\.site is vision\.output: the stage works in .*{message}", lvlm, Content(), OUTPUT)
    asks = r"pruner 'watch' asks for keys at vision\.layer\.0: it works in the vision tower"
    refuse(f"{asks}.*{message}", lvlm, Watch(Signal("keys", "vision.layer.0")), plan(("llm.layer.2", 2)))
    with attach(lvlm, Content(), plan(("llm.layer.2", 2))):
        pass


def test_no_class_token():
    """A tower without class token has no attention from it, and the message says what would do."""
    lvlm = tiny.shared("llava_siglip")
    refuse("has no class token.*Signal rows mean.*score=received", lvlm, Watch(CLS), OUTPUT)
    refuse(r"has no class token.*cls=false", lvlm, Watch(Signal("hidden", "vision.output", "cls")), OUTPUT)


@pytest.mark.parametrize(
    ("signal", "part"),
    [
        (Signal("preview", "llm.layer.2", "last"), "attention"),
        (Signal("preview", "llm.layer.2", "last"), "attention_norm"),
        (Signal("rotary", "llm.layer.1"), "attention"),
        (Signal("update", "llm.layer.1", None, "mlp"), "mlp"),
        (Signal("change", "llm.layer.1", None, "attention"), "attention"),
    ],
)
def test_parts(signal, part):
    """Signals from inside a layer need the names of its blocks."""
    lvlm = tiny.llava()
    lvlm.towers["llm"] = replace(lvlm.towers["llm"], **{part: None})
    refuse(
        rf"asks for {signal.kind} .*, but no {part} was found inside the layers",
        lvlm,
        Watch(signal),
        plan(("llm.layer.2", 2)),
    )
    whole = Signal("change", "llm.layer.1", None, "layer")
    with attach(lvlm, Watch(whole), plan(("llm.layer.2", 2))):
        pass


@pytest.mark.parametrize("part", ["mlp", "mlp_norm"])
def test_no_mlp_in_the_tower(part):
    """A stage inside a layer needs the MLP and its norm; one in front of it does not."""
    lvlm = tiny.llava()
    lvlm.towers["vision"] = replace(lvlm.towers["vision"], **{part: None})
    refuse("no MLP with a norm in front of it was found", lvlm, Content(), plan(("vision.mlp.0", 4)))
    with attach(lvlm, Content(), plan(("vision.layer.1", 4))):
        pass


def test_a_decoder_without_attention():
    """It has nothing to look ahead at."""
    lvlm = tiny.llava()
    lvlm.towers["llm"] = replace(lvlm.towers["llm"], attends=False)
    refuse(
        "the llm tower has no attention",
        lvlm,
        Watch(Signal("preview", "llm.layer.2", "last")),
        plan(("llm.layer.2", 2)),
    )


@pytest.mark.parametrize("site", ["vision.layer.1", "vision.mlp.0"])
def test_nothing_left_for_the_tower(site):
    """Without a class token the layers behind need a token; what is written is refused early, a share when it runs."""
    lvlm = tiny.shared("llava_siglip")
    refuse(r"schedule\.0\.keep is 0 at vision.*Set the site to vision\.output", lvlm, Content(), plan((site, 0)))
    rounds_down = attach(lvlm, Content(), plan((site, 0.05)))
    with pytest.raises(ValueError, match=r"schedule\.0\.keep is 0\.05 at vision.*leaves no token"), rounds_down:
        steps(lvlm, tiny.prompts(lvlm, [["i", 2]]))
    with attach(lvlm, Content(), plan(("vision.output", 0))):
        steps(lvlm, tiny.prompts(lvlm, [["i", 2]]))


@pytest.mark.parametrize("schedule", [OUTPUT, plan(("llm.layer.2", 2))])
def test_attention_outside_the_registry(schedule):
    """A tower that computes attention by itself cannot be probed, and says so wherever the signal is used."""
    lvlm = tiny.llava()
    attention = lvlm.vision.encoder.layers[1].self_attn
    attention.forward = lambda hidden_states, **kw: (hidden_states, None)
    unseen = pytest.raises(RuntimeError, match=r"asks for attention at vision\.feature .* the attention registry")
    with unseen, torch.no_grad(), attach(lvlm, Watch(CLS), schedule):
        lvlm(**tiny.prompts(lvlm, [[2, "i", 2]]))


def test_weights_for_merged_tokens():
    """Proportional attention needs an implementation that takes a mask; without merges in a layer any will do."""
    lvlm = tiny.llava()
    lvlm.vision.config._attn_implementation = "flash_attention_2"
    message = "The vision tower runs attention implementation 'flash_attention_2', which takes no weights"
    for site in ("vision.mlp.0", "vision.layer.1"):
        refuse(message, lvlm, Fold(proportional=True), plan((site, 4)))
        with attach(lvlm, Fold(), plan((site, 4))):
            pass
    with attach(lvlm, Fold(proportional=True), OUTPUT):
        pass


def test_not_a_number():
    """NaN in the tower names the signal or the states, and the method."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [[1, "i", 2]])
    lvlm.vision.encoder.layers[1].self_attn.k_proj.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"attention at vision\.feature .* holds NaN, which pruner 'watch'"):
        run(lvlm, Watch(CLS), OUTPUT, inputs)
    lvlm.vision.encoder.layers[0].mlp.fc2.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"hidden at vision\.output holds NaN, which pruner 'content'"):
        run(lvlm, Content(), OUTPUT, inputs)
    with pytest.raises(ValueError, match=r"hidden at vision\.mlp\.1 holds NaN"):
        run(lvlm, Content(), plan(("vision.mlp.1", 4)), inputs)


def run(lvlm, pruner, schedule, inputs):
    with torch.no_grad(), attach(lvlm, pruner, schedule):
        lvlm(**inputs)
