"""What one sample's life has beside stages: what each layer holds of the prompt, and what decode steps computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DENSITY = " .:+#"  # of a strip, from places of which nothing is held to those of which everything is


@dataclass(frozen=True, eq=False)
class HeldLayer:
    """A decoder layer that does not hold all of the prompt.

    Attributes:
        layer: its number, from 0.
        heads: [H, S] bool, tokens of the prompt that each key head holds behind it; H is 1 where all hold the same.
        later: slots that left each head in decode steps, the answer's among them.
        evicts: whether slots left its cache; otherwise tokens left in front of it.
        ranked: what slots were ranked by behind the prompt, "kept 3.1 to 9, dropped 0.2 to 3"; "" where nothing says.
    """

    layer: int
    heads: np.ndarray
    later: tuple[int, ...]
    evicts: bool
    ranked: str = ""

    @property
    def shares(self) -> list[int]:
        """Per token of the prompt, percent of the heads that hold it."""
        return (100 * self.heads.mean(0)).round().astype(int).tolist()

    @property
    def counts(self) -> list[int]:
        """Tokens of the prompt that each head holds."""
        return self.heads.sum(1).tolist()

    @property
    def title(self) -> str:
        """Layer and counts, as "layer 3: 48 of 155 slots a head, held by all heads 20, by some 61, by none 74"."""
        held, total = self.counts, self.heads.shape[1]
        what = "slots a head" if self.evicts else "tokens"
        said = f"layer {self.layer}: {_range(held)} of {total} {what}"
        if len(held) > 1:
            by = self.heads.sum(0)
            parts = (by == len(held)).sum(), ((by > 0) & (by < len(held))).sum(), (by == 0).sum()
            said += ", held by all heads {}, by some {}, by none {}".format(*parts)
        return said


@dataclass(frozen=True)
class StepLife:
    """What one stage that acts in decode did in one forward.

    Attributes:
        step: 0 for the prompt's forward, then the decode step.
        site: Site of the stage.
        computed: rows that the layers behind it computed.
        revived: of these, how many had stayed behind before.
        parked: rows that stayed behind here.
        waiting: states that are held for later.
        back: places in the sequence of those that came back.
    """

    step: int
    site: str
    computed: int
    revived: int
    parked: int
    waiting: int
    back: tuple[int, ...] = ()


def strip(held: Sequence[bool] | np.ndarray, width: int) -> str:
    """The prompt from its first token to its last as at most `width` characters, denser where more of it is held."""
    parts = np.array_split(np.asarray(held, float), max(1, min(width, len(held))))
    last = len(DENSITY) - 1
    return "".join(DENSITY[int(np.ceil(last * part.mean())) if part.mean() < 1 else last] for part in parts)


def ends(listed: Sequence[Any], most: int) -> list[Any]:
    """As many from the beginning as from the end, where there are more."""
    half = most // 2
    return list(listed) if len(listed) <= most else [*listed[:half], *listed[-half:]]


def named(words: Sequence[str], places: Sequence[int], most: int) -> str:
    """Some words of a prompt by their places; those of the answer, which stand behind it, by their number."""
    said = [words[at].strip() or "_" if at < len(words) else f"answer {at - len(words) + 1}" for at in places]
    return ", ".join(said[:most]) + (f" and {len(said) - most} more" if len(said) > most else "")


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
