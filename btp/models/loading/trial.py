"""Trial run of a checkpoint on one picture or text, so that processor files that do not fit its weights are named."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from PIL import Image
from torch import nn

from btp.models.chat_template import chat_inputs
from btp.models.loading.checkpoint import first_line
from btp.models.loading.time_limit import Endless, time_limit
from btp.models.lvlm import LVLM
from btp.models.text import TextLM

TEXT = {"type": "text", "text": "What is it?"}
SIDES = 60, 40  # width and height of the picture, in pixels
TEMPLATE_S = 10  # for a template that takes milliseconds
MOST_CHARACTERS = 1_000_000  # that it makes of one question
TEMPLATES = ("chat_template.jinja", "chat_template.json", "processor_config.json")
PROCESSORS = ("processor_config.json", "preprocessor_config.json")


class _Reached(Exception):
    """The picture's features have been put into the prompt; the decoder need not run."""


def try_prompt(folder: Path, processor: Any) -> Any:
    """Inputs of a question about one picture, made as a run makes them.

    Args:
        folder: Folder of the checkpoint.

    Raises:
        ValueError: the chat template knows no pictures, or the processor cannot prepare one; names file and keys.
    """
    chat = [{"role": "user", "content": [{"type": "image"}, TEXT]}]
    try:
        with time_limit(TEMPLATE_S):
            shown, bare = (
                processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
                for content in (chat[0]["content"], [TEXT])
            )
    except Endless as error:
        raise ValueError(
            f"{_template(folder)} (chat_template) cannot write a question about a picture: {error}. Look for a loop in "
            "it, or copy chat_template.jinja of the original model into the folder of model.path."
        ) from error
    except Exception as error:
        raise ValueError(
            f"{_template(folder)} (chat_template) cannot write a question about a picture: {first_line(error)}. It is "
            "that of a text model. Copy chat_template.jinja of the original model into the folder of model.path."
        ) from error
    if len(shown) > MOST_CHARACTERS:
        raise ValueError(
            f"{_template(folder)} (chat_template) makes {len(shown):,} characters of a question of {len(TEXT['text'])} "
            "about a picture. Copy chat_template.jinja of the original model into the folder of model.path."
        )
    marks = [*processor.tokenizer.get_added_vocab(), *_texts(getattr(processor, "image_token", None))]
    if not any(shown.count(mark) > bare.count(mark) for mark in marks):
        raise ValueError(
            f"{_template(folder)} (chat_template) leaves the picture out of a question about one: it writes "
            f"{shown!r:.120}. Copy chat_template.jinja of the original model into the folder of model.path."
        )
    try:
        return chat_inputs(processor, [chat], [[Image.new("RGB", SIDES, (110, 110, 110))]])[0]
    except Exception as error:
        raise ValueError(
            f"the processor of the checkpoint in {folder} cannot prepare a picture: {first_line(error)}. "
            f"{_settings(folder, processor)} Correct them, or copy the files of the original model into the folder."
        ) from error


def try_picture(folder: Path, processor: Any, host: LVLM, inputs: Any) -> None:
    """Encode the picture of `try_prompt` and put it into its prompt; the decoder does not run.

    Args:
        folder: Folder of the checkpoint.

    Raises:
        ValueError: the model does not take what the processor made; names files and keys.
    """
    rows = cast(nn.Embedding, host.model.get_input_embeddings()).weight.shape[0]
    visual = host.visual_mask(inputs)
    if not bool(visual.any()):
        mark = getattr(processor, "image_token", None)
        raise ValueError(
            f"{folder / 'config.json'}: its image_token_id does not occur in a question about a picture, for which the "
            f"processor writes {mark!r} (id {getattr(processor, 'image_token_id', None)}). Correct image_token_id, or "
            "restore the tokenizer's files from the original model."
        )
    _check_ids(
        folder, processor.tokenizer, [*inputs["input_ids"][~visual].tolist(), processor.tokenizer.pad_token_id], rows
    )
    moved = {k: v.to(host.device, host.dtype if v.is_floating_point() else None) for k, v in inputs.items()}
    hook = host.decoder.register_forward_pre_hook(_stop)
    try:
        with torch.inference_mode():
            host(**moved)
    except _Reached:
        return
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"the model in {folder} does not take what its processor makes of a picture: {first_line(error)}. "
            f"{_settings(folder, processor)} Correct what does not go with config.json, or copy the files of the "
            "original model into the folder."
        ) from error
    finally:
        hook.remove()


def try_text(folder: Path, processor: Any, host: TextLM) -> None:
    """Write a question as a run does, and hold its tokens against the model's embeddings.

    Args:
        folder: Folder of the checkpoint.

    Raises:
        ValueError: the chat template cannot write it or leaves it out, or a token has no embedding; names the file.
    """
    chat = [{"role": "user", "content": [TEXT]}]
    advice = "Set model.chat=false, or copy chat_template.jinja of the original model into the folder of model.path."
    try:
        with time_limit(TEMPLATE_S):
            inputs, (written,) = chat_inputs(processor, [chat], [[]])
    except (Endless, Exception) as error:
        raise ValueError(
            f"{_template(folder)} (chat_template) cannot write a question: {first_line(error)}. {advice}"
        ) from error
    if TEXT["text"] not in written or len(written) > MOST_CHARACTERS:
        raise ValueError(
            f"{_template(folder)} (chat_template) writes {written!r:.120} for the question {TEXT['text']!r}. {advice}"
        )
    rows = cast(nn.Embedding, host.model.get_input_embeddings()).weight.shape[0]
    _check_ids(folder, processor.tokenizer, [*inputs["input_ids"][0].tolist(), processor.tokenizer.pad_token_id], rows)


def _stop(module: nn.Module, arguments: Any) -> NoReturn:
    raise _Reached


def _check_ids(folder: Path, tokenizer: Any, ids: list[int], rows: int) -> None:
    """Refuse tokens that the model has no embedding of; on a GPU they would end the process."""
    beyond = max(ids)
    token = tokenizer.convert_ids_to_tokens(beyond)
    if beyond >= rows:
        raise ValueError(
            f"{folder / 'tokenizer.json'} (with tokenizer_config.json) gives {token!r} the id {beyond}, "
            f"but the model has embeddings of {rows} tokens: a token was added that it does not know. Restore "
            "the tokenizer's files from the original model."
        )


def _template(folder: Path) -> Path:
    """The file that the chat template comes from."""
    found = (folder / name for name in TEMPLATES)
    return next(
        (file for file in found if file.is_file() and "chat_template" in file.name + file.read_text(encoding="utf-8")),
        folder,
    )


def _texts(mark: Any) -> list[str]:
    return [mark] if isinstance(mark, str) else []


def _settings(folder: Path, processor: Any) -> str:
    """What a processor's files say of sizes: its own settings, and those of its picture processor that are sizes."""
    parts = {"self", "kwargs", "chat_template", *type(processor).get_attributes()}
    own = [name for name in inspect.signature(type(processor).__init__).parameters if name not in parts]
    listed = {name: getattr(processor, name, None) for name in own if not name.endswith("_processor")}
    sizes = {k: v for k, v in processor.image_processor.to_dict().items() if k.endswith("size")}
    files = " and ".join(name for name in PROCESSORS if (folder / name).is_file())
    said = ", ".join(f"{name}={value!r:.60}" for name, value in (sizes | listed).items())
    return f"{files}: {said}."
