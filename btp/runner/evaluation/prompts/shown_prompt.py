"""A prompt as a person can read it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

RUN = 4  # equal tokens in a row from which on they are counted, not written


def shown_prompt(tokenizer: Any, ids: Sequence[int]) -> str:
    """What a model is given, special tokens included, with runs of one token (a picture's) written once and counted.

    Args:
        tokenizer: Tokenizer of the model.
        ids: Token ids of one row, without padding.
    """
    parts: list[str] = []
    plain: list[int] = []
    for token, same in groupby(ids):
        count = len(list(same))
        if count < RUN:
            plain += [token] * count
            continue
        parts.append(tokenizer.decode(plain))
        parts.append(f"{tokenizer.decode([token])} x {count} ")
        plain = []
    return " ".join("".join([*parts, tokenizer.decode(plain)]).split())
