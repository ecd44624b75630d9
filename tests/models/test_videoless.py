"""Processors whose video part cannot be made here still prepare pictures and text."""

import numpy as np
import pytest
import torch
from families import kit
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    InternVLProcessor,
    LlavaNextVideoProcessor,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    VideoLlavaProcessor,
)
from transformers.utils import is_torchvision_available

from btp.models.loading.processor_without_video import processor_class, without_videos

pytestmark = pytest.mark.skipif(is_torchvision_available(), reason="torchvision makes the real ones")
PICTURE = Image.fromarray(np.zeros((16, 16, 3), np.uint8))


def test_the_loading_path_takes_it():
    """A checkpoint of such a family loads, with its own class's name, template and pictures."""
    processor = kit.loaded("qwen25vl").processor
    assert isinstance(processor, Qwen2_5_VLProcessor)
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert "image_processor" in processor.get_attributes()
    assert "video_processor" not in processor.get_attributes()
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
    found = processor(text=[text], images=[PICTURE], return_tensors="pt")
    assert int((found["input_ids"] == processor.image_token_id).sum()) == 4
    assert torch.equal(found["image_grid_thw"], torch.tensor([[1, 4, 4]]))


def test_videos_are_refused():
    """The message says what is missing."""
    processor = kit.loaded("qwen3vl").processor
    with pytest.raises(ValueError, match=r"Qwen3VLProcessor was given videos.*with torchvision"):
        processor(text=["<|video_pad|>"], videos=[np.zeros((2, 16, 16, 3), np.uint8)])


@pytest.mark.parametrize("made", [LlavaNextVideoProcessor, VideoLlavaProcessor, InternVLProcessor])
def test_parts_in_any_order(made, tmp_path):
    """Wherever the video processor stands among the parts, what is left is saved and read again."""
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<c>"}
    tokenizer = kit.tokenizer(image_token="<image>", video_token="<video>", **named)
    parts = {"image_processor": CLIPImageProcessorPil(), "tokenizer": tokenizer, "chat_template": "a template"}
    without_videos(made)(**parts).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    reader = processor_class(tmp_path)
    assert issubclass(reader, made)
    again = reader.from_pretrained(tmp_path)
    assert isinstance(again.image_processor, CLIPImageProcessorPil)
    assert again.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == "a template"


def test_others_are_left_alone():
    """A family without videos keeps the way it has."""
    assert not issubclass(processor_class(kit.checkpoint("llava15")), ProcessorMixin)
