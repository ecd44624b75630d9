"""Videos in the prompts of LVLMs, without torchvision: placeholders by a rule, frames by the picture processor.

A processor of transformers prepares videos by a class of its own, which needs torchvision and all frames at once.
Here the number of frames and their size say how many placeholders a prompt gets, and no frame is opened for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

Frames = Sequence[Image.Image]
VIDEO_TYPE = 2  # of a video's placeholders in mm_token_type_ids


class ClipWriter:
    """How one family prepares its frames and writes their placeholders; a subclass for each.

    Args:
        processor: Processor of the model, for pictures and text.

    Attributes:
        together: frames that become one row of tokens.
    """

    together = 1

    def __init__(self, processor: Any):
        self.processor = processor

    def grid(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """(rows of tokens in time, rows, columns) of a clip of frames of (height, width) pixels."""
        raise NotImplementedError

    def extra(self) -> tuple[int, int]:
        """Tokens in front of each frame, and behind all of them, that lie on no grid."""
        return 0, 0

    def pixels(self, frames: Frames) -> Tensor:
        """What the vision tower gets of some frames that follow each other."""
        raise NotImplementedError

    def inputs(self, clips: Sequence[Frames]) -> dict[str, Tensor]:
        """What the language model is told of all clips of a batch, beside placeholders."""
        return {}

    def tokens(self, frames: int, size: tuple[int, int]) -> int:
        """Visual tokens of a clip."""
        deep, rows, columns = self.grid(frames, size)
        front, behind = self.extra()
        return deep * (rows * columns + front) + behind


class OneVisionClips(ClipWriter):
    """Frames of one tile, pooled by two behind the projector, and one newline behind them all."""

    def grid(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """Any frame is resized to a tile."""
        side = math.ceil(math.isqrt(self.processor.num_image_tokens) / 2)
        return frames, side, side

    def extra(self) -> tuple[int, int]:
        """The newline."""
        return 0, 1

    def pixels(self, frames: Frames) -> Tensor:
        """[F, 3, h, w]: of each frame the tile that shows all of it."""
        edge = self.processor.image_processor.size
        edge = [edge["height"], edge["width"]] if "height" in edge else [edge["shortest_edge"]] * 2
        made = self.processor.image_processor(list(frames), image_grid_pinpoints=[edge], return_tensors="pt")
        return torch.stack([tiles[0] for tiles in made["pixel_values"]])


class CroppedClips(ClipWriter):
    """Frames resized by their shorter side and cropped, as CLIP's; a subclass says what becomes of their patches."""

    def pixels(self, frames: Frames) -> Tensor:
        """[F, 3, h, w]."""
        own = self.processor.image_processor
        names = ("size", "crop_size", "image_mean", "image_std", "rescale_factor", "resample")
        found = {name: getattr(own, name) for name in names if getattr(own, name, None) is not None}
        settings: dict[str, Any] = {k: dict(v) if hasattr(v, "items") else v for k, v in found.items()}
        return CLIPImageProcessorPil(**settings)(list(frames), return_tensors="pt")["pixel_values"]

    def side(self) -> int:
        """Patches along a side of a cropped frame."""
        crop = self.processor.image_processor.crop_size
        return crop["height"] // self.processor.patch_size


