"""Qwen's families: where visual tokens lie, held against the positions that the model itself gives them."""

import itertools

import pytest
import torch
from families import kit
from oracle import steps
from toys import Watch, plan

from btp.engine.attach import attach
from btp.models.families.qwen import Qwen3VL, QwenVL

NAMES = ("qwen2vl", "qwen25vl", "qwen3vl")
CLIP = kit.Video(6, 16, 24)
MIXED = [["what ", CLIP, "is left ", kit.Picture(24, 16), "of ", CLIP], ["yes ", kit.Picture(32, 16), "no"], ["a red"]]


def by_position(lvlm, inputs):
    """coord [B, S, 3] and image [B, S] of each visual token, read off the positions in three axes.

    A run of tokens of one kind is a picture or a video; frames of one video in Qwen3-VL are runs of their own, told
    apart by the grids, of which there are fewer.
    """
    known = ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
    places, _ = lvlm.model.model.get_rope_index(**{key: inputs[key] for key in known if key in inputs})
    coord = torch.full((*inputs["input_ids"].shape, 3), -1)
    image = torch.full(inputs["input_ids"].shape, -1)
    frames = iter(inputs["video_grid_thw"][:, 0].tolist() if "video_grid_thw" in inputs else [])
    for b, row in enumerate(inputs["mm_token_type_ids"].tolist()):
        number, due, latest = -1, 0, -1  # picture, frames of it to come, frame
        for kind, run in itertools.groupby(range(len(row)), key=lambda s: row[s]):
            run = list(run)
            if kind == 0:
                continue
            time, high, wide = (axis[b, run] for axis in places)
            within = torch.unique(time, return_inverse=True)[1]
            if kind == 2 and due:  # a later frame of the video before
                within, due = within + latest + 1, due - 1
            else:
                number += 1
                if kind == 2:
                    due = next(frames) - int(within.max()) - 1
            latest = int(within.max())
            coord[b, run] = torch.stack([within, high - high.min(), wide - wide.min()], dim=1)
            image[b, run] = number
        assert due == 0
    return coord, image


@pytest.mark.parametrize("name", NAMES)
def test_places_agree_with_the_models_own_positions(name):
    """Pictures and videos mixed in a padded batch; in Qwen3-VL text lies between the frames of a video."""
    lvlm, inputs = kit.loaded(name).host, kit.batch(name, MIXED)
    layout = lvlm.layout(inputs)
    coord, image = by_position(lvlm, inputs)
    assert torch.equal(layout.coord, coord)
    assert torch.equal(layout.image, image)
    assert layout.visual.sum(1).tolist() == [18 + 6 + 18, 8, 0]
    assert layout.coord[0][layout.image[0] == 0].amax(0).tolist() == [2, 2, 1]
    first = (layout.image[0] == 0).nonzero().flatten()
    assert (int(first[-1] - first[0]) > 17 + 20) == (name == "qwen3vl"), "timestamps lie between frames there alone"


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_places_behind_a_generate(name, beams):
    """generate() encodes first and drops the grids; a pruner still sees where each token lies."""
    lvlm, inputs = kit.loaded(name).host, kit.batch(name, MIXED)
    pruner = Watch()
    with attach(lvlm, pruner, plan(("llm.layer.1", 0.5))):
        steps(lvlm, inputs, num_beams=beams)
    tokens, wanted, layout = pruner.seen[0][1], lvlm.coords(inputs), lvlm.layout(inputs)
    assert torch.equal(tokens.coord, wanted.repeat_interleave(beams, 0))
    for b in range(3):
        image = layout.image[b][layout.visual[b]]
        assert torch.equal(tokens.image[b * beams, : len(image)], image)
    slots = [*range(18), *range(6), *range(18)]  # a video is one picture, also where text lies between its frames
    assert tokens.slot[0].tolist() == slots
    assert tokens.picture[beams, :8].tolist() == [3 * beams] * 8


@pytest.mark.parametrize("frames", [None, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_example(name, frames):
    """Inputs without a processor run, and have the tokens that a picture or video of that size has."""
    lvlm = kit.loaded(name).host
    assert type(lvlm) is (Qwen3VL if name == "qwen3vl" else QwenVL)
    inputs = lvlm.example(batch=2, words=5, height=24, width=32, frames=frames)
    layout, deep = lvlm.layout(inputs), 1 if frames is None else 2
    assert layout.visual.sum(1).tolist() == [12 * deep] * 2
    assert layout.coord[0][layout.visual[0]].amax(0).tolist() == [deep - 1, 2, 3]
    assert (layout.image.amax(1) == 0).all()
    assert not layout.visual[:, -5:].any()
    with torch.no_grad():
        out = lvlm(**inputs).logits
    assert out.shape[:2] == inputs["input_ids"].shape
    coord, image = by_position(lvlm, inputs)
    assert torch.equal(layout.coord, coord)
    assert torch.equal(layout.image, image)
    if frames and name == "qwen3vl":
        length = 2 * (6 + 1 + 12 + 1) + 5
        assert inputs["input_ids"].shape[1] == length


def test_example_of_a_speck():
    """A picture smaller than a token becomes one token."""
    lvlm = kit.loaded("qwen2vl").host
    assert lvlm.layout(lvlm.example(1, 2, 1, 1)).visual.sum() == 1
