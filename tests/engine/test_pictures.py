"""Pictures that were encoded before: which prompt they belong to, and when that cannot be known."""

import copy

import pytest
import tiny
import torch
from oracle import steps
from toys import Content, Watch, plan

from btp.core.signals import Signal
from btp.engine.attach import attach

EACH = tiny.SIDE**2
BATCH = [[2, "i", 5], [1, "i", 1, "i", 2]]
CUT = plan(("vision.layer.1", 6), ("vision.output", 4), ("llm.layer.2", 2))


def encoded(lvlm, inputs):
    """The prompt with features in place of pictures."""
    with torch.no_grad():
        features = lvlm.model.model.get_image_features(inputs["pixel_values"], return_dict=True)
    return {k: v for k, v in inputs.items() if k != "pixel_values"} | {"mm_encoder_outputs": {"image": features}}


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 1, 1]])
def test_features_made_inside(order):
    """Features that the tower made under the hooks may be handed over in any order, and more than once."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, BATCH)
    with attach(lvlm, Content(), CUT) as trace:
        ready = encoded(lvlm, inputs)
        features = ready["mm_encoder_outputs"]["image"]
        features.pooler_output = [features.pooler_output[i] for i in order]
        with torch.no_grad():
            ahead = lvlm(**ready).logits
            itself = lvlm(**inputs | {"pixel_values": inputs["pixel_values"][order]}).logits
    assert torch.allclose(ahead, itself, atol=1e-6)
    assert trace[0].stages[1].kept == trace[1].stages[1].kept


def test_features_made_outside():
    """Nothing is known of features from elsewhere: of another time, another prompt, copied, or mixed."""
    lvlm = tiny.shared("llava")
    inputs, other = (tiny.prompts(lvlm, BATCH, seed=seed) for seed in (0, 1))
    outside = encoded(lvlm, inputs)
    cls = Signal("attention", "vision.feature", "cls")
    for pruner, stages in (
        (Content(), CUT),
        (Content(), plan(("vision.output", 4))),
        (Watch(cls), plan(("llm.layer.2", 2))),
    ):
        with torch.no_grad(), attach(lvlm, pruner, stages):
            with pytest.raises(RuntimeError, match="its pictures did not pass the vision tower and the projector"):
                lvlm(**copy.copy(outside))
            mine = encoded(lvlm, inputs)
            again = encoded(lvlm, other)  # of which the engine remembers the latest alone
            with pytest.raises(RuntimeError, match="Pass pixel_values in place of ready features"):
                lvlm(**mine)
            features = again["mm_encoder_outputs"]["image"]
            kept = features.pooler_output
            features.pooler_output = [kept[0].clone(), *kept[1:]]
            with pytest.raises(RuntimeError, match="did not pass the vision tower"):
                lvlm(**again)
            features.pooler_output = kept
            lvlm(**again)
            lvlm(**inputs)
            lvlm.generate(**other, max_new_tokens=2, do_sample=False)


def test_placeholders_without_pictures():
    """A prompt of which the tower saw nothing is not taken for the one before."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, BATCH)
    empty = {k: v for k, v in inputs.items() if k != "pixel_values"}
    with torch.no_grad(), attach(lvlm, Content(), CUT):
        lvlm(**inputs)
        with pytest.raises(RuntimeError, match="its pictures did not pass the vision tower"):
            lvlm(**empty)
        lvlm(**inputs)


def test_features_made_outside_may_be_cut_in_the_decoder():
    """Where nothing is asked of the tower, ready features are as good as pictures."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, BATCH)
    ready = encoded(lvlm, inputs)
    with torch.no_grad(), attach(lvlm, Content(), plan(("llm.input", 4), ("llm.layer.2", 2))):
        assert torch.equal(lvlm(**ready).logits, lvlm(**inputs).logits)


def test_fewer_tokens_than_patches():
    """A family that packs its pictures is named."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [["i", 2]])
    layout = lvlm.layout(inputs)
    layout.visual[0, 0] = False
    lvlm.layout = lambda inputs: layout
    with (
        torch.no_grad(),
        attach(lvlm, Content(), CUT),
        pytest.raises(RuntimeError, match="This family packs its pictures"),
    ):
        lvlm(**inputs)


def test_generations_in_a_row():
    """Each generate() in one attach has its own pictures, text-only prompts between them too."""
    lvlm = tiny.shared("llava_deep")
    prompts = [tiny.prompts(lvlm, rows, seed=i) for i, rows in enumerate((BATCH, [[3], [5]], [["i", 4]], BATCH))]
    single = []
    for inputs in prompts:
        with attach(lvlm, Content(), CUT) as trace:
            single.append((steps(lvlm, inputs), trace[0]))
    with attach(lvlm, Content(), CUT) as trace:
        for inputs, ((tokens, logits), call) in zip(prompts, single, strict=True):
            own, same = steps(lvlm, inputs)
            assert torch.equal(own, tokens)
            assert torch.equal(same, logits)
            assert [s.kept for s in trace.last.stages] == [s.kept for s in call.stages]
            assert trace.last.vision == call.vision
            assert trace.last.projected == call.projected
    assert len(trace) == 4


def test_a_tower_of_another_shape():
    """States that are not the pictures' patches are refused, in the layers and at the projector."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [["i", 2]])
    lvlm.picture_grid = lambda pixels: (4, 4)
    with attach(lvlm, Content(), CUT), pytest.raises(ValueError, match=r"Row 0 has 9 placeholders, but a view of"):
        lvlm(**inputs)
    lvlm = tiny.llava()
    with (
        attach(lvlm, Content(), CUT),
        pytest.raises(RuntimeError, match=r"The projector gets features of shape \(1, 7, 16\)"),
    ):
        lvlm(**inputs, vision_feature_select_strategy="full")
    with attach(lvlm, Content(), CUT), pytest.raises(RuntimeError, match="The projector gets features of shape"):
        lvlm.projector(torch.zeros(1, EACH, 16))


def test_larger_pictures():
    """The number of patches follows the picture where the tower takes other sizes."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [[2] + ["i"], [4]])
    ids = torch.cat([inputs["input_ids"][:, :2], torch.full((2, 13), 7)], dim=1)
    ids[0, 2:-1] = tiny.IMAGE  # three rows of four patches
    big = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 42, 56), "attention_mask": torch.ones_like(ids)}
    old = lvlm.vision.embeddings.forward
    lvlm.vision.embeddings.forward = lambda pixels, **kw: old(pixels, interpolate_pos_encoding=True)
    pruner = Watch()
    with torch.no_grad(), attach(lvlm, pruner, plan(("vision.layer.1", 6))) as trace:
        lvlm(**big)
    assert trace[0].stages[0].before == (12, 0)
    assert trace[0].vision[0] == (13, 13)
    tokens = pruner.seen[0][1]
    assert tokens.coord[0, -1].tolist() == [0, 2, 3]
    assert tokens.total.tolist() == [12]
