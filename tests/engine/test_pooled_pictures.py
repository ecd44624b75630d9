"""Signals of towers whose pictures are pooled behind them, held against the tower's own attention and against what
moves when one patch does.
"""

import functools

import pytest
import torch
from families import kit
from oracle import steps
from test_detach import fingerprint
from toys import Scatter, Watch, plan
from transformers.modeling_outputs import BaseModelOutputWithPooling

from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.engine.vision.pooled_pictures import pooled
from btp.pruners.fastervlm import FasterVLM

NAMES = ("gemma3", "idefics3", "internvl3", "smolvlm")
RECEIVED = Signal("attention", "vision.feature", "mean")
KEYS, QUERIES = Signal("keys", "vision.feature"), Signal("queries", "vision.feature")
OUT = Signal("hidden", "vision.output")


@functools.cache
def prompt(name):
    return kit.batch(name, kit.rows(name)["left padded, unequal pictures"])


def encode(lvlm, inputs):
    """[P, n, D] what the projector makes of each picture, in one way or another packed by the host."""
    given, made = {k: inputs[k] for k in ("pixel_values", "pixel_attention_mask") if k in inputs}, []
    hook = lvlm.projector.register_forward_hook(lambda module, args, output: made.append(output))
    with torch.no_grad():
        lvlm.model.get_image_features(**given)
    hook.remove()
    return made[0]


@functools.cache
def homes(name):
    """Which visual token each patch of a picture goes to: the one that moves when the patch does."""
    lvlm, found = kit.loaded(name).host, []
    plain = encode(lvlm, prompt(name))
    front = lvlm.towers["vision"].class_tokens
    count = patches(lvlm) - front
    for patch in range(count):

        def move(module, args, output, at=patch + front):
            output.last_hidden_state = output.last_hidden_state.clone()
            output.last_hidden_state[:, at] += 1
            return output

        hook = lvlm.vision.register_forward_hook(move)
        moved = (encode(lvlm, prompt(name)) - plain).abs().sum(-1)[0]
        hook.remove()
        assert int((moved > 0).sum()) == 1
        found.append(int(moved.argmax()))
    return found


def patches(lvlm):
    """Rows of a picture in the tower."""
    rows = []
    hook = (
        lvlm.towers["vision"]
        .layers[0]
        .register_forward_pre_hook(
            lambda module, args, kwargs: rows.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
            with_kwargs=True,
        )
    )
    with torch.no_grad():
        lvlm(**prompt(next(n for n in NAMES if kit.loaded(n).host is lvlm)))
    hook.remove()
    return rows[0]


def own_attention(name):
    """[P, H, T, T] of the last layer, as the tower hands it out itself, and its keys [P, T, C]."""
    lvlm = kit.loaded(name, "eager").host
    got = {}
    layer = lvlm.towers["vision"].layers[-1]
    block = getattr(layer, lvlm.towers["vision"].attention)
    hooks = [
        block.register_forward_hook(lambda module, args, output: got.update(probs=output[1])),
        block.k_proj.register_forward_hook(lambda module, args, output: got.update(keys=output)),
    ]
    encode(lvlm, prompt(name))
    for hook in hooks:
        hook.remove()
    return got["probs"], got["keys"]


