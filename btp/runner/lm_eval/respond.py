"""Answers documents of lm-eval's tasks; a choice's score is the sum of its tokens' log-probabilities, as lm-eval's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from btp.runner.harness import respond
from btp.runner.harness.respond import Score


class Respond(respond.Respond):
    """A choice's response is (log-likelihood in nats, greedy)."""

    likeliest: Callable[..., int] = staticmethod(max)

    def likelihood(self, score: Score, tokens: Sequence[int]) -> Score:
        """From the mean over a choice's tokens to their sum."""
        loss, greedy = score
        return -loss * len(tokens), greedy
