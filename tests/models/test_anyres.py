"""Families that pack their pictures: where each token lies, held against the model and against plain geometry."""

import functools
import importlib

import pytest
import torch
import transformers
import yaml
from families import kit
from families.llava_onevision import resized
from packaging.version import Version
from toys import Watch, plan
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.engine.observe import observe
from btp.models.families.llava_onevision import LlavaOneVision

TILED = ("llava_next", "llava_next_mistral", "llava_onevision", "llava_next_video")
FILMED = ("llava_onevision", "llava_next_video", "video_llava")
BEAMS_LOSE_VIDEOS = Version(transformers.__version__) < Version("5.21")  # of LLaVA-NeXT-Video, pruned or not
SIZES = [(80, 50), (50, 80), (84, 84), (120, 110), (30, 70), (200, 41), (13, 90), (43, 42)]


def base(lvlm):
    return lvlm.model.model


def numbered(lvlm, inputs, values):
    """What the model makes of features that hold `values` [P, N, C] in place of what the projector gives: [T, C]."""
    D = lvlm.hidden_size
    wide = torch.nn.functional.pad(values, (0, D - values.shape[-1]))
    hook = lvlm.projector.register_forward_hook(lambda m, a, out: wide.to(out))
    newline = base(lvlm).image_newline
    old = newline.data.clone()
    newline.data.fill_(-1)
    names = ("pixel_values", "image_sizes", "batch_num_images")
    try:
        with torch.no_grad():
            found = base(lvlm).get_image_features(**{k: inputs[k] for k in names if k in inputs}, return_dict=True)
    finally:
        hook.remove()
        newline.data.copy_(old)
    return torch.cat(list(found.pooler_output))[:, : values.shape[-1]]


def pictures(lvlm, inputs):
    """P and N of what enters the tower."""
    seen = []
    hook = lvlm.projector.register_forward_pre_hook(lambda m, a: seen.append(a[0].shape[:2]))
    with torch.no_grad():
        lvlm(**inputs)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("name", TILED)
@pytest.mark.parametrize("rows", ["one row", "left padded, unequal pictures", "text beside pictures"])
def test_each_token_knows_its_source(name, rows):
    """Features that hold their own number arrive where `source` says, and newlines where it says none."""
    lvlm, inputs = kit.loaded(name).host, kit.batch(name, kit.rows(name)[rows])
    P, N = pictures(lvlm, inputs)
    layout = lvlm.layout(inputs)
    arrived = numbered(lvlm, inputs, torch.arange(P * N).view(P, N, 1))
    assert layout.source[layout.visual].tolist() == arrived[:, 0].long().tolist()
    assert (layout.source[~layout.visual] == -1).all()
    newline = layout.visual & (layout.source == -1)
    assert newline.any()
    assert (layout.coord[newline] == -1).all()