class NextVideoClips(CroppedClips):
    """LLaVA-NeXT-Video: patches pooled by two in front of the projector."""

    def grid(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """Half of the patches along each side."""
        return frames, self.side() // 2, self.side() // 2


class VideoLlavaClips(CroppedClips):
    """Video-LLaVA: all patches of each frame, with the class token in front."""

    def grid(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """All patches."""
        return frames, self.side(), self.side()

    def extra(self) -> tuple[int, int]:
        """The class token of each frame."""
        return 1, 0


class QwenClips(ClipWriter):
    """Qwen2-VL and Qwen2.5-VL: two frames at a time, whose size the picture processor chooses."""

    together = 2

    def grid(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """Tokens of merged patches; an odd last frame is taken twice."""
        own = self.processor.image_processor
        rows, columns = _qwen_sides(own, size)
        return -(-frames // self.together), rows // own.merge_size, columns // own.merge_size

    def pixels(self, frames: Frames) -> Tensor:
        """[patches, C * 2 * p * p]: of each pair of frames the patches of one and of the other."""
        every = list(frames) + list(frames[-1:]) * (len(frames) % self.together)
        own = self.processor.image_processor
        made = own(every, return_tensors="pt")
        each = [found.view(len(found), -1, own.temporal_patch_size, own.patch_size**2) for found in _by_frame(made)]
        pairs = zip(each[::2], each[1::2], strict=True)
        return torch.cat([torch.stack([a[:, :, 0], b[:, :, 0]], 2).flatten(1) for a, b in pairs])

    def inputs(self, clips: Sequence[Frames]) -> dict[str, Tensor]:
        """The patches of each clip."""
        merge = self.processor.image_processor.merge_size
        grids = [self.grid(len(clip), frame_size(clip)) for clip in clips]
        return {"video_grid_thw": torch.tensor([[t, h * merge, w * merge] for t, h, w in grids])}


WRITERS: dict[str, type[ClipWriter]] = {
    "LlavaOnevisionProcessor": OneVisionClips,
    "LlavaNextVideoProcessor": NextVideoClips,
    "VideoLlavaProcessor": VideoLlavaClips,
    "Qwen2VLProcessor": QwenClips,
    "Qwen2_5_VLProcessor": QwenClips,
}


def clip_writer(processor: Any) -> ClipWriter:
    """How the family of a processor writes videos.

    Raises:
        ValueError: it takes none, or btp does not know how.
    """
    name = type(processor).__name__
    if name not in WRITERS:
        raise ValueError(
            f"the samples show videos, but how {name} prepares them without torchvision is not known. Models that "
            "answer about videos here: LLaVA-OneVision (also model=pocket_video), LLaVA-NeXT-Video, Video-LLaVA, "
            "Qwen2-VL and Qwen2.5-VL. Choose one by model=NAME."
        )
    return WRITERS[name](processor)


def frame_size(clip: Frames) -> tuple[int, int]:
    """(height, width) of a clip's frames; opens no more than the first."""
    if hasattr(clip, "frame_size"):
        return clip.frame_size()  # type: ignore[attr-defined]
    return clip[0].height, clip[0].width


def clip_tokens(processor: Any, clips: Sequence[Frames]) -> int:
    """Visual tokens of some clips."""
    writer = clip_writer(processor) if len(clips) else None
    return sum(writer.tokens(len(clip), frame_size(clip)) for clip in clips) if writer else 0


def with_clips(
    processor: Any, texts: Sequence[str], clips: Sequence[Sequence[Frames]], call: Callable[[list[str]], Any]
) -> dict[str, Any]:
    """Inputs of prompts whose placeholder of each clip is written as often as the clip has tokens.

    A processor refuses placeholders of videos that it does not prepare. They are written as another special token,
    which no text holds, and exchanged in its inputs.

    Args:
        texts: as the chat template writes them.
        clips: Clips of each prompt.
        call: (texts) -> what the processor makes of them.

    Raises:
        ValueError: the chat template writes other placeholders than there are clips.
    """
    writer, mark, tokenizer = clip_writer(processor), processor.video_token, processor.tokenizer
    every = [tokenizer.pad_token, tokenizer.unk_token, *tokenizer.all_special_tokens]
    taken = (mark, getattr(processor, "image_token", None))
    other = next((t for t in every if t and t not in taken and not any(t in text for text in texts)), None)
    if other is None:
        raise ValueError("No special token of the tokenizer is free to stand for a video. Leave them out of questions.")
    written = []
    for text, mine in zip(texts, clips, strict=True):
        parts = text.split(mark)
        if len(parts) != len(mine) + 1:
            raise ValueError(
                f"The chat template of this checkpoint writes {len(parts) - 1} placeholders {mark} for {len(mine)} "
                "video(s). Use a template with a part for videos: chat_template.jinja of the original model."
            )
        runs = [other * writer.tokens(len(clip), frame_size(clip)) for clip in mine]
        written.append(parts[0] + "".join(run + part for run, part in zip(runs, parts[1:], strict=True)))
    found = dict(call(written))
    stands, video = tokenizer.convert_tokens_to_ids([other, mark])
    holes = (found["input_ids"] == stands) & (found["attention_mask"] == 1)
    found["input_ids"] = found["input_ids"].masked_fill(holes, video)
    if "mm_token_type_ids" in found:
        found["mm_token_type_ids"] = found["mm_token_type_ids"].masked_fill(holes, VIDEO_TYPE)
    return found | writer.inputs([clip for mine in clips for clip in mine])


def _qwen_sides(own: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Patches of a picture's height and width."""
    least, most = own.size["shortest_edge"], own.size["longest_edge"]
    factor = own.patch_size * own.merge_size
    high, wide = smart_resize(*size, factor=factor, min_pixels=least, max_pixels=most)
    return high // own.patch_size, wide // own.patch_size


def _by_frame(made: Any) -> list[Tensor]:
    """The patches of each frame."""
    return list(made["pixel_values"].split([int(n) for n in made["image_grid_thw"].prod(-1)]))
