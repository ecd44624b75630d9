"""Hosts that add vision features between their first layers: the features follow the tokens that stay."""

import pytest
import tiny
import torch
from crossings import one_by_one
from oracle import hiding, steps, withdrawn
from toys import Content, Fold, Scatter, Watch, plan

from btp.core.selection import Selection
from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.engine.observe import observe

ROWS = {
    "one row": [[3, "i", 4]],
    "left padded, unequal pictures": [[2, (2, 3), 5], [1, "i", 1, (1, 2), 2]],
    "text only beside pictures": [[6], [2, "i", 3], ["i", 1]],
    "equal rows": [[2, "i", 3], [1, "i", 4]],
}
SCHEDULES = {
    "input": plan(("llm.input", 3)),
    "layer 0": plan(("llm.layer.0", 0.5)),
    "layer 1": plan(("llm.layer.1", 4)),
    "behind the features": plan(("llm.layer.2", 4)),
    "last layer": plan(("llm.layer.3", 1)),
    "two stages": plan(("llm.layer.1", 5), ("llm.layer.3", 2)),
    "three stages to none": plan(("llm.input", 0.8), ("llm.layer.1", 0.4), ("llm.layer.2", 0)),
    "none at the input": plan(("llm.input", 0)),
}
PADDED, MANY = "left padded, unequal pictures", "three stages to none"
VIDEO = tiny.IMAGE + 5
FRAMES = (  # one video of two frames with text between, a picture, text
    [5, 6, tiny.VISION_START, *[VIDEO] * 4, tiny.VISION_END, 7, tiny.VISION_START, *[VIDEO] * 4, tiny.VISION_END]
    + [8, tiny.VISION_START, *[tiny.IMAGE] * 6, tiny.VISION_END, 9, 10]
)


def film(lvlm):
    """A prompt with a video and a picture."""
    ids = torch.tensor([FRAMES])
    random = torch.Generator().manual_seed(3)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == tiny.IMAGE).int() + 2 * (ids == VIDEO).int(),
        "pixel_values": torch.randn(24, 96, generator=random),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
        "pixel_values_videos": torch.randn(32, 96, generator=random),
        "video_grid_thw": torch.tensor([[2, 4, 4]]),
    }


def compare(lvlm, inputs, schedule, **more):
    """Prune, then hide in the host, which adds its features itself."""
    with attach(lvlm, Scatter(), schedule) as trace:
        tokens, logits = steps(lvlm, inputs, **more)
    with hiding(lvlm, inputs, withdrawn(inputs, lvlm.visual_mask(inputs), trace[0])):
        hidden_tokens, hidden_logits = steps(lvlm, inputs, **more)
    scale = hidden_logits.abs().max().clamp(min=1)
    assert (logits - hidden_logits).abs().max() / scale < 2e-6
    assert torch.equal(tokens, hidden_tokens)
    assert (logits - steps(lvlm, inputs, **more)[1]).abs().max() / scale > 1e-3, "nothing was proved"
    return trace


@pytest.mark.parametrize(
    ("attention", "rows", "schedule"), one_by_one(["sdpa", "eager"], [PADDED, *ROWS], [MANY, *SCHEDULES])
)
@pytest.mark.parametrize("family", tiny.DEEPSTACK)
def test_removing_equals_hiding(family, attention, rows, schedule):
    """At any site, in prefill and in decode, where the features end early and where they reach the last layer."""
    lvlm = tiny.shared(family, attention)
    compare(lvlm, tiny.prompts(lvlm, ROWS[rows]), SCHEDULES[schedule])


@pytest.mark.parametrize("schedule", ["input", "layer 1", "three stages to none"])
def test_a_video_beside_a_picture(schedule):
    """Features of both kinds lie mixed in one tensor, in the order of the prompt."""
    lvlm = tiny.shared("qwen3")
    compare(lvlm, film(lvlm), SCHEDULES[schedule])


def test_without_a_cache():
    """Every step prefills anew, and takes the features over anew."""
    lvlm = tiny.shared("qwen3")
    inputs = tiny.prompts(lvlm, ROWS["left padded, unequal pictures"])
    assert len(compare(lvlm, inputs, SCHEDULES["two stages"], use_cache=False)) == 3


