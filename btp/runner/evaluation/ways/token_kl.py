"""Per-token KL divergence of a method's answer from the unpruned one, as long as both say the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LIKELIEST = 64  # of the unpruned model's tokens in each step; all others count as one


def likeliest(logits: Tensor) -> Tensor:
    """[B, 2, K] the likeliest tokens and their log-probabilities, of logits [B, V]; the likeliest first."""
    found = logits.float().log_softmax(-1).topk(min(LIKELIEST, logits.shape[-1]))
    return torch.stack([found.indices.float(), found.values], dim=1)


class Drift:
    """Divergence of each forward's distribution from that of the unpruned answer's same token.

    Both are weighed behind the same tokens: from the first token on that the answers do not share, nothing is compared.

    Args:
        unpruned: Likeliest tokens of each row, [T, 2, K] as `likeliest` made it in each of its forwards.
    """

    def __init__(self, unpruned: Sequence[np.ndarray], device: torch.device) -> None:
        self._lengths = [len(row) for row in unpruned]
        most = max(self._lengths)
        rows = [torch.from_numpy(np.pad(row, ((0, most - len(row)), (0, 0), (0, 0)))) for row in unpruned]
        self._tokens, self._unpruned = torch.stack(rows).to(device).unbind(2)  # [B, T, K] each
        self._same = torch.ones(len(rows), dtype=torch.bool, device=device)
        self._found: list[Tensor] = []
        self._shared: list[Tensor] = []

    def see(self, logits: Tensor) -> None:
        """A forward's [B, V]."""
        step = len(self._found)
        if step >= self._tokens.shape[1]:
            return
        tokens, unpruned = self._tokens[:, step].long(), self._unpruned[:, step]
        own = logits.float().log_softmax(-1).gather(1, tokens)
        weight = unpruned.exp()
        rest, own_rest = (1.0 - weight.sum(1)).clamp(min=0.0), (1.0 - own.exp().sum(1)).clamp(min=1e-9)
        beyond = torch.where(rest > 1e-6, rest * (rest.clamp(min=1e-9) / own_rest).log(), 0.0)
        self._found.append((weight * (unpruned - own)).sum(1) + beyond)
        self._shared.append(self._same)
        self._same = self._same & (logits.argmax(-1) == tokens[:, 0])

    def means(self, lengths: Sequence[int]) -> list[float]:
        """Nats per token of each row, over its first tokens: `lengths` of its own answer, up to its end."""
        found, shared = torch.stack(self._found, 1).tolist(), torch.stack(self._shared, 1).tolist()
        rows = zip(found, shared, lengths, self._lengths, strict=True)
        kept = [[kl for kl, same in list(zip(f, s, strict=True))[: min(n, m)] if same] for f, s, n, m in rows]
        return [sum(row) / len(row) for row in kept]
