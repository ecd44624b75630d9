"""Processors for pictures and text of families whose own one needs torchvision, for its videos alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import transformers
from transformers import AutoConfig, AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils.import_utils import is_torchvision_available

VIDEO = "video_processor"


def processor_class(folder: Path, trusted: bool = False) -> Any:
    """What reads the processor of a checkpoint by `from_pretrained`.

    Without torchvision transformers cannot make the video processors that many families carry, and refuses the whole
    processor with them. Such a family gets one for pictures and text here.

    Args:
        folder: Folder of the checkpoint.
        trusted: run the Python files that the checkpoint brings along.
    """
    if is_torchvision_available():
        return AutoProcessor
    found: Any = getattr(transformers, _named(folder), None)
    if found is None:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
        found = PROCESSOR_MAPPING.get(type(config), None)
    if found is None or VIDEO not in found.get_attributes():
        return AutoProcessor
    return without_videos(found)


class _Pictures(ProcessorMixin):
    """Stands between a processor and its base, and takes the video processor out of what passes."""

    every: ClassVar[tuple[str, ...]] = ()  # parts of the processor in its own order

    def __init__(self, *parts: Any, **more: Any) -> None:
        named = dict(zip(self.every, parts, strict=False)) | more
        named.pop(VIDEO, None)
        super().__init__(**named)

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in cls.every if name != VIDEO]

    @classmethod
    def from_args_and_dict(cls, args: Sequence[Any], processor_dict: dict[str, Any], **more: Any) -> Any:
        parts = list(args)
        parts.insert(cls.every.index(VIDEO), None)
        return super().from_args_and_dict(parts, processor_dict, **more)


def without_videos(processor: Any) -> Any:
    """The same processor class for pictures and text; it refuses videos.

    Args:
        processor: class of a processor that has a video processor.
    """

    def call(self: Any, images: Any = None, text: Any = None, videos: Any = None, **more: Any) -> Any:
        if videos is not None:
            raise ValueError(
                f"{processor.__name__} was given videos, which it can only prepare with torchvision. Install the "
                "torchvision that fits the installed torch, or give pictures."
            )
        return processor.__call__(self, images=images, text=text, **more)

    own = {"every": tuple(processor.get_attributes()), "__call__": call}
    return type(processor.__name__, (processor, _Pictures), own)  # save_pretrained writes the name


def _named(folder: Path) -> str:
    """The processor class that a checkpoint's files name; a family may come with that of another."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = folder / name
        if path.is_file() and (found := json.loads(path.read_text(encoding="utf-8")).get("processor_class")):
            return found
    return ""
