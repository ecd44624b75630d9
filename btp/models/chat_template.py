"""Chat templates: turns as model inputs, as `processor.apply_chat_template(..., tokenize=True)` makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from btp.models.video.clips import Frames, with_clips

Turns = Sequence[Mapping[str, Any]]


def chat_inputs(
    processor: Any,
    chats: Sequence[Turns],
    pictures: Sequence[Sequence[Any]],
    clips: Sequence[Sequence[Frames]] = (),
) -> tuple[Any, list[str]]:
    """Padded inputs of one prompt per chat, each to be answered.

    A template may write the token that begins a prompt (BOS), and a tokenizer may add it; it must come once. Where the
    template writes it, transformers has the tokenizer add nothing, but looks at the first row alone; here each row gets
    what it gets on its own.

    Args:
        processor: has a chat template and pads.
        chats: per row its turns: role, and content of {type: image}, {type: video} and {type: text, text}.
        pictures: Pictures of each row, in the order in which its turns show them.
        clips: Videos of each row likewise, whose placeholders alone are written; () without any.

    Returns:
        The processor's inputs, and the text of each prompt as the template writes it.
    """
    texts = [processor.apply_chat_template(list(turns), add_generation_prompt=True) for turns in chats]
    written = [begins_with_bos(processor.tokenizer, text) for text in texts]
    whole, more = texts, {}
    if any(written):
        more["add_special_tokens"] = False
        missing = "" if all(written) else added_bos(processor.tokenizer)
        whole = [text if has else missing + text for text, has in zip(texts, written, strict=True)]
    images = [list(mine) for mine in pictures] if any(len(mine) for mine in pictures) else None
    call = partial(processor, images=images, padding=True, return_tensors="pt", **more)
    if any(len(mine) for mine in clips):
        return with_clips(processor, whole, clips, lambda written: call(text=written)), texts
    return call(text=whole), texts


def begins_with_bos(tokenizer: Any, text: str) -> bool:
    """Whether a prompt begins with the token that begins a prompt."""
    return tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)


def added_bos(tokenizer: Any) -> str:
    """What a tokenizer adds in front of a text of its own accord: its BOS, or nothing."""
    return tokenizer.bos_token if tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id] else ""
