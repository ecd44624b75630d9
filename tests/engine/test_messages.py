"""Everything the engine refuses, by name and before it is too late."""

import pytest
import tiny
import torch
from toys import Scatter, Watch, plan
from transformers import LlamaConfig, StaticCache

from btp.core.pruner import Pruner
from btp.core.schedule import Schedule, Stage
from btp.core.selection import MergePlan, Selection
from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.engine.observe import observe
from btp.models.lvlm import LVLM


class Answer(Pruner):
    """Returns what it was made with."""

    def __init__(self, answer):
        self._answer = answer

    def select(self, tokens, signals, stage):
        return self._answer


def refuse(message, lvlm, pruner, schedule, error=ValueError):
    """Attaching alone must raise."""
    with pytest.raises(error, match=message), attach(lvlm, pruner, schedule):
        pass


ONE = plan(("llm.layer.2", 2))


@pytest.mark.parametrize(
    ("pruner", "schedule", "message"),
    [
        (None, ONE, r"schedule\.0\.keep is 2 at llm\.layer\.2, but there is no pruner"),
        (
            None,
            plan(("llm.layer.2", 1.0), settings={"a": 1}),
            r"schedule\.0\.a is set, but there is no pruner",
        ),
        (Scatter(), Schedule(), "pruner 'scatter' has no stage, so it would do nothing"),
        (
            Scatter(),
            plan(("llm.layer.2", 2), settings={"a": 1}),
            r"schedule\.0\.a is set, but pruner 'scatter'",
        ),
        (
            Scatter(),
            plan(("llm.layer.2", 0), settings={"a": 1}),
            r"schedule\.0\.a has no effect, because keep is 0",
        ),
        (Scatter(), plan(("llm.layer.2", "fit")), r"schedule\.0\.keep is still fit"),
        (Scatter(), plan(("llm.layer.4", 2)), "the llm tower has 4 layers"),
        (Scatter(), plan(("vision.layer.5", 2)), "the vision tower has 2 layers"),
        (Scatter(), plan(("llm.cache.1", 2)), r"chooses tokens between layers and no slots of the cache"),
        (
            Scatter(),
            plan(("llm.layer.1", 2), phase="decode"),
            r"ranks tokens by their states, but schedule\.0 has phase decode",
        ),
        (
            Scatter(),
            plan(("llm.input", 2), phase="both"),
            r"schedule\.0\.phase is both, which is not built",
        ),
    ],
)
def test_plans(pruner, schedule, message):
    """A schedule that cannot be, or has no effect."""
    refuse(message, tiny.shared("llava"), pruner, schedule)


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (
            Signal("attention", "llm.layer.3", "last"),
            r"asks for attention at llm\.layer\.3, but its stage cuts at llm\.layer\.2.\n?.*"
            r"Set schedule\.0\.site to llm\.layer\.4 or later",
        ),
        (Signal("update", "llm.layer.2"), r"Set schedule\.0\.site to llm\.layer\.3 or later"),
        (Signal("hidden", "llm.layer.3"), r"Set schedule\.0\.site to llm\.layer\.3 or later"),
        (Signal("attention", "llm.layer.7", "last"), "the llm tower has 4 layers"),
        (
            Signal("preview", "llm.layer.1", "last"),
            r"asks for preview at llm\.layer\.1 .*, but its stage cuts at llm\.layer\.2: that layer has run",
        ),
        (Signal("preview", "llm.layer.3", "last"), r"Set schedule\.0\.site to llm\.layer\.3 or later"),
        (Signal("attention", "vision.layer.2", "cls"), "the vision tower has 2 layers"),
    ],
)
def test_signals(signal, message):
    """A signal from behind the stage, from a layer that has run, or from one that is not there."""
    refuse(message, tiny.shared("llava"), Watch(signal), ONE)


def test_no_layer_in_front():
    """A method that needs the layer before cannot work at the input."""

    class Before(Scatter):
        def needs(self, stage):
            return (Signal("attention", stage.site.previous_layer, "last"),)

    message = r"pruner 'before' cannot work at schedule\.0\.site: No layer of the llm tower comes before llm\.input"
    refuse(message, tiny.shared("llava"), Before(), plan(("llm.input", 2)))


def test_towers_without_attention():
    """A tower that does not attend has no attention to show."""
    lvlm = tiny.llava()
    tower = lvlm.towers["llm"]
    lvlm.towers["llm"] = type(tower)("llm", tower.layers, attends=False)
    refuse("the llm tower has no attention", lvlm, Watch(Signal("keys", "llm.layer.1")), ONE)
    with (
        pytest.raises(ValueError, match="observe asks for keys"),
        observe(lvlm, [Signal("keys", "llm.layer.1")]),
    ):
        pass


