"""Answers documents of a harness's tasks: generates, or scores given continuations, on the same pruned prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from btp.models.chat_template import chat_inputs
from btp.models.lvlm import LVLM
from btp.runner.evaluation.data import Batch, Collate, shrunk
from btp.runner.evaluation.processing import processed
from btp.runner.evaluation.ways.generate import Generating, first_logits
from btp.runner.harness.document import Document

Score = tuple[float, bool]


class Exchange(Batch):
    """A batch of documents, without what shows them.

    Attributes:
        targets: tokens of each choice of each document.
    """

    targets: list[list[list[int]]]

    def with_targets(self, targets: list[list[list[int]]]) -> Exchange:
        """The batch with the tokens of its choices."""
        self.targets = targets
        return self

    def to(self, device: torch.device, dtype: torch.dtype | None = None, **kwargs: Any) -> Exchange:
        """As that of any batch."""
        return self._like(super().to(device, dtype, **kwargs))

    def pin_memory(self) -> Exchange:
        """As that of any batch."""
        return self._like(super().pin_memory())

    def _like(self, batch: Batch) -> Exchange:
        return Exchange(batch.inputs, batch.samples, batch.pictures, batch.indices).with_targets(self.targets)


class Prompts(Collate):
    """Makes one padded batch of documents, with the turns of their own tasks."""

    def __call__(  # type: ignore[override]
        self, samples: Sequence[Document], indices: Sequence[int] = (), shares: Sequence[float] = ()
    ) -> Exchange:
        """Decode pictures, build prompts and the tokens of choices."""
        shown = [sample.show() for sample in samples]  # type: ignore[misc]
        pictures = shrunk([one.images for one in shown], shares)
        chats = [self._turns(one.turns) for one in shown]
        inputs, texts = processed(partial(chat_inputs, self.processor), samples, chats, pictures)
        names = [f"{s.id}-{i}" for s, one in zip(samples, shown, strict=True) for i in range(len(one.images))]
        targets = [[self._behind(text, c) for c in s.continuations] for text, s in zip(texts, samples, strict=True)]
        bare = [replace(s, images=(), show=None) for s in samples]  # what can go from one process to another
        return Exchange(inputs, bare, names, indices).with_targets(targets)

    def _turns(self, turns: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        mark = getattr(self.processor, "image_token", None)
        if mark:  # a task that writes the placeholder itself would show more pictures than there are
            turns = [{**turn, "content": [_without(part, mark) for part in turn["content"]]} for turn in turns]
        return turns

    def _behind(self, text: str, continuation: str) -> list[int]:
        """Tokens that `continuation` adds to the prompt, with what its first characters do to a tokenizer there."""
        tokenizer = self.processor.tokenizer
        prompt, whole = (tokenizer(t, add_special_tokens=False).input_ids for t in (text, text + continuation))
        return whole[len(prompt) :] or whole[-1:]


def _without(part: Mapping[str, Any], mark: str) -> Mapping[str, Any]:
    return part if part["type"] != "text" else {**part, "text": part["text"].replace(mark, "").strip()}


@dataclass(frozen=True)
class Said:
    """Answers to a batch.

    Attributes:
        responses: per document: [text], or (mean negative log-likelihood of a token in nats, greedy) of each choice.
        first: [B, V] log-probabilities of the token behind the prompt.
    """

    responses: list[list[Any]]
    first: Tensor


def prediction(document: Document, responses: Sequence[Any], likeliest: Callable[..., int] = min) -> str:
    """The generated text, or the likeliest choice; of a single one itself where greedy decoding would say it.

    Args:
        document: The one that was answered.
        responses: Its responses.
        likeliest: min where a response is a loss, max where it is a likelihood.
    """
    if not document.continuations:
        return responses[0]
    best = likeliest(range(len(responses)), key=lambda i: responses[i][0])
    return document.continuations[best].strip() if len(responses) > 1 or responses[best][1] else ""


def respond(
    host: LVLM,
    tokenizer: Any,
    inputs: Mapping[str, Any],
    documents: Sequence[Document],
    targets: Sequence[Sequence[Sequence[int]]],
) -> Said:
    """Answer a batch.

    A choice is scored by feeding its tokens one by one behind the prompt, as if they had been generated: the prompt's
    last token is what a pruner sees, whatever the choice, so that all choices stand behind the same visual tokens.

    Args:
        host: the model, with the engine attached or not.
        inputs: Inputs of the prompts, padded on the left.
        targets: tokens of each document's choices.
    """
    first: Tensor | None = None
    responses: list[list[Any]] = [[] for _ in documents]
    if any(not document.continuations for document in documents):
        texts, first = _generated(host, tokenizer, inputs, documents)
        for document, response, text in zip(documents, responses, texts, strict=True):
            if not document.continuations:
                response.append(text)
    for choice in range(max(len(of) for of in targets)):
        asked = [of[choice] if choice < len(of) else None for of in targets]
        longest = max(len(tokens) for tokens in asked if tokens is not None)
        if first is not None and longest == 1:
            steps = first[None]
        else:
            steps = _forced(host, inputs, [tokens or [0] for tokens in asked], longest)
            first = steps[0] if first is None else first
        for row, tokens in enumerate(asked):
            if tokens is not None:
                responses[row].append(_score(steps[: len(tokens), row], tokens))
    assert first is not None  # every document is generated for or has choices
    return Said(responses, first)


def _generated(
    host: LVLM, tokenizer: Any, inputs: Mapping[str, Any], documents: Sequence[Document]
) -> tuple[list[str], Tensor]:
    longest = max(document.max_new_tokens for document in documents if not document.continuations)
    with first_logits(host) as seen:
        ids = host.generate(**inputs, max_new_tokens=longest)
    start = inputs["input_ids"].shape[1]
    texts = []
    for row, document in enumerate(documents):
        tokens = ids[row, start : start + (document.max_new_tokens or longest)]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        for end in document.until:
            text = text.split(end)[0] if end else text
        texts.append(text.strip())
    return texts, seen[0].float().log_softmax(-1)


def _forced(host: LVLM, inputs: Mapping[str, Any], targets: Sequence[Sequence[int]], longest: int) -> Tensor:
    """[T, B, V] log-probabilities in front of each token of `targets`, which are fed in place of what is likeliest."""
    start = inputs["input_ids"].shape[1]

    def allowed(row: int, ids: Tensor) -> list[int]:
        tokens = targets[row]
        return [tokens[min(len(ids) - start, len(tokens) - 1)]]

    out = host.generate(
        **inputs,
        max_new_tokens=longest,
        prefix_allowed_tokens_fn=allowed,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(list(out.logits)).float().log_softmax(-1)


def _score(steps: Tensor, tokens: Sequence[int]) -> Score:
    wanted = torch.tensor(tokens, device=steps.device)
    loss = -steps.gather(1, wanted[:, None]).mean()
    return float(loss), bool((steps.argmax(-1) == wanted).all())


class Respond(Generating):
    """Answers documents; a row holds all responses of one: [text], or (likelihood, greedy) of each choice."""

    likeliest: Callable[..., int] = staticmethod(min)

    def say(self, inputs: Mapping[str, Any], batch: Exchange) -> tuple[list[dict[str, Any]], Tensor]:  # type: ignore[override]
        """Generate or score, as each document asks."""
        documents: list[Document] = batch.samples  # type: ignore[assignment]
        said = respond(self.host, self.tokenizer, inputs, documents, batch.targets)
        rows = []
        for document, found, targets in zip(documents, said.responses, batch.targets, strict=True):
            if document.continuations:
                found = [self.likelihood(score, tokens) for score, tokens in zip(found, targets, strict=True)]
            rows.append({"prediction": prediction(document, found, self.likeliest), "responses": found})
        return rows, said.first

    def likelihood(self, score: Score, tokens: Sequence[int]) -> Score:
        """A choice's (mean negative log-likelihood of a token in nats, greedy) as the harness counts it."""
        return score
