"""Where InternVL's visual tokens lie, held against the tower's own pixel shuffle and the processor's own tiles."""

import pytest
import torch
from families import kit
from PIL import Image
from toys import Scatter, Watch, plan

from btp.core.signals import Signal
from btp.engine.attach import attach

NAME, EDGE, PATCH = "internvl3", 28, 7


def test_a_token_lies_where_the_pixel_shuffle_puts_it():
    """Each visual token joins a square of patches; its row and column are those of the square."""
    lvlm, inputs = kit.loaded(NAME).host, kit.batch(NAME, [["what is ", kit.Picture(28, 28), "shown?"]])
    side = EDGE // PATCH
    patch = torch.cartesian_prod(torch.arange(side), torch.arange(side)).view(1, side, side, 2).float()
    joined = lvlm.model.model.pixel_shuffle(patch, lvlm.config.downsample_ratio).view(4, 4, 2)  # tokens, patches, place
    layout = lvlm.layout(inputs)
    wanted = torch.cat([torch.zeros(4, 1), (joined // 2).amin(1)], dim=1).long()
    assert torch.equal((joined // 2).amin(1), (joined // 2).amax(1)), "a token must join one square"
    assert torch.equal(layout.coord[layout.visual], wanted)


@pytest.mark.parametrize(("size", "tiles"), [((28, 28), 1), ((84, 28), 3), ((28, 56), 2), ((56, 56), 4)])
def test_tiles_are_frames_and_the_thumbnail_is_the_first(size, tiles):
    """The thumbnail, last in the prompt, is frame 0; the tiles follow from 1 on, in the order of the pixels."""
    lvlm, inputs = kit.loaded(NAME).host, kit.batch(NAME, [["what is ", kit.Picture(*size), "shown?"]])
    views = len(inputs["pixel_values"])
    assert views == (tiles if tiles == 1 else tiles + 1)
    layout = lvlm.layout(inputs)
    coord = layout.coord[layout.visual].tolist()
    wanted = []
    for view in range(views):
        frame = 0 if view == views - 1 else view + 1
        wanted += [[frame, row, column] for row in range(2) for column in range(2)]
    assert coord == wanted
    assert set(layout.image[layout.visual].tolist()) == {0}
    assert (layout.source == -1).all()


def test_pictures_are_counted_in_each_row():
    """Two pictures in a row, a padded row beside them, a row without."""
    rows = [["a", kit.Picture(84, 28), "b", kit.Picture(28, 28), "c"], [kit.Picture(28, 28), "d"], ["yes or no"]]
    layout = kit.loaded(NAME).host.layout(kit.batch(NAME, rows))
    counts = [[int((layout.image[b] == i).sum()) for i in range(2)] for b in range(3)]
    assert counts == [[16, 4], [4, 0], [0, 0]]
    assert torch.equal(layout.image >= 0, layout.visual)


@pytest.mark.parametrize(("size", "frames", "views"), [((28, 28), None, 1), ((28, 84), None, 4), ((28, 28), 3, 3)])
def test_examples_run(size, frames, views):
    """What the processor would make of a picture, without it."""
    lvlm = kit.loaded(NAME).host
    inputs = lvlm.example(2, 5, *size, frames)
    assert len(inputs["pixel_values"]) == 2 * views
    layout = lvlm.layout(inputs)
    assert int(layout.visual.sum()) == 2 * views * 4
    assert int(layout.image.max()) + 1 == (frames or 1)
    with torch.no_grad(), attach(lvlm, Scatter(), plan(("llm.layer.1", 2))) as trace:
        lvlm(**inputs)
    assert trace[0].total == (views * 4,) * 2


def test_an_example_has_the_tiles_of_the_processor():
    """As many views as the processor cuts, where its bound on tiles is not reached."""
    lvlm = kit.loaded(NAME).host
    for size in kit.families()[NAME].sizes:
        made = kit.batch(NAME, [["what is ", size, "shown?"]])
        assert len(lvlm.example(1, 5, size.height, size.width)["pixel_values"]) == len(made["pixel_values"])


@pytest.mark.parametrize("site", ["vision.layer.1", "vision.output"])
def test_stages_in_the_tower_are_refused(site):
    """A pixel shuffle joins the tower's tokens, so no stage stands in it; what is asked for can be put together."""
    message = "in InternVLForConditionalGeneration a pixel shuffle joins several .* llm.input and llm.layer.N"
    lvlm = kit.loaded(NAME).host
    assert len(lvlm.towers["vision"].layers) == 2
    with attach(lvlm, Watch(Signal("attention", "vision.layer.1", "cls")), plan(("llm.input", 4))):
        pass
    with (
        pytest.raises(ValueError, match=message),
        attach(lvlm, Watch(Signal("keys", "llm.layer.0")), plan((site, 4))),
    ):
        pass


@pytest.mark.parametrize("size", [(84, 28), (28, 56), (56, 56), (60, 40), (30, 84), (112, 28), (70, 50), (33, 90)])
def test_tiles_lie_as_the_processor_cut_them(size):
    """Told from the size of the picture alone: the tiles, put side by side, are the picture that was cut."""
    loaded = kit.loaded(NAME)
    width, height = size
    across, down = (torch.linspace(0, 1, n) for n in (width, height))
    ramp = torch.stack([across.expand(height, -1), down[:, None].expand(-1, width), torch.zeros(height, width)], dim=-1)
    picture = Image.fromarray((ramp * 255).byte().numpy())
    pixels = loaded.processor.image_processor(picture, return_tensors="pt")["pixel_values"]
    tiles = pixels[:-1] if len(pixels) > 1 else pixels
    rows, columns = loaded.host.tiling(len(tiles), height, width)
    assert rows * columns == len(tiles)
    mean = tiles.mean((2, 3)).view(rows, columns, 3)  # red grows to the right, green downwards
    assert (mean[:, 1:, 0] > mean[:, :-1, 0] + 0.1).all()
    assert (mean[1:, :, 1] > mean[:-1, :, 1] + 0.1).all()
    assert torch.allclose(mean[:, :, 0], mean[:1, :, 0].expand(rows, -1), atol=0.05)
    assert torch.allclose(mean[:, :, 1], mean[:, :1, 1].expand(-1, columns), atol=0.05)