def test_hosts():
    """Models whose tokens cannot be followed."""
    refuse("Wrap it: btp.models.lvlm.LVLM", tiny.shared("llava").model, Scatter(), ONE, TypeError)
    lvlm = tiny.llava()
    lvlm.model.train()
    refuse("training mode", lvlm, Scatter(), ONE)
    lvlm = tiny.llava()
    lvlm.decoder.config._attn_implementation = "flex_attention"
    refuse("attention implementation 'flex_attention'.*sdpa, eager and flash_attention_2 only", lvlm, Scatter(), ONE)
    lvlm = tiny.llava()
    lvlm.model = torch.compile(lvlm.model)
    refuse("a OptimizedModule around LlavaForConditionalGeneration.*takes wrappers off", lvlm, Scatter(), ONE)
    lvlm = tiny.llava_qwen()
    lvlm.decoder.config.layer_types = ["full_attention", "sliding_attention"] * 2
    refuse("layers of type sliding_attention without a window", lvlm, Scatter(), ONE)
    lvlm.decoder.config.layer_types = ["full_attention", "chunked_attention"] * 2
    refuse("Qwen2Model has layers of type chunked_attention, but masks behind a cut are", lvlm, Scatter(), ONE)
    lvlm = tiny.llava()
    lvlm.decoder.norm = None
    refuse("no final norm", lvlm, Watch(Signal("hidden", "llm.layer.1", None, "normed")), ONE)


def test_deepstack():
    """A decoder that adds vision features in front of layers of its choice is refused by name."""
    lvlm = tiny.llava()
    old = lvlm.decoder.forward
    lvlm.decoder.forward = lambda inputs_embeds=None, deepstack_features=None, **kw: old(inputs_embeds, **kw)
    refuse("deepstack", lvlm, Scatter(), ONE)


def test_renumbering_several_axes():
    """M-RoPE has no agreed meaning of closing gaps."""
    refuse(
        "turns positions in several axes",
        tiny.shared("qwen"),
        Scatter(),
        plan(("llm.layer.1", 2), positions="renumber"),
    )


def test_observing_nothing():
    """No signal, no effect."""
    with pytest.raises(ValueError, match="observe was given no signal"), observe(tiny.shared("llava"), []):
        pass


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (None, TypeError, "returned NoneType at llm.layer.2. Return a btp.core.selection.Selection"),
        (Selection(torch.tensor([[0.0, 1.0]])), TypeError, "Return int64"),
        (
            Selection(torch.tensor([[0, 1, 2]])),
            ValueError,
            r"keeps \(2,\) tokens of its rows: shape \(1, 2\)",
        ),
        (Selection(torch.tensor([[1, 0]])), ValueError, "not ascending, unique and in range"),
        (Selection(torch.tensor([[0, 9]])), ValueError, "not ascending, unique and in range"),
        (
            Selection(torch.tensor([[0, 1]]), merge=MergePlan(torch.zeros(1, 9), torch.zeros(1, 9))),
            TypeError,
            r"returned merge\.target of torch\.float32\. Return int64",
        ),
        (
            Selection(torch.tensor([[0, 1]]), merge=MergePlan(torch.zeros(1, 8, dtype=torch.int64), torch.ones(1, 9))),
            ValueError,
            r"returned merge\.target of shape \(1, 8\) at llm\.layer\.2\. Return \(1, 9\)",
        ),
        (
            Selection(torch.tensor([[0, 1]]), merge=MergePlan(torch.zeros(1, 9, dtype=torch.int64), torch.ones(1))),
            ValueError,
            r"returned merge\.weight of shape \(1,\)",
        ),
        (
            Selection(torch.tensor([[0, 1]]), merge=MergePlan(torch.zeros(1, 9).long(), torch.ones(1, 9), "max")),
            ValueError,
            "a MergePlan that combines by 'max' at llm.layer.2. Choose from: mean, sum",
        ),
        (
            Selection(torch.tensor([[0, 1]]), merge=MergePlan(torch.arange(9)[None], torch.ones(1, 9))),
            ValueError,
            r"lets tokens flow into ones that do not stay at llm\.layer\.2",
        ),
        (
            Selection(torch.tensor([[0, 1]]), merge=MergePlan(torch.full((1, 9), 9), torch.ones(1, 9))),
            ValueError,
            "flow into ones that do not stay",
        ),
        (Selection(torch.tensor([[0, 1]]), states=torch.zeros(1, 2, 31)), ValueError, r"states of shape \(1, 2, 31\)"),
        (
            Selection(torch.tensor([[1, 0]]), ordered=True),
            ValueError,
            r"gives its tokens a new order at llm\.layer\.2, where positions are original.*Set positions: renumber",
        ),
        (Selection(torch.tensor([[0, 1]]), counts=(2,)), ValueError, "returned counts at llm.layer.2, but it is not"),
    ],
)
def test_selections(answer, error, message):
    """A pruner that breaks its contract is named."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[1, "i", 2]])
    with pytest.raises(error, match=message), torch.no_grad(), attach(lvlm, Answer(answer), ONE):
        lvlm(**inputs)


def test_not_a_number():
    """NaN names the signal and the method."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [[1, "i", 2]])
    lvlm.layers[1].mlp.down_proj.weight.data.fill_(float("nan"))
    with (
        pytest.raises(ValueError, match=r"hidden at llm\.layer\.2 holds NaN, which pruner 'scatter'"),
        attach(lvlm, Scatter(), ONE),
    ):
        lvlm(**inputs)
    lvlm.layers[1].self_attn.k_proj.weight.data.fill_(float("nan"))
    signal = Signal("attention", "llm.layer.1", "last")
    with (
        pytest.raises(ValueError, match=r"attention at llm\.layer\.1 .* holds NaN, which pruner 'watch'"),
        attach(lvlm, Watch(signal), ONE),
    ):
        lvlm(**inputs)


