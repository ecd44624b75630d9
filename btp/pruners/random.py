"""Control: keeps random tokens. What is drawn comes from a hash, so it depends on no other row and no other run."""

from __future__ import annotations

import hashlib
from math import inf

import torch
from torch import Tensor

from btp.core.cache_pruner import CachePruner
from btp.core.check_settings import check_one_of, check_whole
from btp.core.pruner import ScorePruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signals
from btp.core.slots import Slots, SlotSelection
from btp.core.topk import top_k, untied
from btp.ops.integer_hash import mixed
from btp.pruners.random_slots import RandomSlots

SALTS = ("content", "none")
CHANNELS = 2  # the first of the hidden states, each naming one token
ODD = 1_000_003  # apart from any number of tokens


class Random(ScorePruner):
    """Each token's score is a hash of the seed, the site, the row's total, the token's index and a salt.

    No global generator is touched, and a sample keeps the same tokens alone and in a batch. At llm.cache it keeps
    random slots, so that it may stand in for a composition that works at both.

    Args:
        seed: Seed of the run.
        salt: content | none. `content` draws anew for every picture: it adds the indices of the tokens that are
            largest in each of the first channels of the hidden states, which rounding leaves alone unless two
            are nearly equal. `none` keeps the same places in every picture of one size, and so does `content` at a
            stage that acts in decode, where tokens show no states and every step is to draw the same.
    """

    stage_settings = CachePruner.stage_settings
    in_order = False

    def __init__(self, *, seed: int, salt: str) -> None:
        check_one_of("pruner.method.salt", salt, SALTS)
        check_whole("pruner.method.seed", seed, "an integer", least=-inf)
        self.seed, self.salt = seed, salt

    def reads_states(self, stage: Stage) -> bool:
        """Only where there are any."""
        return not stage.in_decode and self.salt == "content"

    def check(self, schedule: Schedule) -> None:
        """Settings of the cache have no effect elsewhere."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if stage.settings and stage.site.kind != "cache" and not stage.in_decode:
                raise ValueError(
                    f"schedule.{i}.{next(iter(stage.settings))} is set at {stage.site}, but pruner {self.name!r} has "
                    "no such setting there (known: none). Remove it."
                )

    def evict(self, slots: Slots, signals: Signals, stage: Stage) -> SlotSelection:
        """Random slots of a cache."""
        return RandomSlots(seed=self.seed).evict(slots, signals, stage)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Keep the highest numbers of each row."""
        scores = self.score(tokens, signals, stage)
        keep = top_k(untied(scores), tokens.keep_counts(stage), tokens.padding, distinct=True)
        return Selection(keep, scores=scores)

    def score(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] random numbers in 0..2^31 - 1."""
        key = int.from_bytes(hashlib.blake2b(f"{self.seed} {stage.site}".encode(), digest_size=4).digest())
        row = tokens.total.long() + key
        if self.reads_states(stage):
            row += _landmarks(tokens)
        return mixed(tokens.index + mixed(row)[:, None])


def _landmarks(tokens: Tokens) -> Tensor:
    """[B] of the original indices of the tokens that stand out in the first channels, as one number."""
    channels, padding = tokens.hidden[..., :CHANNELS].float(), tokens.padding  # [B, N, CHANNELS]
    if padding is not None:
        channels = channels.masked_fill(~padding[..., None], -torch.inf)
    found = tokens.index.gather(1, channels.argmax(1))
    return torch.add(found[:, 0], found[:, -1], alpha=ODD)
