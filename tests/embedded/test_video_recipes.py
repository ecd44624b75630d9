"""Recipes of the embedded video model and its matcher: what they draw, weigh, inherit and save."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from btp.tasks.pocketclips.scene import FRAMES, draw_events
from experiments.embedded.pocket_video.data import MARKS, NAMES, UNKNOWN, token_labels
from experiments.embedded.recipe import normalised
from experiments.embedded.recipes.pocket_matcher import said
from experiments.embedded.recipes.pocket_video import GRID, SMALL, inherit
from experiments.embedded.train import load_recipe


@pytest.mark.parametrize("name", ["pocket_video", "pocket_matcher"])
def test_a_recipe_has_losses_gradients_and_a_model(name, tmp_path):
    recipe = load_recipe(name)
    learner, phase = recipe.build(), recipe.phases[-1]
    draw = [recipe.sample(np.random.default_rng([1, i]), phase) for i in range(2)]
    batch = recipe.collate(draw)
    again = recipe.collate([recipe.sample(np.random.default_rng([1, i]), phase) for i in range(2)])
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    found = recipe.losses(learner, batch, phase)
    assert set(phase.losses) <= set(found)
    total = sum(weight * found[key] for key, weight in phase.losses.items())
    assert torch.isfinite(total)
    total.backward()
    assert sum(p.grad is not None and bool(p.grad.any()) for p in learner.parameters()) > 50
    recipe.save(learner.eval(), tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == learner["model"].config.model_type


def test_the_video_model_begins_as_the_small_picture_model():
    """Decoder, projector and known words are its own; new words are not; Qwen2's biases begin at zero."""
    recipe = load_recipe("pocket_video")
    model, words = recipe.build()["model"], recipe.processor.tokenizer.get_vocab()
    small = LlavaForConditionalGeneration.from_pretrained(SMALL, dtype=torch.float32)
    old = PreTrainedTokenizerFast.from_pretrained(SMALL).get_vocab()
    frames = normalised(torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)))
    inherit(model, small, old, words, frames)
    source, target = small.state_dict(), model.state_dict()
    key = "model.language_model.layers.5.mlp.up_proj.weight"
    assert torch.equal(target[key], source[key])
    table = "model.language_model.embed_tokens.weight"
    assert torch.equal(target[table][words["circle"]], source[table][old["circle"]])
    assert "longest" not in old
    assert not target["model.language_model.layers.0.self_attn.q_proj.bias"].any()
    assert torch.isfinite(target["model.vision_tower.embeddings.position_embedding.weight"]).all()


def test_labels_of_tokens_follow_the_events():
    """Each token knows its event; what a thing shows is known where it lies, where it goes not in its first frame."""
    for seed in range(6):
        events = draw_events(np.random.default_rng(seed))
        labels = token_labels(events, GRID)
        shape = (FRAMES, GRID, GRID)
        event, name, goes = (labels[key].reshape(shape) for key in ("event", "name", "goes"))
        for number, e in enumerate(events):
            assert (event[e.first : e.end] == number).all()
            for frame, box in zip(e.frames, e.boxes, strict=True):
                shown = NAMES.index(e.name) + 1
                assert (name[frame] == shown).any()
                row, column = (int((box[i] + box[i + 2]) / 2 * GRID / 64) for i in (1, 0))
                assert name[frame, row, column] in (shown, 0) or e.sign is not None
                assert ((goes[frame] == UNKNOWN) == (name[frame] > 0)).all() or frame > e.first
                assert labels["marks"][frame, MARKS.index(e.name)] == 1


def test_texts_of_the_matcher_are_about_one_event_each():
    """As many as there are events; questions among them."""
    texts = [
        text
        for seed in range(20)
        for text in said(draw_events(np.random.default_rng(seed)), np.random.default_rng(seed))
    ]
    assert any(text.endswith("?") for text in texts)
    assert not all(text.endswith("?") for text in texts)
