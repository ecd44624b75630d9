"""Encoding of videos in chunks: frames are opened, prepared and encoded some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from btp.core.host import Encoding
from btp.models.video.clips import ClipWriter, Frames, QwenClips, clip_writer, frame_size

CHUNK = 16  # frames that are encoded together


class ClipFeatures(BaseModelOutputWithPooling):
    """Features of videos that were encoded in chunks, and how: what `mm_encoder_outputs` takes.

    Attributes:
        encoding: what the engine would have noted of one call of the encoder.
    """

    encoding: Encoding


@torch.no_grad()
def encode_clips(host: Any, processor: Any, clips: Sequence[Frames], chunk: int = CHUNK) -> dict[str, Any]:
    """Inputs of a forward in place of pixels: features of all clips of a batch, made some frames at a time.

    Memory for pixels and inside the vision tower is that of one chunk, however long a clip is, and features are held
    once.

    Args:
        host: the model.
        processor: its own.
        clips: Clips of all rows in order; frames are opened as they are needed.
        chunk: frames that are encoded together.
    """
    writer, device = clip_writer(processor), host.device
    base = host.model.base_model
    step = max(chunk // writer.together, 1) * writer.together
    lengths = [writer.tokens(len(clip), frame_size(clip)) for clip in clips]
    joined, shape = Tensor(), (3, 1, 1)
    at, behind = 0, writer.extra()[1]
    for clip in clips:
        for frames in chunks_of(clip, step):
            pixels = writer.pixels(frames).to(device, host.dtype)
            if isinstance(writer, QwenClips):
                grid = writer.inputs([frames])["video_grid_thw"].to(device)
                found = base.get_video_features(pixel_values_videos=pixels, video_grid_thw=grid, return_dict=True)
                part = torch.cat(list(found.pooler_output))
            else:
                shape = pixels.shape[1:]
                found = base.get_video_features(pixel_values_videos=pixels[None], return_dict=True)
                part = found.pooler_output.reshape(-1, found.pooler_output.shape[-1])
            if not joined.numel():
                joined = part.new_empty(sum(lengths), part.shape[-1])
            joined[at : at + len(part)] = part
            at += len(part) - behind  # what stands behind all frames, the last chunk alone leaves there
        at += behind
    assert at == len(joined)
    return {"mm_encoder_outputs": {"video": _outputs(host, writer, clips, joined, lengths, shape)}}


def clip_pixels(processor: Any, clips: Sequence[Frames]) -> dict[str, Tensor]:
    """Inputs of a forward with all pixels at once, as a cost measurement wants them.

    Raises:
        ValueError: the clips have unequal numbers of frames, which one tensor cannot hold.
    """
    writer = clip_writer(processor)
    pixels = [writer.pixels(clip[:]) for clip in clips]
    if isinstance(writer, QwenClips):
        return {"pixel_values_videos": torch.cat(pixels)}
    if len({len(one) for one in pixels}) > 1:
        raise ValueError(
            f"the videos measured together have {', '.join(str(len(one)) for one in pixels)} frames. Set cost.batch=1, "
            "or a number of frames that every video has."
        )
    return {"pixel_values_videos": torch.stack(pixels)}


def chunks_of(clip: Frames, size: int) -> Iterator[Frames]:
    """The frames of a clip in order, `size` at a time."""
    if hasattr(clip, "chunks"):
        yield from clip.chunks(size)  # type: ignore[attr-defined]
        return
    for first in range(0, len(clip), size):
        yield clip[first : first + size]


def clip_layout(host: Any, processor: Any, clips: Sequence[Frames]) -> dict[str, Any]:
    """What a host's `layout` needs to know of some videos; no frame is opened for it."""
    writer, side = clip_writer(processor), getattr(host.config.vision_config, "image_size", 1)
    encoding = _encoding(host, writer, clips, (3, side, side))
    return {**writer.inputs(clips), "encoded": {"video": encoding}}


def _encoding(host: Any, writer: ClipWriter, clips: Sequence[Frames], shape: Sequence[int]) -> Encoding:
    """What the engine would have noted of one call of the encoder for all clips."""
    lengths = tuple(len(clip) for clip in clips)
    if isinstance(writer, QwenClips):
        return Encoding({"video_grid_thw": writer.inputs(clips)["video_grid_thw"].to(host.device)}, _all(clips))
    arguments = {"pixel_values_videos": torch.empty(len(clips), max(lengths), *shape, device="meta"), "frames": lengths}
    return Encoding(arguments, _all(host.packing("video", arguments)))


def _all(entries: Sequence[Any]) -> tuple[int, ...]:
    return tuple(range(len(entries)))


def _outputs(
    host: Any, writer: ClipWriter, clips: Sequence[Frames], joined: Tensor, lengths: list[int], shape: Sequence[int]
) -> ClipFeatures:
    found: Any = joined.split(lengths) if isinstance(writer, QwenClips) else joined[None]
    out = ClipFeatures(pooler_output=found)
    out.encoding = _encoding(host, writer, clips, shape)
    return out
