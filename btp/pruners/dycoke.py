"""DyCoke: tokens that repeat an earlier frame leave, and each decode step sees those that it looks at."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.check_settings import check_one_of
from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.topk import marked, top_k
from btp.ops.apportion import apportion, best_of_groups
from btp.ops.frames_before import before, distance_before, frame_numbers
from btp.pruners.evs import check_input

WINDOW = 4
SIMILAR = ("whole", "kept")
ATTENTION, SEEN = "attention", "seen"  # what tokens carry from step to step
BACK = (WINDOW, 1, 2, 1)  # frames to go back, by the frame's place in its window


class DyCoke(Pruner):
    """Temporal token merging in front of the decoder, and dynamic pruning of the cache in decode steps.

    At `llm.input`, in each window of four frames the first stays whole. The second is compared with the first, the
    third with the first, the fourth with the third, token by token at the same place, and of each the least alike stay,
    the same share of every frame. What is alike is dropped, as in the released code. Below a quarter of the tokens
    first frames are cut too, by their likeness to the window before. Tokens off the grid (newlines) stay.

    At a stage between layers of phase decode, a step sees the visual tokens that its newest token attends to most in
    the layer before, averaged over heads, unless that attention is like the one of the step before. Nothing leaves the
    cache: a later step may see again what this one does not.

    Args:
        similar: whole | kept: what a step sees whose attention is like that of the step before: all visual tokens (the
            released code, whose choice ends with the step), or those of that step (a choice that stays until it is
            renewed).
        threshold: cosine of the two attentions over the visual tokens from which they count as alike.

    Source: Tao et al. 2024, arXiv:2411.15024, sections 3.1 and 3.2, and its released code.
    """

    def __init__(self, *, similar: str, threshold: float) -> None:
        check_one_of("pruner.method.similar", similar, SIMILAR)
        if not -1.0 <= threshold <= 1.0:
            raise ValueError(f"pruner.method.threshold is {threshold}, a cosine. Write a number from -1 to 1.")
        self.similar, self.threshold = similar, threshold
        self.adaptive = similar == "whole"

    def check(self, schedule: Schedule) -> None:
        """Refuse stages other than the decoder's input, and those that act in decode steps alone."""
        super().check(schedule)
        check_input(schedule, self.name, but=lambda stage: stage.in_decode and stage.phase == "decode")

    def reads_states(self, stage: Stage) -> bool:
        """In front of the decoder."""
        return not stage.in_decode

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """None in front of the decoder, where tokens are compared by themselves; in decode steps one row of attention
        probabilities of the layer before.
        """
        return (Signal("attention", stage.site.previous_layer, "last", "probs"),) if stage.in_decode else ()

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """First frames whole, of the others the same share; in a decode step what its newest token looks at."""
        return self._in_step(tokens, signals, stage) if stage.in_decode else self._in_front(tokens, stage)

    def _in_front(self, tokens: Tokens, stage: Stage) -> Selection:
        distance, place = self._distance(tokens)
        frame, sizes = frame_numbers(tokens.image, tokens.coord, tokens.valid)
        counts = tokens.keep_counts(stage)
        loose = tokens.valid & (frame < 0)
        left = (on_device(counts, frame.device) - loose.sum(1)).clamp(min=0)
        first = torch.zeros_like(sizes).scatter_add(1, frame.clamp(min=0), ((place == 0) & (frame >= 0)).long())
        whole = torch.minimum(left, first.sum(1))
        quota = apportion(first, whole, first)
        quota = quota + apportion(sizes - first, torch.minimum(left - whole, (sizes - first).sum(1)), sizes - first)
        stays = loose | best_of_groups(distance, frame.clamp(min=0), quota, frame >= 0)
        return Selection(top_k(stays.float(), counts, tokens.valid), scores=distance)

    def _in_step(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        attention, counts, before = self._attention(signals, stage), tokens.keep_counts(stage), tokens.carried
        attention = attention.masked_fill(~tokens.valid, 0.0)
        scores, own = attention, None
        if before:
            alike = torch.cosine_similarity(attention, before[ATTENTION], dim=1) >= self.threshold  # [B]
            if self.similar == "kept":
                scores = torch.where(alike[:, None], before[SEEN], attention)
            else:
                there = tokens.valid.sum(1).tolist()
                own = tuple(n if a else k for n, a, k in zip(there, alike.tolist(), counts, strict=True))
        keep = top_k(scores, own or counts, tokens.valid)
        seen = marked(keep, tokens.valid.shape[1]).to(attention)
        return Selection(keep, counts=own, scores=scores, carried={ATTENTION: attention, SEEN: seen})

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """What the choice goes by: the distance to the frame that a token is compared with, or the attention."""
        if stage.in_decode:
            return {ATTENTION: self._attention(signals, stage)}
        return {"distance": self._distance(tokens)[0]}

    def _attention(self, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] mean over heads."""
        return signals[self.needs(stage)[0]].mean((1, 2))

    def _distance(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """[B, N] distance to the frame that each is compared with, and the frame's place in its window."""
        place = tokens.coord[..., 0].clamp(min=0) % WINDOW
        back = on_device(BACK, place.device)[place]
        return distance_before(tokens.hidden, before(tokens.image, tokens.coord, tokens.valid, back)), place
