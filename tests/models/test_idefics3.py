"""Where the visual tokens of Idefics3 and SmolVLM lie, held against their connector and the processor's own marks."""

import re

import pytest
import torch
from families import kit
from toys import Scatter, Watch, plan

from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.models.families.idefics3 import _arrange

NAMES = ("idefics3", "smolvlm")
SIZES = [(84, 28), (28, 84), (60, 60), (84, 56), (20, 84)]


def by_marks(text, side=2):
    """(picture, frame, row, column) of each visual token, read off the names of the marks in the written prompt."""
    found, picture = [], 0
    for mark, row, column, images in re.findall(r"(<row_(\d)_col_(\d)>|<global-img>)((?:<image>)+)", text):
        frame, down, right = (0, 0, 0) if mark == "<global-img>" else (1, int(row) - 1, int(column) - 1)
        count = images.count("<image>")
        assert count == side**2
        found += [(picture, frame, side * down + i // side, side * right + i % side) for i in range(count)]
        picture += frame == 0
    return found


@pytest.mark.parametrize("rows", [[size] for size in SIZES] + [[(84, 28), (28, 28), (60, 84)]])
@pytest.mark.parametrize("name", NAMES)
def test_tiles_lie_in_the_mosaic_and_the_whole_is_the_first_frame(name, rows):
    """Rows and columns are what the marks of the prompt say by name, which the adapter never reads."""
    loaded = kit.loaded(name)
    asked = [part for size in rows for part in ("what is ", kit.Picture(*size))]
    inputs = kit.batch(name, [["yes or no?"], [*asked, "shown?"]])
    layout = loaded.host.layout(inputs)
    wanted = by_marks(loaded.processor.tokenizer.decode(inputs["input_ids"][1]))
    image, coord = layout.image[1][layout.visual[1]], layout.coord[1][layout.visual[1]]
    assert torch.equal(torch.cat([image[:, None], coord], dim=1), torch.tensor(wanted))
    assert len(wanted) == 4 * int((inputs["pixel_values"][1].flatten(1) != 0).any(1).sum())
    assert not layout.visual[0].any()
    assert (layout.source == -1).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_token_lies_where_the_connector_puts_it(name):
    """Each visual token joins a square of patches; its row and column are those of the square."""
    connector = kit.loaded(name).host.model.model.connector
    patch = torch.cartesian_prod(torch.arange(4), torch.arange(4))[None].float()
    squares = connector.pixel_shuffle(patch, 2).view(4, 4, 2) // 2  # tokens, patches, place
    assert torch.equal(squares.amin(1), squares.amax(1))
    assert torch.equal(squares.amin(1).long(), torch.cartesian_prod(torch.arange(2), torch.arange(2)))


def test_rows_of_unequal_length_become_frames():
    """Marks that make no mosaic, as of a hand-made prompt, leave each tile to itself."""
    tile, whole, fence, line = 1, 2, 3, 4
    front, behind = [tile] * 3 + [whole] * 2, [fence, line, line, fence, fence]
    wanted = [(0, 1, 0, 0), (0, 2, 0, 0), (0, 3, 0, 0), (0, 0, 0, 0), (1, 0, 0, 0)]
    assert _arrange(front, behind) == wanted
    behind[0] = line
    assert _arrange(front, behind)[:3] == [(0, 1, 0, 0), (0, 1, 1, 0), (0, 1, 2, 0)]


@pytest.mark.parametrize("name", NAMES)
def test_broken_views_are_refused(name):
    """A placeholder too few."""
    lvlm = kit.loaded(name).host
    inputs = kit.batch(name, [["what is ", kit.Picture(28, 28), "shown?"]])
    first = inputs["input_ids"][0].tolist().index(lvlm.config.image_token_id)
    inputs["input_ids"][0, first] = 7
    views = inputs["pixel_values"].shape[1]
    message = f"Row 0 has {4 * views - 1} placeholders, but a view of .*ForConditionalGeneration has 4 tokens. Make the"
    with pytest.raises(ValueError, match=message):
        lvlm.layout(inputs)


@pytest.mark.parametrize("frames", [None, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name, size, frames):
    """A mosaic and a view of the whole, or views of frames, with marks that the layout reads."""
    lvlm = kit.loaded(name).host
    inputs = lvlm.example(2, 5, size[1], size[0], frames)
    layout, views = lvlm.layout(inputs), inputs["pixel_values"].shape[1]
    assert views == frames if frames else views > 1
    assert layout.visual.sum(1).tolist() == [4 * views] * 2
    assert int(layout.image.max()) + 1 == (frames or 1)
    mosaic = layout.coord[0][layout.coord[0, :, 0] == 1]
    assert frames or int((mosaic[:, 1].max() + 1) * (mosaic[:, 2].max() + 1)) == 4 * (views - 1)
    with torch.no_grad(), attach(lvlm, Scatter(), plan(("llm.layer.1", 2))) as trace:
        lvlm(**inputs)
    assert trace[0].total == (views * 4,) * 2


@pytest.mark.parametrize("name", NAMES)
def test_stages_in_the_tower_are_refused(name):
    """A pixel shuffle joins the tower's tokens, so no stage stands in it; what is asked for can be put together."""
    lvlm = kit.loaded(name).host
    assert len(lvlm.towers["vision"].layers) == 2
    with attach(lvlm, Watch(Signal("keys", "vision.layer.1")), plan(("llm.input", 4))):
        pass
    stage = plan(("vision.layer.1", 4))
    with (
        pytest.raises(ValueError, match="a pixel shuffle joins"),
        attach(lvlm, Watch(Signal("keys", "llm.layer.0")), stage),
    ):
        pass
