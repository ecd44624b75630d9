"""Pictures behind the tower and the projector come back as they were, and change no logit."""

import shutil
from types import SimpleNamespace

import pytest
import tiny
import torch
from families import kit

from btp.core.schedule import Schedule, Stage
from btp.engine.attach import attach
from btp.models.features import PictureFeatures
from btp.pruners.random import Random

ROWS = [[2, "i", 4], [1, "i", 2, "i", 1]]
NAMES = ["a-0", "b-0", "b-1"]
LOTS = Schedule((Stage("llm.layer.1", 4),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llava", "llava_deep", "llava_siglip"])
def test_kept_pictures_change_nothing(family, dtype, tmp_path):
    """Computed, and then read: the same bits of every logit, with a pruner attached."""
    lvlm = tiny.shared(family, dtype=dtype)
    inputs = tiny.prompts(lvlm, ROWS)
    kept = PictureFeatures(lvlm, tmp_path / "kept", pictures=3)
    found = []
    for given in (inputs, kept.instead(inputs, NAMES), kept.instead(inputs, NAMES)):
        with torch.inference_mode(), attach(lvlm, Random(seed=0, salt="content"), LOTS) as trace:
            out = lvlm.generate(
                **given, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        found.append((torch.stack(out.logits), [s.kept for s in trace.last.stages]))
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == [f"{name}.npy" for name in NAMES]
    for logits, indices in found[1:]:
        assert torch.equal(logits, found[0][0])
        assert indices == found[0][1]


def test_what_is_there_is_not_computed_again(tmp_path, monkeypatch):
    """With all pictures of a batch on disk the tower does not run; with one missing it does."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, ROWS)
    kept = PictureFeatures(lvlm, tmp_path / "kept", pictures=3)
    kept.instead(inputs, NAMES)
    runs = []
    handle = lvlm.vision.register_forward_hook(lambda *args: runs.append(1))
    try:
        kept.instead(inputs, NAMES)
        assert not runs
        (tmp_path / "kept" / "b-0.npy").unlink()
        kept.instead(inputs, NAMES)
        assert len(runs) == 1
    finally:
        handle.remove()


def test_no_more_than_a_part_of_the_free_disk(tmp_path, monkeypatch):
    """Where there is no room, every batch is computed as ever."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, ROWS)
    crowded = PictureFeatures(lvlm, tmp_path / "kept", pictures=300)
    plain = lvlm.model.model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True).pooler_output
    ready = crowded.instead(inputs, NAMES)["mm_encoder_outputs"]["image"].pooler_output
    assert torch.equal(torch.stack(ready), torch.stack(list(plain)))
    assert not list((tmp_path / "kept").iterdir())


def test_a_prompt_without_pictures_stays(tmp_path):
    """There is nothing to put in their place."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[3], [5]])
    assert PictureFeatures(lvlm, tmp_path, 1).instead(inputs, []) == inputs


def test_families_that_pack_pictures_are_left_alone():
    """Only one tensor per picture can be kept by picture."""
    assert PictureFeatures.fits(tiny.shared("llava"))
    assert not PictureFeatures.fits(tiny.shared("qwen"))
    for name in ("llava_next", "llava_onevision", "llava_next_video", "video_llava"):
        assert not PictureFeatures.fits(kit.loaded(name).host)
