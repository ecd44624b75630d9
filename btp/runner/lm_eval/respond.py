"""Answers documents of lm-eval's tasks; a choice's score is the sum of its tokens' log-probabilities, as lm-eval's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from btp.runner.evaluation.ways.generate import Generating
from btp.runner.harness.document import Document
from btp.runner.harness.respond import Exchange, respond


class Respond(Generating):
    """A row holds all responses of one document: [text], or (log-likelihood in nats, greedy) of each choice."""

    def say(self, inputs: Mapping[str, Any], batch: Exchange) -> tuple[list[dict[str, Any]], Tensor]:  # type: ignore[override]
        """Generate or score, as each document asks."""
        documents: list[Document] = batch.samples  # type: ignore[assignment]
        said = respond(self.host, self.tokenizer, inputs, documents, batch.targets)
        rows = []
        for document, found, targets in zip(documents, said.responses, batch.targets, strict=True):
            if document.continuations:  # from the mean over a choice's tokens to their sum
                found = [(-loss * len(tokens), greedy) for (loss, greedy), tokens in zip(found, targets, strict=True)]
            rows.append({"prediction": prediction(document, found), "responses": found})
        return rows, said.first


def prediction(document: Document, responses: Sequence[Any]) -> str:
    """The generated text, or the likeliest choice; of a single one itself where greedy decoding would say it."""
    if not document.continuations:
        return responses[0]
    best = max(range(len(responses)), key=lambda i: responses[i][0])
    return document.continuations[best].strip() if len(responses) > 1 or responses[best][1] else ""
