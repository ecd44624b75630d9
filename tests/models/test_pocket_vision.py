"""The embedded vision towers: real classes, names of their classes, processors that give what they were trained on."""

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForObjectDetection, AutoModelForVideoClassification

from btp.models.embedded.pocket_vision import MEAN, STD, build_action, build_detector, build_processor, build_vim

CLASSES = ("one", "two", "three")


@pytest.mark.parametrize(
    ("build", "rows"),
    [
        (lambda: build_action(CLASSES, side=64, frames=16), 512),
        (lambda: build_detector(CLASSES, side=96), 144 + 12 + 1),
        (lambda: build_vim(CLASSES, side=64), 65),
    ],
    ids=["action", "detector", "vim"],
)
def test_an_architecture_has_its_size_and_its_processor(build, rows, tmp_path):
    model = build().eval()
    config = model.config
    assert config.id2label == {0: "one", 1: "two", 2: "three"}
    side = 96 if config.model_type == "yolos" else 64
    clip = config.model_type == "videomae"
    frames = np.random.default_rng(0).integers(0, 256, (16 if clip else 1, side, side, 3), np.uint8)
    build_processor(config).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixels = processor(list(frames) if clip else frames[0], return_tensors="pt")["pixel_values"]
    plain = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    assert torch.allclose(pixels.reshape(plain.shape), (plain - MEAN) / STD, atol=1e-5)
    with torch.no_grad():
        logits = model(pixel_values=pixels).logits
        if config.model_type == "btp_vim":
            seen = model.encode(pixels)
        else:
            seen = model(pixel_values=pixels, output_hidden_states=True).hidden_states[4]
    assert seen.shape == (1, rows, config.hidden_size)
    assert logits.shape == ((1, 12, 4) if config.model_type == "yolos" else (1, 3))
    assert sum(p.numel() for p in model.parameters()) < 0.8e6


def test_detection_tokens_and_places_differ_from_the_start():
    embeddings = build_detector(CLASSES, side=96).vit.embeddings
    for parameter in (embeddings.detection_tokens, embeddings.position_embeddings):
        rows = parameter[0]
        assert len(torch.unique(rows[:, 0])) == len(rows)


@pytest.mark.parametrize(
    ("model", "auto"),
    [
        (lambda: build_action(CLASSES, side=64, frames=16), AutoModelForVideoClassification),
        (lambda: build_detector(CLASSES, side=96), AutoModelForObjectDetection),
    ],
    ids=["action", "detector"],
)
def test_transformers_loads_them(model, auto, tmp_path):
    one = model()
    one.save_pretrained(tmp_path)
    two = auto.from_pretrained(tmp_path)
    assert type(one) is type(two)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