@pytest.mark.parametrize("name", TILED)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_mosaic_is_the_picture(name, width, height):
    """Frame 0 is the whole in one tile; frame 1 the tiles side by side, less the padding on either side."""
    lvlm = kit.loaded(name).host
    inputs = kit.batch(name, [["what ", kit.Picture(width, height)]])
    layout, side = lvlm.layout(inputs), lvlm.side
    source, coord = layout.source[layout.visual], layout.coord[layout.visual]
    at = [[0, r, c] for r in range(side) for c in range(side)]
    assert coord[: side * side].tolist() == at
    assert source[: side * side].tolist() == list(range(side * side))
    edge, pins = lvlm.config.vision_config.image_size, lvlm.config.image_grid_pinpoints
    high, wide = get_anyres_image_grid_shape([height, width], pins, edge)
    scale = min(high * edge / height, wide * edge / width)
    rows, columns = high * side, wide * side
    cut_rows = (rows - int(round(height * scale * rows / (high * edge), 7))) // 2 if width / height > wide / high else 0
    cut_columns = (columns - int(round(width * scale * rows / (high * edge), 7))) // 2 if not cut_rows else 0
    cut_columns = cut_columns if width / height <= wide / high else 0
    expected = []
    for r in range(cut_rows, rows - cut_rows):
        for c in range(cut_columns, columns - cut_columns):
            tile = 1 + (r // side) * wide + c // side
            place = [1, r - cut_rows, c - cut_columns]
            expected.append([tile * side * side + (r % side) * side + c % side, *place])
        expected.append([-1, -1, -1, -1])
    found = torch.cat([source[:, None], coord], dim=1)[side * side :]
    assert found.tolist() == expected


def test_several_pictures_of_onevision_are_one_tile_each():
    """With a newline behind each; a picture alone in its row is cut into tiles, beside such rows too."""
    lvlm = kit.loaded("llava_onevision").host
    a, b, c = kit.families()["llava_onevision"].sizes
    layout = lvlm.layout(kit.batch("llava_onevision", [["what ", a, "is ", b, "red"], [c, "what"]]))
    assert layout.visual[0].sum() == 20
    assert layout.image[0][layout.visual[0]].tolist() == [0] * 10 + [1] * 10
    assert layout.source[0][layout.visual[0]].tolist() == [*range(9), -1, *range(9, 18), -1]
    assert layout.coord[1].amax(0)[0] == 1, "the picture alone should have a mosaic"


@pytest.fixture(scope="module")
def limited():
    """OneVision with room for two tiles, and its processor."""
    model, processor = resized()
    return LlavaOneVision(model.eval()), processor


def limited_batch(limited, *sizes):
    texts = [f"{'<image>'}what" for _ in sizes]
    images = [[torch.randint(0, 256, (h, w, 3), dtype=torch.uint8).numpy()] for w, h in sizes]
    return dict(limited[1](text=texts, images=images, padding=True, return_tensors="pt"))


def test_a_resized_mosaic_is_blends(limited):
    """Coordinates on the resized grid, where bilinear interpolation puts them; none has a source."""
    lvlm = limited[0]
    inputs = limited_batch(limited, (120, 126))
    P, N = pictures(lvlm, inputs)
    layout = lvlm.layout(inputs)
    coord, source = layout.coord[0][layout.visual[0]], layout.source[0][layout.visual[0]]
    mosaic = coord[:, 0] == 1
    assert source[:9].tolist() == list(range(9))
    assert (source[9:] == -1).all()
    assert coord[mosaic].amax(0).tolist() == [1, 3, 3]  # 9 x 9 of room for 18: 4 x 4
    side, wide = lvlm.side, 3
    tile = torch.arange(P - 1)
    r, c = torch.arange(N) // side, torch.arange(N) % side
    rows = (tile // wide * side)[:, None] + r
    columns = (tile % wide * side)[:, None] + c
    field = torch.stack([rows, columns], dim=-1).float()
    field = torch.cat([torch.zeros(1, N, 2), field])
    arrived = numbered(lvlm, inputs, field)[mosaic]
    expected = (coord[mosaic][:, 1:].float() + 0.5) * (9 / 4) - 0.5
    assert torch.allclose(arrived, expected, atol=1e-5)


def test_a_small_picture_is_not_resized(limited):
    """Beside one that is: each picture by itself."""
    lvlm = limited[0]
    layout = lvlm.layout(limited_batch(limited, (40, 30), (120, 126)))
    few = layout.source[0][layout.visual[0]]
    assert (few >= 0).sum() == 18
    many = layout.source[1][layout.visual[1]]
    assert (many >= 0).sum() == 9


@pytest.mark.parametrize("name", FILMED)
def test_frames_of_a_video(name):
    """Each frame on a grid of its own; a video is one image; pooled tokens have no source."""
    video = kit.families()[name].video
    lvlm = kit.loaded(name).host
    inputs = kit.batch(name, [["what ", video, "is shown?"], [kit.families()[name].sizes[0], "red?"]])
    layout = lvlm.layout(inputs)
    coord = layout.coord[0][layout.visual[0]]
    side, front, behind = {"llava_onevision": (2, 0, 1), "llava_next_video": (2, 0, 0), "video_llava": (3, 1, 0)}[name]
    one = lambda f: [[-1] * 3] * front + [[f, r, c] for r in range(side) for c in range(side)]  # noqa: E731
    expected = [place for f in range(video.frames) for place in one(f)] + [[-1] * 3] * behind
    assert coord.tolist() == expected
    assert (layout.source[0] == -1).all()
    assert set(layout.image[0][layout.visual[0]].tolist()) == {0}
    assert set(layout.image[1][layout.visual[1]].tolist()) == {0}


def test_pooled_frames_lie_where_they_were():
    """Features that hold frame, row and column come out of the pooling in the order of the coordinates."""
    for name in ("llava_onevision", "llava_next_video"):
        lvlm = kit.loaded(name).host
        inputs = kit.batch(name, [["what ", kit.families()[name].video, "is shown?"]])
        side, frames = lvlm.side, inputs["pixel_values_videos"].shape[1]
        at = torch.cartesian_prod(*(torch.arange(n) for n in (frames, side, side))).float().view(frames, side**2, 3)
        wide = torch.nn.functional.pad(at, (0, 100))
        # in front of the pooling, wherever it stands
        early = lvlm.vision.register_forward_hook(_states(wide, lvlm.towers["vision"].class_tokens))
        late = lvlm.projector.register_forward_hook(_wide(lvlm.hidden_size))
        with torch.no_grad():
            found = base(lvlm).get_video_features(inputs["pixel_values_videos"], return_dict=True).pooler_output
        early.remove()
        late.remove()
        layout = lvlm.layout(inputs)
        coord = layout.coord[0][layout.visual[0]]
        arrived = found[0].flatten(0, -2)[: len(coord), :3][coord[:, 0] >= 0]
        coord = coord[coord[:, 0] >= 0]
        step = side / (int(coord[:, 1].max()) + 1)
        assert torch.allclose(arrived[:, 0], coord[:, 0].float())
        assert torch.allclose(arrived[:, 1:], (coord[:, 1:] + 0.5) * step - 0.5, atol=1e-5)


def _wide(size):
    return lambda m, a, out: torch.nn.functional.pad(a[0], (0, size - a[0].shape[-1]))


def _states(wide, front):
    def hook(module, args, out):
        x = torch.nn.functional.pad(wide, (0, 0, front, 0))[..., : out.last_hidden_state.shape[-1]]
        out.hidden_states = tuple(x for _ in out.hidden_states)
        return out

    return hook


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", [*TILED, "video_llava"])
def test_behind_generate(name, beams):
    """A generate() encodes first and drops the sizes; a stage is told the same places as from the whole inputs."""
    lvlm = kit.loaded(name).host
    for rows in kit.rows(name).values():
        inputs, pruner = kit.batch(name, rows), Watch()
        if not lvlm.visual_mask(inputs).any():
            continue
        said = {"max_new_tokens": 2, "num_beams": beams, "do_sample": False}
        if BEAMS_LOSE_VIDEOS and beams > 1 and name == "llava_next_video" and "pixel_values_videos" in inputs:
            with torch.no_grad(), pytest.raises(ValueError, match="non-empty list"):
                lvlm.model.generate(**inputs, **said)
            continue
        with torch.no_grad(), attach(lvlm, pruner, plan(("llm.layer.1", 0.5))):
            lvlm.generate(**inputs, **said)
        tokens = pruner.seen[0][1]
        assert torch.equal(tokens.coord, lvlm.coords(inputs).repeat_interleave(beams, dim=0))


def test_behind_generate_for_packed_patches():
    """Grids that the encoder was given come back as well."""
    lvlm, rows = kit.loaded("qwen25vl").host, kit.rows("qwen25vl")["left padded, unequal pictures"]
    inputs, pruner = kit.batch("qwen25vl", rows), Watch()
    for beams in (1, 2):
        with torch.no_grad(), attach(lvlm, pruner, plan(("llm.layer.1", 0.5))):
            lvlm.generate(**inputs, max_new_tokens=2, num_beams=beams, do_sample=False)
        assert torch.equal(pruner.seen[-1][1].coord, lvlm.coords(inputs).repeat_interleave(beams, dim=0))
        assert (pruner.seen[-1][1].coord[0, 0] == 0).all()


def test_observing_a_generate():
    """A look knows the places too, and nothing stays on the model."""
    lvlm = kit.loaded("llava_next").host
    inputs = kit.batch("llava_next", kit.rows("llava_next")["one row"])
    with torch.no_grad(), observe(lvlm, [Signal("keys", "llm.layer.1")]) as looks:
        assert "get_image_features" in vars(base(lvlm))
        lvlm.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert torch.equal(looks[0].coord, lvlm.coords(inputs))
    assert "get_image_features" not in vars(base(lvlm))


@pytest.mark.parametrize("name", [*TILED, "video_llava"])
def test_example(name):
    """Inputs without a processor: the model takes them, and the layout fits."""
    lvlm = kit.loaded(name).host
    asked = [None, 3] if name in FILMED else [None]
    for frames in asked:
        inputs = lvlm.example(2, 5, 80, 50, frames)
        with torch.no_grad():
            assert lvlm(**inputs).logits.shape[:2] == inputs["input_ids"].shape
        visual = lvlm.layout(inputs).visual
        assert (~visual).sum(1).tolist() == [5, 5]
        assert visual[:, 0].all()


def test_messages():
    """Other sizes than placeholders, features from elsewhere, and a video where there is none."""
    lvlm = kit.loaded("llava_next").host
    inputs = kit.batch("llava_next", kit.rows("llava_next")["one row"])
    with pytest.raises(ValueError, match=r"has 37 placeholders of kind image, but its pixels and sizes make 51 tokens"):
        lvlm.layout(inputs | {"image_sizes": torch.tensor([[84, 84]])})
    names = ("pixel_values", "image_sizes")
    with torch.no_grad():
        features = base(lvlm).get_image_features(**{k: inputs[k] for k in names}, return_dict=True)
    ready = {k: v for k, v in inputs.items() if k not in names} | {"mm_encoder_outputs": {"image": features}}
    with pytest.raises(ValueError, match="image features that were encoded before btp was attached"):
        lvlm.layout(ready)
    with pytest.raises(ValueError, match="has no example inputs of a video"):
        lvlm.example(1, 2, 80, 50, frames=4)


REAL = [
    ("llava_next", (672, 672), None, 2928),  # 576 of the whole, and 48 rows of 48 with a newline each
    ("llava_next", (480, 640), None, 2340),  # 576, and 36 rows of 48 with a newline each
    ("llava_onevision", (384, 384), None, 729 + 27 * 28),
    ("llava_onevision", (2304, 2304), None, 729 + 81 * 82),  # resized to nine tiles
    ("llava_onevision", (384, 384), 32, 32 * 14 * 14 + 1),
    ("llava_next_video", (336, 336), 8, 8 * 144),
    ("video_llava", (224, 224), 8, 8 * 257),
]


@pytest.mark.parametrize(("name", "size", "frames", "tokens"), REAL)
def test_tokens_of_the_real_checkpoints(name, size, frames, tokens):
    """The yaml's own architecture, without weights: as many visual tokens as the papers say."""
    lvlm = real(name)
    edge = lvlm.config.vision_config.image_size
    if frames is None:
        pixels = torch.empty(1, 1, 3, edge, edge, device="meta")
        entries = lvlm.packing("image", {"pixel_values": pixels, "image_sizes": torch.tensor([size])})
    else:
        pixels = torch.empty(1, frames, 3, edge, edge, device="meta")
        entries = lvlm.packing("video", {"pixel_values_videos": pixels})
    assert sum(len(entry.source) for entry in entries) == tokens


@functools.cache
def real(name):
    """The model of a yaml, on the device that holds nothing."""
    config = yaml.safe_load((kit.CONF / "model" / f"{name}.yaml").read_text())
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config["config"]))
    folder, adapter = config["adapter"].rsplit(".", 1)
    return getattr(importlib.import_module(folder), adapter)(model.eval())
