"""Pictures behind the tower and the projector come back as they were, and change no logit."""

import math
import os
import shutil
from types import SimpleNamespace

import pytest
import tiny
import torch
from families import kit

from btp.core.schedule import Schedule, Stage
from btp.engine.attach import attach
from btp.models.vision_cache import USED, PictureFeatures, Shelf, make_room
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
    kept = PictureFeatures(lvlm, Shelf(tmp_path / "kept", math.inf), pictures=3)
    found = []
    for given in (inputs, kept.instead(inputs, NAMES), kept.instead(inputs, NAMES)):
        with torch.inference_mode(), attach(lvlm, Random(seed=0, salt="content"), LOTS) as trace:
            out = lvlm.generate(
                **given, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        found.append((torch.stack(out.logits), [s.kept for s in trace.last.stages]))
    assert sorted(p.name for p in (tmp_path / "kept").glob("*.npy")) == [f"{name}.npy" for name in NAMES]
    for logits, indices in found[1:]:
        assert torch.equal(logits, found[0][0])
        assert indices == found[0][1]


def test_what_is_there_is_not_computed_again(tmp_path, monkeypatch):
    """With all pictures of a batch on disk the tower does not run; with one missing it does."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, ROWS)
    kept = PictureFeatures(lvlm, Shelf(tmp_path / "kept", math.inf), pictures=3)
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
    crowded = PictureFeatures(lvlm, Shelf(tmp_path / "kept", math.inf), pictures=300)
    plain = lvlm.model.model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True).pooler_output
    ready = crowded.instead(inputs, NAMES)["mm_encoder_outputs"]["image"].pooler_output
    assert torch.equal(torch.stack(ready), torch.stack(list(plain)))
    assert not list((tmp_path / "kept").glob("*.npy"))


def test_a_prompt_without_pictures_stays(tmp_path):
    """There is nothing to put in their place."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[3], [5]])
    assert PictureFeatures(lvlm, Shelf(tmp_path, math.inf), 1).instead(inputs, []) == inputs


def test_families_that_pack_pictures_are_left_alone():
    """Only one tensor per picture can be kept by picture."""
    assert PictureFeatures.fits(tiny.shared("llava"))
    assert not PictureFeatures.fits(tiny.shared("qwen"))
    for name in ("llava_next", "llava_onevision", "llava_next_video", "video_llava"):
        assert not PictureFeatures.fits(kit.loaded(name).host)


def shelf(home, name, size, used):
    """A folder of features of `size` bytes, last used at `used` seconds."""
    (home / name).mkdir(parents=True)
    (home / name / "a.npy").write_bytes(b"x" * size)
    (home / name / USED).touch()
    os.utime(home / name / USED, (used, used))
    return home / name


def test_the_longest_unused_give_way(tmp_path):
    """As many as it takes and no more, never the own one."""
    old, new, own = (shelf(tmp_path, name, 40, used) for name, used in (("old", 1), ("new", 3), ("own", 2)))
    assert make_room(own, 60, 100)
    assert [old.exists(), new.exists(), own.exists()] == [False, True, True]
    assert make_room(own, 60, 100)
    assert new.exists()


def test_what_cannot_fit_removes_nothing(tmp_path):
    """More than the limit altogether: every batch is computed as ever."""
    other, own = shelf(tmp_path, "other", 40, 1), shelf(tmp_path, "own", 0, 2)
    assert not make_room(own, 101, 100)
    assert other.exists()
    lvlm = tiny.shared("llava")
    kept = PictureFeatures(lvlm, Shelf(tmp_path / "mine", 10.0), pictures=3)
    kept.instead(tiny.prompts(lvlm, ROWS), NAMES)
    assert not list((tmp_path / "mine").glob("*.npy"))


def test_given_up_for_another_model_meanwhile(tmp_path):
    """Features that another run removed are computed again."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, ROWS)
    kept = PictureFeatures(lvlm, Shelf(tmp_path / "kept", math.inf), pictures=3)
    kept.instead(inputs, NAMES)
    shutil.rmtree(tmp_path / "kept")
    kept.instead(inputs, NAMES)
    assert len(list((tmp_path / "kept").glob("*.npy"))) == 3