def test_a_beam_is_a_row():
    """Beam search over a pruned prompt equals beam search over the hidden one."""
    lvlm = tiny.shared("qwen3")
    inputs = tiny.prompts(lvlm, [[2, "i", 5], [1, (2, 3), 1]])
    more = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False}
    with torch.no_grad(), attach(lvlm, Scatter(), plan(("llm.input", 5), ("llm.layer.2", 2))) as trace:
        cut = lvlm.generate(**inputs, **more)
    wide = {key: inputs[key].repeat_interleave(3, dim=0) for key in ("attention_mask", "input_ids")}
    with torch.no_grad(), hiding(lvlm, wide, withdrawn(wide, lvlm.visual_mask(wide), trace[0])):
        hid = lvlm.generate(**inputs, **more)
    assert trace[0].total == (9,) * 3 + (6,) * 3
    assert torch.equal(cut, hid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", tiny.DEEPSTACK)
def test_keeping_everything_changes_nothing(family, attention, dtype):
    """Taken over and nothing pruned: tokens, logits and recorded hidden states are bit-identical, signals too."""
    lvlm = tiny.shared(family, attention, dtype)
    inputs = tiny.prompts(lvlm, ROWS["left padded, unequal pictures"])
    seen = [Signal(kind, f"llm.layer.{i}") for kind in ("hidden", "update", "keys") for i in range(3)]
    with observe(lvlm, seen) as looks:
        tokens, logits = steps(lvlm, inputs)
    assert torch.equal(steps(lvlm, inputs)[1], logits)
    with torch.no_grad():
        states = lvlm(**inputs, output_hidden_states=True).hidden_states
    pruner = Watch(*seen)
    schedule = plan(("llm.layer.0", 1.0), ("llm.layer.1", 1.0), ("llm.layer.3", 1.0))
    pruner.needs = lambda stage: seen if stage.site.layer == 3 else ()
    with attach(lvlm, pruner, schedule):
        same_tokens, same_logits = steps(lvlm, inputs)
        with torch.no_grad():
            same_states = lvlm(**inputs, output_hidden_states=True).hidden_states
    assert torch.equal(logits, same_logits)
    assert torch.equal(tokens, same_tokens)
    assert all(torch.equal(a, b) for a, b in zip(states, same_states, strict=True))
    last = pruner.seen[2][2]
    assert all(torch.equal(last[signal], looks[0].signals[signal]) for signal in seen)


@pytest.mark.parametrize("combine", ["mean", "sum"])
@pytest.mark.parametrize("site", ["llm.input", "llm.layer.1", "llm.layer.2"])
@pytest.mark.parametrize("family", tiny.DEEPSTACK)
def test_features_flow_with_the_tokens(family, site, combine):
    """A merged token gets what the same weights make of the features of those that flowed into it."""
    lvlm = tiny.shared(family)
    inputs = tiny.prompts(lvlm, [[2, (2, 3), 5]])
    pruner = Fold(combine)
    with attach(lvlm, pruner, plan((site, 3))) as trace:
        tokens, logits = steps(lvlm, inputs)
    _, keep, target, weight, _ = pruner.made[0]
    places = lvlm.visual_mask(inputs)[0].nonzero().flatten()
    first = trace[0].stages[0].site.first_layer

    def flowed(x):
        """[6, D] with what the kept rows of it hold when the others flowed into them."""
        x = x.clone()
        old = x.clone()
        for k in keep[0].tolist():
            into = [j for j in range(6) if target[0, j] == k]
            total = sum(weight[0, j] for j in into) if combine == "mean" else 1.0
            x[k] = sum(weight[0, j] * old[j] for j in into) / total
        return x

    def before_decoder(module, args, kwargs):
        features = kwargs.get("deepstack_visual_embeds")
        if features is not None:
            kwargs["deepstack_visual_embeds"] = [flowed(x) if at >= first else x for at, x in enumerate(features)]
        return args, kwargs

    def before_layer(module, args, kwargs):
        if args[0].shape[1] == 1:
            return None
        hidden = args[0].clone()
        hidden[0, places] = flowed(hidden[0, places])
        return (hidden, *args[1:]), kwargs

    hooks = [
        lvlm.decoder.register_forward_pre_hook(before_decoder, with_kwargs=True),
        lvlm.layers[first].register_forward_pre_hook(before_layer, with_kwargs=True),
    ]
    try:
        with hiding(lvlm, inputs, withdrawn(inputs, lvlm.visual_mask(inputs), trace[0])):
            hidden_tokens, hidden_logits = steps(lvlm, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    assert torch.equal(tokens, hidden_tokens)
    assert (logits - hidden_logits).abs().max() / hidden_logits.abs().max() < 2e-6


def test_states_of_a_methods_own_making():
    """Without a merge a token keeps its own features, whatever states it was given."""
    lvlm = tiny.shared("qwen3")
    inputs = tiny.prompts(lvlm, [[2, (2, 3), 5]])

    class Double(Content):
        def select(self, tokens, signals, stage):
            keep = super().select(tokens, signals, stage).keep
            return Selection(keep, states=2 * tokens.hidden.gather(1, keep[..., None].expand(-1, -1, 32)))

    with attach(lvlm, Double(), plan(("llm.layer.1", 3))) as trace:
        _, logits = steps(lvlm, inputs)
    places = lvlm.visual_mask(inputs)[0].nonzero().flatten()

    def double(module, args, kwargs):
        if args[0].shape[1] == 1:
            return None
        hidden = args[0].clone()
        hidden[0, places] *= 2
        return (hidden, *args[1:]), kwargs

    hook = lvlm.layers[1].register_forward_pre_hook(double, with_kwargs=True)
    try:
        with hiding(lvlm, inputs, withdrawn(inputs, lvlm.visual_mask(inputs), trace[0])):
            _, hidden_logits = steps(lvlm, inputs)
    finally:
        hook.remove()
    assert (logits - hidden_logits).abs().max() / hidden_logits.abs().max() < 2e-6


@pytest.mark.parametrize(("site", "taken"), [("llm.layer.1", True), ("llm.layer.2", False), ("llm.layer.3", False)])
def test_taken_over_only_where_needed(site, taken):
    """A cut behind the last features leaves them to the host."""
    lvlm = tiny.shared("qwen3")
    inputs, got = tiny.prompts(lvlm, ROWS["one row"]), []
    with attach(lvlm, Scatter(), plan((site, 4))):
        look = lambda module, args, kwargs: got.append(kwargs["deepstack_visual_embeds"] is None)  # noqa: E731
        hook = lvlm.decoder.register_forward_pre_hook(look, with_kwargs=True)
        steps(lvlm, inputs, n=1)
        hook.remove()
    assert got == [taken]


@pytest.mark.parametrize("ends", ["well", "behind the run", "inside the run"])
def test_nothing_stays_behind(ends):
    """No hook outlives the block, however it ends, and the host adds its features again."""
    lvlm = tiny.shared("qwen3_throughout")
    inputs = tiny.prompts(lvlm, ROWS["one row"])
    count = lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lvlm.model.modules())  # noqa: E731
    _, logits = steps(lvlm, inputs)
    before = count()

    class Fails(Scatter):
        def score(self, tokens, signals, stage):
            if ends == "inside the run":
                raise KeyError("ours")
            return super().score(tokens, signals, stage)

    def use():
        with attach(lvlm, Fails(), plan(("llm.layer.1", 4))):
            steps(lvlm, inputs)
            assert count() > before
            if ends == "behind the run":
                raise KeyError("ours")

    if ends == "well":
        use()
    else:
        with pytest.raises(KeyError, match="ours"):
            use()
    assert count() == before
    assert torch.equal(steps(lvlm, inputs)[1], logits)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda mask: mask[..., None], RuntimeError, r"at places of shape \(1, 18, 1\), but the prompt is \(1, 18\)"),
        (lambda mask: None, RuntimeError, "at places of shape None"),
        (lambda mask: mask.roll(1, 1), ValueError, "at other places than the visual tokens that Qwen3VL.layout names"),
    ],
)
def test_messages(change, error, message):
    """Features that cannot be told apart by token are refused."""
    lvlm = tiny.shared("qwen3")
    inputs = tiny.prompts(lvlm, ROWS["one row"])

    def hook(module, args, kwargs):
        kwargs["visual_pos_masks"] = change(kwargs["visual_pos_masks"])
        return args, kwargs

    handle = lvlm.decoder.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with pytest.raises(error, match=message), attach(lvlm, Scatter(), plan(("llm.layer.1", 4))):
            steps(lvlm, inputs)
    finally:
        handle.remove()
