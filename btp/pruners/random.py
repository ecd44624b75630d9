"""Control: keeps random tokens. What is drawn comes from a hash, so it depends on no other row and no other run."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from btp.core.pruner import ScorePruner, Tokens
from btp.core.schedule import Stage
from btp.core.signals import Signals
from btp.ops.mixed_bits import mixed

SALTS = ("content", "none")
PARTS = 4  # of the hidden states, each naming one token


class Random(ScorePruner):
    """Each token's score is a hash of the seed, the site, the row's total, the token's index and a salt.

    No global generator is touched, and a sample keeps the same tokens alone and in a batch.

    Args:
        seed: of the run.
        salt: content | none. `content` draws anew for every picture: it adds the indices of the tokens with
            the largest mean over each quarter of the hidden states, which rounding leaves alone unless two
            are nearly equal. `none` keeps the same places in every picture of one size, and so does `content` at a
            stage of phase both, where tokens show no states and every step is to draw the same.
    """

    def __init__(self, *, seed: int, salt: str) -> None:
        if salt not in SALTS:
            raise ValueError(f"pruner.method.salt is {salt!r}. Choose from: {', '.join(SALTS)}.")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"pruner.method.seed is {seed!r}. Write an integer.")
        self.seed, self.salt = seed, salt

    def reads_states(self, stage: Stage) -> bool:
        """Only where there are any."""
        return not stage.in_decode and self.salt == "content"

    def score(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] random numbers in 0..2^32 - 1."""
        key = int.from_bytes(hashlib.blake2b(f"{self.seed} {stage.site}".encode(), digest_size=4).digest())
        row = mixed(tokens.total.long() ^ key)
        if self.reads_states(stage):
            for index in _landmarks(tokens).unbind(1):
                row = mixed(row ^ index)
        return mixed(mixed(tokens.index ^ row[:, None]))


def _landmarks(tokens: Tokens) -> Tensor:
    """[B, PARTS] original indices of the tokens that stand out in each part of the hidden states."""
    parts = tokens.hidden.detach().float().tensor_split(PARTS, dim=-1)
    means = torch.stack([p.mean(-1) for p in parts if p.shape[-1]], dim=1)  # [B, PARTS, N]
    highest = means.masked_fill(~tokens.valid[:, None], -torch.inf).argmax(2)
    return tokens.index.gather(1, highest)
