"""A document of a harness's task as a sample of ours: what it shows, what it asks, what an answer may look like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from btp.tasks.sample import Sample

Turn = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """A prompt.

    Attributes:
        turns: Turns for a chat template: role, and content of {type: image} and {type: text, text}.
        images: Images in the order in which the turns show them.
    """

    turns: tuple[Turn, ...]
    images: tuple[Image.Image, ...]


class Pictures(Sequence):
    """The pictures of a document, decoded when somebody looks."""

    def __init__(self, show: Callable[[], Shown]) -> None:
        self._show = show
        self._count: int | None = None

    def __len__(self) -> int:
        if self._count is None:
            self._count = len(self._show().images)
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self._show().images[index]

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self._show().images)


@dataclass(frozen=True, kw_only=True)
class Document(Sample):
    """One document with all that its task asks about it.

    Attributes:
        show: decodes and builds the prompt; None in a batch, which has been made of it.
        task: its name in lmms-eval.
        number: Number of the document in its task.
        continuations: of the prompt, whose likelihood is asked for; none where an answer is to be generated.
        max_new_tokens: Tokens of a generated answer.
        until: texts behind which a generated answer is cut off.
    """

    show: Callable[[], Shown] | None
    task: str
    number: int
    continuations: tuple[str, ...] = ()
    max_new_tokens: int = 0
    until: tuple[str, ...] = ()
