"""A sample that the processor refuses is named, thin pictures before anything is answered."""

from dataclasses import replace

import pytest
from families import kit
from PIL import Image

from btp.runner.evaluation.data import Collate, Feed
from btp.runner.evaluation.processing import THIN, TRIED, try_unusual
from btp.tasks.files.images import PictureFile, Pictures
from btp.tasks.sample import Sample

GOOD = (60, 60)
REFUSES = ("qwen2vl", "qwen25vl", "qwen3vl", "glm46v")  # sides of more than 200 to 1


def sample(name, *sizes):
    """A question about pictures of these widths and heights."""
    return Sample(name, [Image.new("RGB", size, (200, 10, 30)) for size in sizes], "what?", "a", "all")


@pytest.mark.parametrize("family", sorted(kit.families()))
def test_thin_pictures_are_answered_or_refused_by_name(family):
    collate = Collate(kit.loaded(family).processor)
    for size in ((300, 1), (1, 300), (1, 1), (2, 2), (300, 3)):
        asked = [sample("good", GOOD), sample("odd", size)]
        if family in REFUSES and max(size) > 200 * min(size):
            wanted = rf"sample odd, whose picture has {size[0]} x {size[1]} pixels, is refused by the model's processor"
            for take in (collate, lambda asked: try_unusual(asked, collate)):
                with pytest.raises(ValueError, match=wanted):
                    take(asked)
        else:
            try_unusual(asked, collate)
            assert len(collate(asked).samples) == 2


def test_rows_are_not_taken_for_colours():
    """Video-LLaVA's processor would take the three rows of this picture for red, green and blue."""
    collate = Collate(kit.loaded("video_llava").processor)
    (pixels,) = collate([sample("three", (300, 3))]).inputs["pixel_values_images"]
    (even,) = collate([sample("even", (300, 300))]).inputs["pixel_values_images"]
    assert pixels.mean((1, 2)).tolist() == pytest.approx(even.mean((1, 2)).tolist(), abs=1e-3)


def test_only_the_most_unusual_are_tried():
    tried = []
    many = [sample(f"s{i}", (100 + i, 1 + i % THIN)) for i in range(100)]
    try_unusual([*many, sample("plain", GOOD)], lambda asked: tried.extend(s.id for s in asked))
    assert TRIED <= len(tried) <= 2 * TRIED
    assert {"s84", "s56"} <= set(tried)
    assert "plain" not in tried


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_another_process_comes_as_it_is(tmp_path, workers):
    """Not behind the words of the loader, with a traceback in them."""
    processor = kit.loaded("llava15").processor
    for name in "abc":
        Image.new("RGB", GOOD).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    asked = [
        replace(sample(name), images=Pictures(name, [PictureFile(tmp_path / f"{name}.png")]))
        for name in ("a", "b", "c")
    ]
    with Feed(asked, processor, workers=workers) as feed, pytest.raises(ValueError, match=r"^sample b: the picture"):
        for _ in feed.batches(range(3), 1):
            pass
