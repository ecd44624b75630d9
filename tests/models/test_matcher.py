"""The matcher of frames and questions: a real SigLIP, saved and loaded, in chunks as at once."""

import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

from btp.models.embedded.pocket_video import build_frame_processor, build_matcher, build_video_tokenizer
from btp.models.video.matcher import Matcher

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = ["red", "blue", "circle", "square", "what", "shape", "is", "?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of random weights."""
    path = tmp_path_factory.mktemp("matcher")
    tokenizer = build_video_tokenizer(WORDS)
    torch.manual_seed(0)
    text = {**SIZES, "projection_size": 16}
    build_matcher(tokenizer, side=16, patch=8, vision=SIZES, text=text).eval().save_pretrained(path)
    tokenizer.save_pretrained(path)
    build_frame_processor(16).save_pretrained(path)
    return path


def frames(count):
    """Frames of one colour each."""
    return [Image.new("RGB", (20, 12), (9 * i, 90, 255 - 9 * i)) for i in range(count)]


def test_frames_match_in_chunks_as_one_by_one(folder):
    """Twenty frames, sixteen at a time, are what each is alone; a long question is read in parts."""
    matcher, device = Matcher(path=str(folder), hub=None), torch.device("cpu")
    found = matcher("what shape is red ?", frames(20), device)
    alone = torch.cat([matcher("what shape is red ?", [frame], device) for frame in frames(20)])
    torch.testing.assert_close(found, alone, atol=1e-6, rtol=1e-5)
    assert found.std() > 0
    long = matcher("what shape is red ? " * 30, frames(2), device)
    assert torch.isfinite(long).all()


def test_it_is_the_cosine_of_the_models_own_embeddings(folder):
    """Text padded to the length that the model reads, frames by its processor."""
    matcher = Matcher(path=str(folder), hub=None)
    found = matcher("blue square", frames(3), torch.device("cpu"))
    model, tokenizer, processor = matcher._model, matcher._tokenizer, matcher._processor
    ids = tokenizer("blue square", padding="max_length", padding_side="right", max_length=64, return_tensors="pt")[
        "input_ids"
    ]
    pixels = processor(frames(3), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=pixels)
    torch.testing.assert_close(found, cosine_similarity(out.text_embeds, out.image_embeds), atol=1e-5, rtol=1e-4)


def test_no_such_matcher(tmp_path):
    """Says which key to set."""
    with pytest.raises(ValueError, match=r"pruner\.method\.matcher has path None and hub None"):
        Matcher(path=None, hub=None)
    with pytest.raises(ValueError, match=r"pruner\.method\.matcher\.path"):
        Matcher(path=str(tmp_path / "nowhere"), hub=None)("a", frames(1), torch.device("cpu"))
