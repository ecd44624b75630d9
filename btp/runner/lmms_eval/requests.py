"""Requests of lmms-eval's tasks as documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from btp.runner.harness.document import Document, Pictures, Shown
from btp.runner.harness.task import by_document, check_greedy, document_id, endings
from btp.tasks.files.decode_image import open_picture

LONGEST = 1024  # new tokens where a task does not say, as in lmms-eval's own models
SEVERAL_ROUNDS = ("generate_until_multi_round", "generate_until_agentic", "generate_visual_cot")


def as_documents(
    requests: Sequence[Any], docs: Mapping[str, Any], reference: Callable[[int], str] | None = None
) -> list[Document]:
    """One document for all requests about it.

    Args:
        requests: lmms-eval's instances.
        docs: Task -> split -> document.
        reference: Number of a document -> right answer, where it is known.

    Raises:
        ValueError: a request of a kind that is not built here; the message names task and kind.
    """
    together = by_document(requests, key_of)
    return [_document(asked, docs, reference(key[1]) if reference else "") for key, asked in together.items()]


def key_of(request: Any) -> tuple[str, int]:
    """(task, document) of a request."""
    return request.metadata["task"], int(request.metadata["doc_id"])


def _document(requests: Sequence[Any], docs: Mapping[str, Any], reference: str) -> Document:
    first, (task, number) = requests[0], key_of(requests[0])
    refuse_rounds(task, first.request_type)
    doc = _Lazy(docs, task, first.metadata.get("split"), number)
    continuations: tuple[str, ...] = ()
    settings: Mapping[str, Any] = {}
    if first.request_type == "loglikelihood":
        continuations = _continuations(requests, doc, task)
        show = _simple(first.args[0], first.args[2], doc, task)
    elif callable(first.args[1]):  # (context, doc_to_messages, settings, ...) for models with a chat template
        show, settings = _chat(first.args[1], doc, task), first.args[2]
    else:  # (context, settings, doc_to_visual, ...)
        show, settings = _simple(first.args[0], first.args[2], doc, task), first.args[1]
    check_greedy("lmms_eval", task, settings)
    return Document(
        id=document_id(task, number),
        images=Pictures(show),  # type: ignore[arg-type]
        question=first.args[0],
        reference=reference,
        ability=task,
        show=show,
        task=task,
        number=number,
        continuations=continuations,
        max_new_tokens=int(settings.get("max_new_tokens") or LONGEST),
        until=endings(settings),
    )


class _Lazy:
    """A document that is read, pictures included, each time it is asked for."""

    def __init__(self, docs: Mapping[str, Any], task: str, split: str | None, number: int) -> None:
        self._docs, self._task, self._split, self._number = docs, task, split, number

    def __call__(self) -> Mapping[str, Any]:
        return self._docs[self._task][self._split][self._number]


def _simple(context: str, doc_to_visual: Callable | None, doc: _Lazy, task: str) -> Callable[[], Shown]:
    def show() -> Shown:
        images = tuple(_picture(seen, task) for seen in (doc_to_visual(doc()) if doc_to_visual else None) or ())
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": context}]
        return Shown(({"role": "user", "content": content},), images)

    return show


def _chat(doc_to_messages: Callable, doc: _Lazy, task: str) -> Callable[[], Shown]:
    def show() -> Shown:
        turns, images = [], []
        for message in doc_to_messages(doc()):
            said = message["content"]
            content = []
            for part in [{"type": "text", "text": said}] if isinstance(said, str) else said:
                if part["type"] == "text":
                    content.append({"type": "text", "text": part["text"]})
                elif part["type"] == "image":
                    content.append({"type": "image"})
                    images.append(_picture(part["url"], task))
                else:
                    raise ValueError(_no_picture(task, part["type"]))
            turns.append({"role": message["role"], "content": content})
        return Shown(tuple(turns), tuple(images))

    return show


def _picture(seen: Any, task: str) -> Image.Image:
    if isinstance(seen, str) and seen.lower().endswith((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tiff", ".webp")):
        seen = open_picture(Path(seen))
    if not isinstance(seen, Image.Image):
        raise ValueError(_no_picture(task, f"{seen!r:.60}"))
    return seen if seen.mode == "RGB" else seen.convert("RGB")


def _no_picture(task: str, what: str) -> str:
    return (
        f"lmms-eval task {task} shows {what}, but only pictures are passed on; videos and sounds are not. "
        f"Leave {task} out of tasks."
    )


def _continuations(requests: Sequence[Any], doc: _Lazy, task: str) -> tuple[str, ...]:
    made = []
    for request in requests:
        text = request.args[1]
        made.append(str(text(doc())) if callable(text) else str(text))
    if not all(made):
        raise ValueError(
            f"lmms-eval task {task} has an empty choice in document {key_of(requests[0])[1]}, whose likelihood is not "
            "defined. Correct its doc_to_choice or doc_to_target."
        )
    return tuple(made)


def refuse_rounds(task: str, kind: str) -> None:
    """Refuse tasks that ask again behind an answer.

    Raises:
        ValueError: names task and kind.
    """
    if kind in SEVERAL_ROUNDS:
        raise ValueError(
            f"lmms-eval task {task} asks in several rounds (output_type {kind}), and a pruned prompt has one. "
            f"Leave {task} out of tasks."
        )