@pytest.mark.parametrize("name", NAMES)
def test_signals(name):
    """Attention is added up over the patches of a visual token and keys are averaged; nothing else changes."""
    lvlm, inputs = kit.loaded(name).host, prompt(name)
    pruner, plain = Watch(RECEIVED, KEYS, QUERIES, OUT), steps(lvlm, inputs)
    before = fingerprint(lvlm)
    with attach(lvlm, pruner, plan(("llm.input", 1.0))):
        same = steps(lvlm, inputs)
    assert torch.equal(plain[1], same[1])
    assert fingerprint(lvlm) == before
    seen = pruner.seen[0][2]
    probs, keys = own_attention(name)
    front, home = lvlm.towers["vision"].class_tokens, homes(name)
    received = probs.mean(2)[..., front:]  # [P, H, patches]
    count = max(home) + 1
    wanted = torch.zeros(*received.shape[:2], count).index_add(2, torch.tensor(home), received)
    torch.testing.assert_close(seen[RECEIVED][:, :, 0], wanted, atol=1e-6, rtol=1e-5)
    per_head = keys[:, front:].unflatten(2, (probs.shape[1], -1)).transpose(1, 2)  # [P, H, patches, d]
    mean = torch.zeros(*per_head.shape[:2], count, per_head.shape[-1]).index_add(2, torch.tensor(home), per_head)
    normed = name == "internvl3" and lvlm.config.vision_config.use_qk_norm
    if not normed:
        torch.testing.assert_close(seen[KEYS], mean / (len(home) // count), atol=1e-5, rtol=1e-4)
    assert seen[QUERIES].shape == seen[KEYS].shape
    assert torch.equal(seen[OUT], encode(lvlm, inputs))


@pytest.mark.parametrize("name", NAMES)
def test_every_token_knows_its_picture(name):
    """What the projector made of a picture's token is what stands in the prompt; with beams too."""
    lvlm, inputs, pruner = kit.loaded(name).host, prompt(name), Watch(OUT, RECEIVED)
    with attach(lvlm, pruner, plan(("llm.input", 1.0))):
        lvlm.generate(**inputs, num_beams=2, do_sample=False, max_new_tokens=2)
    _, tokens, seen = pruner.seen[0]
    assert len(tokens.valid) == 2 * len(inputs["input_ids"])
    shown = seen[OUT][tokens.picture.clamp(min=0), tokens.slot.clamp(min=0)]
    scale = tokens.hidden[tokens.valid].norm() / shown[tokens.valid].norm()  # Gemma scales what enters
    torch.testing.assert_close(tokens.hidden[tokens.valid], shown[tokens.valid] * scale, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_class_token(name):
    """Where the tower has one its row is added up likewise; where not, it is refused with what to ask for."""
    lvlm, asked = kit.loaded(name).host, FasterVLM(heads="mean", score="cls")
    if lvlm.towers["vision"].class_tokens:
        with attach(lvlm, asked, plan(("llm.input", 3))) as trace:
            steps(lvlm, prompt(name))
        received = own_attention(name)[0][:, :, 0, 1:].mean(1)
        wanted = torch.zeros(len(received), max(homes(name)) + 1).index_add(1, torch.tensor(homes(name)), received)
        each, at = wanted.shape[1], 0
        for kept, total in zip(trace[0].stages[0].kept, lvlm.visual_mask(prompt(name)).sum(1).tolist(), strict=True):
            mine = wanted.flatten()[at : at + total]
            assert kept == sorted(mine.topk(3).indices.tolist())
            at += total
        assert at == len(received) * each
        return
    with (
        pytest.raises(ValueError, match=r"has no class token.*score=received"),
        attach(lvlm, asked, plan(("llm.input", 3))),
    ):
        pass


def test_blocks_by_hand():
    """Sixteen patches in four blocks of four: sums and means."""
    x = torch.arange(16.0).view(1, 16)
    assert pooled(x, 4, 1, torch.Tensor.sum).tolist() == [
        [0 + 1 + 4 + 5, 2 + 3 + 6 + 7, 8 + 9 + 12 + 13, 10 + 11 + 14 + 15]
    ]
    assert pooled(x[..., None], 4, 1, torch.Tensor.mean).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    with pytest.raises(
        RuntimeError, match="12 patches of a picture became 4 visual tokens, which are no square blocks"
    ):
        pooled(x[:, :12], 4, 1, torch.Tensor.sum)


@pytest.mark.parametrize("name", NAMES)
def test_refusals(name):
    """Cuts in the tower, what cannot be put together, features that were encoded elsewhere."""
    lvlm, inputs = kit.loaded(name).host, dict(prompt(name))
    for site in ("vision.output", "vision.layer.1"):
        with pytest.raises(ValueError, match="joins several of the"), attach(lvlm, Scatter(), plan((site, 3))):
            pass
    watch, at = Watch(Signal("values", "vision.feature")), plan(("llm.input", 3))
    with pytest.raises(ValueError, match="What can be put together"), attach(lvlm, watch, at):
        pass
    given = {k: inputs.pop(k) for k in ("pixel_values", "pixel_attention_mask") if k in inputs}
    with torch.no_grad():
        ready = BaseModelOutputWithPooling(pooler_output=lvlm.model.get_image_features(**given).pooler_output)
    with pytest.raises(RuntimeError, match="0 pictures passed the vision tower"), attach(lvlm, Watch(OUT), at):
        lvlm(**inputs, mm_encoder_outputs={"image": ready})
