"""Qwen2-VL: packed patches, one visual token for each square of four, positions in three axes.

The processors of all Qwen families need torchvision, for their videos alone. They are made without videos here, as the
loading path makes them where it is absent, and the patches of a video and its placeholders are written by hand.
"""

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil, Qwen2VLProcessor

from btp.models.loading.processor_without_video import without_videos
from families import kit

PATCH = 4  # eight pixels a side become a visual token
START, END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
PLACE = "<place>"  # written for VIDEO, which the processor refuses without videos
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}


def parts(made):
    """Config of the tokens and the text, and a processor of class `made`."""
    tokenizer = kit.tokenizer(START, END, PLACE, image_token=IMAGE, video_token=VIDEO)
    template = kit.chat(START + IMAGE + END, START + VIDEO + END)
    size = {"shortest_edge": 8 * 8, "longest_edge": 48 * 48}
    pictures = Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=2, temporal_patch_size=2, size=size)
    named = {"image": IMAGE, "video": VIDEO, "vision_start": START, "vision_end": END}
    config = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config["text_config"] = kit.TEXT | ends | {"vocab_size": len(tokenizer), "rope_parameters": ROPE}
    return config, without_videos(made)(pictures, tokenizer, chat_template=template)


def build():
    """Two layers in the tower."""
    config, processor = parts(Qwen2VLProcessor)
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 2, "patch_size": PATCH}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(**config, vision_config=vision)), processor


def inputs(processor, texts, images, videos, frame=None):
    """What the processor makes of text and pictures, with videos beside them.

    Args:
        frame: number -> what is written in front of a frame's placeholders and behind them; None writes those of all
            frames in one run.
    """
    made = [patches(video) for video in videos or ()]
    left = iter([grid for _, grid in made])

    def written(grid):
        count = grid[1] * grid[2] // 4
        if frame is None:
            return START + PLACE * (grid[0] * count) + END
        return "".join(frame(i) + START + PLACE * count + END for i in range(grid[0]))

    for i, text in enumerate(texts):
        first, *rest = text.split(START + VIDEO + END)
        texts[i] = first + "".join(written(next(left)) + part for part in rest)
    found = processor(text=texts, images=images, padding=True, return_tensors="pt")
    place, video = processor.tokenizer.convert_tokens_to_ids([PLACE, VIDEO])
    found["mm_token_type_ids"][found["input_ids"] == place] = 2
    found["input_ids"][found["input_ids"] == place] = video
    if made:
        found["pixel_values_videos"] = torch.cat([x for x, _ in made])
        found["video_grid_thw"] = torch.tensor([grid for _, grid in made])
    return found


def patches(video):
    """Patches [T, 96] of frames [F, height, width, 3], those that become one token side by side, and their grid."""
    x = torch.from_numpy(video).float() / 127.5 - 1
    x = x.unflatten(2, (-1, 2, PATCH)).unflatten(1, (-1, 2, PATCH)).unflatten(0, (-1, 2))
    # [frames, pair, rows, two, patch, columns, two, patch, colour]
    grid = (x.shape[0], 2 * x.shape[2], 2 * x.shape[5])
    return x.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).flatten(5).flatten(0, 4), grid


SIZES = kit.Picture(24, 16), kit.Picture(16, 40), kit.Picture(32, 32)
CLIP = kit.Video(4, 24, 16)
FAMILIES = (kit.Family("qwen2vl", build, SIZES, CLIP, inputs),)
