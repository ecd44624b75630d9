"""Loads processors and tokenizers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.image_utils import ChannelDimension

from btp.models.loading.checkpoint import first_line, model_folder
from btp.models.loading.checks import refuse_code
from btp.models.loading.processor_without_video import processor_class
from btp.models.text_processor import TextProcessor

PARTS = ("image_processor", "video_processor", "tokenizer")


def load_processor(folder: Path, arguments: Mapping[str, Any], trusted: bool = False) -> Any:
    """The processor of a checkpoint, padding on the left.

    Args:
        folder: Folder of the checkpoint.
        arguments: Arguments that replace what the checkpoint says, as max_pixels.
        trusted: run the Python files that the checkpoint brings along.

    Raises:
        ValueError: there is none, it has no chat template, or it does not know an argument.
    """
    folder = _folder(folder)
    try:
        reader = processor_class(folder, trusted)
        processor = reader.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted, **arguments)
    except ImportError as error:
        raise ValueError(
            f"the processor of the checkpoint in {folder} needs a package that is not installed: "
            f"{' '.join(str(error).split())} Install it."
        ) from error
    except Exception as error:
        if "trust_remote_code" in str(error):
            refuse_code(folder)
        raise ValueError(
            f"the checkpoint in {folder} has no processor that can be read: {_reason(folder, error)} {_RESTORE}"
        ) from error
    lost = [part for part in ("image_processor", "tokenizer") if getattr(processor, part, None) is None]
    if lost:
        raise ValueError(
            f"the checkpoint in {folder} has no {' and no '.join(lost)}, so it takes no pictures. {_RESTORE}"
        )
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(
            f"the checkpoint in {folder} has no chat template, so no prompt can be built. "
            "Add its chat_template.jinja to the folder of model.path."
        )
    for name in arguments:
        if not _knows(processor, name):
            raise ValueError(
                f"model.processor.{name} is set, but {type(processor).__name__} knows no {name}, so it would have no "
                "effect. Remove it, or correct its name."
            )
    _pad(folder, processor.tokenizer)
    _colours_last(processor.image_processor)
    return processor


def load_text_processor(folder: Path, chat: bool, trusted: bool = False) -> TextProcessor:
    """The tokenizer of a checkpoint, padding on the left.

    Args:
        folder: Folder of the checkpoint.
        chat: `model.chat`.
        trusted: run the Python files that the checkpoint brings along.

    Raises:
        ValueError: there is none, or no chat template where one is to be used; says which key to change.
    """
    folder = folder if (folder / "tokenizer_config.json").is_file() else model_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
    except Exception as error:
        if "trust_remote_code" in str(error):
            refuse_code(folder)
        raise ValueError(
            f"the checkpoint in {folder} has no tokenizer that can be read: {_reason(folder, error)} Copy the "
            "tokenizer's files of the original model into it."
        ) from error
    if chat and tokenizer.chat_template is None:
        raise ValueError(
            f"model.chat is true, but the checkpoint in {folder} has no chat template. Set model.chat=false, which "
            "prompts with the text alone, or add its chat_template.jinja to the folder of model.path."
        )
    _pad(folder, tokenizer)
    return TextProcessor(tokenizer, chat)


def _colours_last(image_processor: Any) -> None:
    """Tell an older image processor that the last axis is colour: it takes the first for it where that is 1 or 3."""
    if "input_data_format" in signature(image_processor.preprocess).parameters:
        image_processor.preprocess = partial(image_processor.preprocess, input_data_format=ChannelDimension.LAST)


def _pad(folder: Path, tokenizer: Any) -> None:
    """Pad on the left, with any special token: padding is masked, and no answer shows it.

    Raises:
        ValueError: there is none.
    """
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
    if tokenizer.pad_token is None:
        raise ValueError(
            f"{folder / 'tokenizer_config.json'} names neither pad_token nor eos_token, so that prompts of unequal "
            "length cannot be put into one batch. Add pad_token, or restore the file from the original model."
        )


_RESTORE = (
    "Copy the small files of the original model (processor_config.json or preprocessor_config.json, the tokenizer's, "
    "chat_template.jinja) into it."
)


def _reason(folder: Path, error: Exception) -> str:
    """Which of the folder's files is no JSON, and where; else what the library says, which names no file."""
    for file in sorted(folder.glob("*.json")):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError as fault:
            return f"{file.name} is no JSON ({fault})."
    return first_line(error)


def _folder(folder: Path) -> Path:
    """Where a checkpoint's processor lies; an adapter may have one of its own."""
    own = any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
    return folder if own else model_folder(folder)


def _knows(processor: Any, name: str) -> bool:
    parts = [processor, *(getattr(processor, part, None) for part in PARTS)]
    known = (getattr(getattr(part, "valid_kwargs", None), "__annotations__", {}) for part in parts)
    return any(hasattr(part, name) for part in parts if part is not None) or any(name in names for names in known)
