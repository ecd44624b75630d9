"""A tokenizer in the place of a processor: turns of a chat, or a bare text, become a padded prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PLAIN = "text"  # role of a turn that is no turn: the prompt is its text, whatever template there is


class TextProcessor:
    """What the runner asks of a processor, on a tokenizer.

    Attributes:
        tokenizer: pads on the left.
        chat: whether prompts are turns of the tokenizer's chat template; else they are the text itself, behind what
            the tokenizer puts in front of any text.
    """

    def __init__(self, tokenizer: Any, chat: bool) -> None:
        self.tokenizer, self.chat = tokenizer, chat

    @property
    def chat_template(self) -> str | None:
        """Of the tokenizer."""
        return self.tokenizer.chat_template

    def apply_chat_template(self, turns: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> str:
        """The prompt as text.

        Args:
            turns: role, and content: a text, or parts of {type: text, text}.
            add_generation_prompt: end where the answer begins.
        """
        written = [{"role": turn["role"], "content": _text(turn["content"])} for turn in turns]
        if not self.chat or any(turn["role"] == PLAIN for turn in written):
            return "\n".join(turn["content"] for turn in written)
        return self.tokenizer.apply_chat_template(written, add_generation_prompt=add_generation_prompt, tokenize=False)

    def __call__(self, text: Sequence[str], images: Any = None, **settings: Any) -> Any:
        """The tokenizer's inputs.

        Raises:
            ValueError: pictures were given.
        """
        if images is not None:
            raise ValueError("A prompt brings pictures, but the model takes text alone. Choose another task or model.")
        return self.tokenizer(list(text), return_token_type_ids=False, **settings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(folder)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")
