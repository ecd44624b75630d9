"""Where Gemma 3's visual tokens lie, held against its own pooling and the processor's own crops."""

import pytest
import torch
from families import gemma3, kit
from PIL import Image
from toys import Scatter, plan

from btp.engine.attach import attach

NAME, SIDE = "gemma3", 3


def test_a_token_lies_where_the_pooling_puts_it():
    """Each visual token pools a square of patches; its row and column are those of the square."""
    lvlm, inputs = kit.loaded(NAME).host, kit.batch(NAME, [["what is ", kit.Picture(42, 42), "shown?"]])
    patch = torch.cartesian_prod(torch.arange(6), torch.arange(6)).T.reshape(1, 2, 6, 6).float()
    pooled = lvlm.projector.avg_pool(patch).flatten(2)[0].T  # [9, 2] middle of each square
    layout = lvlm.layout(inputs)
    assert torch.equal(layout.coord[layout.visual][:, 1:], (pooled // 2).long())
    assert (layout.coord[layout.visual][:, 0] == 0).all()
    assert (layout.source == -1).all()


def test_crops_are_pictures_of_their_own():
    """Pan and scan writes the crops of a long picture as further pictures."""
    loaded, boi = kit.loaded(NAME), "<start_of_image>"
    pictures = [Image.new("RGB", size) for size in ((84, 30), (42, 42), (42, 42))]
    crops = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 10, "pan_and_scan_max_num_crops": 2}
    inputs = gemma3.inputs(loaded.processor, [f"a {boi} b", f"{boi} c {boi} d"], pictures, None, **crops)
    layout = loaded.host.layout(inputs)
    assert len(inputs["pixel_values"]) == 5
    assert [[int((layout.image[b] == i).sum()) for i in range(3)] for b in range(2)] == [[9, 9, 9], [9, 9, 0]]
    assert torch.equal(layout.visual, inputs["token_type_ids"] == 1)


@pytest.mark.parametrize("frames", [None, 2])
def test_examples_run(frames):
    """Pictures that see themselves both ways: the host's mask says so."""
    lvlm = kit.loaded(NAME, "eager").host
    inputs = lvlm.example(2, 5, 100, 40, frames)
    count = frames or 1
    assert len(inputs["pixel_values"]) == 2 * count
    layout = lvlm.layout(inputs)
    assert layout.visual.sum(1).tolist() == [SIDE**2 * count] * 2
    assert int(layout.image.max()) + 1 == count
    with torch.no_grad():
        attention = lvlm(**inputs, output_attentions=True).attentions[1]
    assert (attention[0, :, 0, 1 : SIDE**2] > 0).all()
    assert (attention[0, :, 0, SIDE**2 :] == 0).all()
    with torch.no_grad(), attach(lvlm, Scatter(), plan(("llm.layer.1", 2))) as trace:
        lvlm(**inputs)
    assert trace[0].total == (SIDE**2 * count,) * 2


def test_parts():
    """Norms stand on both sides of each block."""
    tower = kit.loaded(NAME).host.towers["llm"]
    assert (tower.attention_norm, tower.attention_exit) == ("input_layernorm", "post_attention_layernorm")
    assert (tower.mlp_norm, tower.mlp_exit) == ("pre_feedforward_layernorm", "post_feedforward_layernorm")
    assert kit.loaded("llava15").host.towers["llm"].mlp_norm == "post_attention_layernorm"
    assert kit.loaded("llava15").host.towers["llm"].mlp_exit is None