def run(lvlm, message, inputs, error=ValueError, schedule=ONE, **more):
    """Running inside an attach must raise."""
    with torch.no_grad(), pytest.raises(error, match=message), attach(lvlm, Scatter(), schedule):
        lvlm.generate(**inputs, **{"max_new_tokens": 3, "do_sample": False} | more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"cache_implementation": "static"}, "needs a DynamicCache.* uses StaticCache"),
        ({"cache_implementation": "offloaded"}, "needs a DynamicCache"),
        ({"prefill_chunk_size": 6}, "chunked prefill|one token a step|Chunked prefill"),
        ({"prompt_lookup_num_tokens": 3, "max_new_tokens": 12}, "assisted decoding"),
    ],
)
def test_generation_modes(more, message):
    """Caches and modes that a pruned run cannot follow."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[4, "i", 6]])
    inputs["input_ids"][0, -6:] = torch.tensor([5, 6, 7, 5, 6, 7])  # something for the lookup to find
    run(lvlm, message, inputs, **more)


def test_inputs():
    """labels, ready-made masks, embeddings without ids, chosen logits."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[2, "i", 2]])

    def call(message, **more):
        with torch.no_grad(), pytest.raises(ValueError, match=message), attach(lvlm, Scatter(), ONE):
            lvlm(**inputs | more)

    call("labels were passed", labels=inputs["input_ids"])
    call(r"attention_mask is \(1, 1, 13, 13\)", attention_mask=torch.ones(1, 1, 13, 13))
    call("attention_mask is dict", attention_mask={})
    call("logits_to_keep is 4", logits_to_keep=4)
    call("logits_to_keep is tensor", logits_to_keep=torch.tensor([1]))
    call("The inputs hold no input_ids", input_ids=None, inputs_embeds=torch.zeros(1, 13, 32))
    static = StaticCache(LlamaConfig(**tiny.TEXT), 32)
    call("needs a DynamicCache", past_key_values=static)


def test_training_inside():
    """Switching to training mode inside the block is noticed."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [[2, "i", 2]])
    with attach(lvlm, Scatter(), ONE):
        lvlm.model.train()
        with pytest.raises(ValueError, match="training mode"):
            lvlm(**inputs)


def test_layers_alone():
    """Running the decoder without its root tells the engine nothing about the prompt."""
    lvlm = tiny.shared("llava")
    with (
        pytest.raises(RuntimeError, match=r"ran outside LlavaForConditionalGeneration\.forward"),
        attach(lvlm, Scatter(), ONE),
    ):
        lvlm.decoder(inputs_embeds=torch.zeros(1, 3, 32))


def test_attention_outside_the_registry():
    """A decoder that computes attention by itself cannot be probed, and says so."""
    lvlm = tiny.llava()
    attention = lvlm.layers[1].self_attn
    attention.forward = lambda hidden_states, **kw: (hidden_states, None)
    with (
        pytest.raises(RuntimeError, match="did not pass through the attention registry"),
        torch.no_grad(),
        attach(lvlm, Watch(Signal("attention", "llm.layer.1", "last")), ONE),
    ):
        lvlm(**tiny.prompts(lvlm, [[2, "i", 2]]))


def test_unfollowed_attention():
    """Attention with a bias on its logits is refused by the probe."""
    lvlm = tiny.llava()
    old = lvlm.layers[1].self_attn.forward
    lvlm.layers[1].self_attn.forward = lambda *a, **kw: old(*a, **kw, softcap=2.0)
    with (
        pytest.raises(ValueError, match="computes attention with softcap"),
        torch.no_grad(),
        attach(lvlm, Watch(Signal("attention", "llm.layer.1", "last")), ONE),
    ):
        lvlm(**tiny.prompts(lvlm, [[2, "i", 2]]))


def test_odd_rope_and_missing_eager():
    """Hosts that break a fact of the decoder loop are named."""
    from btp.engine.checks.sliding_window import LayerKind
    from btp.engine.decoder.masks_positions import _take, _turn
    from btp.engine.hooks.attention_registry import own_eager

    with pytest.raises(RuntimeError, match=r"A RoPE table of shape \(3, 1, 4, 2\)"):
        _take(torch.zeros(3, 1, 4, 2), torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(RuntimeError, match="no eager_attention_forward beside it"):
        own_eager(torch.nn.Linear(1, 1))
    with pytest.raises(RuntimeError, match="renumber needs the decoder's rotary_emb"):
        _turn(tiny.shared("llava"), torch.zeros(1), None, LayerKind())


def test_stage_count_message_is_early():
    """Stage settings are read before the first batch, so nothing ran when they are refused."""
    stage = Stage("llm.layer.2", 2, settings={"sharpness": 3})
    refuse("sharpness", LVLM(tiny.shared("llava").model), Scatter(), Schedule((stage,)))
