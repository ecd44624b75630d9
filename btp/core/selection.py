"""A pruner's decision: which tokens stay, and where dropped ones go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class MergePlan:
    """Where tokens go that do not stay on their own.

    A kept token becomes the weighted mean (or sum) of all tokens that target it, and takes over their sizes.

    Attributes:
        target: [B, N] index into N of the kept token each token flows into; itself for a kept one,
            -1 for a token that is dropped without trace.
        weight: [B, N] weight in that mean, >= 0, any scale.
        combine: "mean" divides by the sum of the weights, "sum" does not.
    """

    target: Tensor
    weight: Tensor
    combine: str = "mean"


@dataclass(frozen=True)
class Selection:
    """What a stage decided.

    Attributes:
        keep: [B, K] integer indices into N, unique in each row, and ascending unless `ordered`; rows that keep
            fewer than K are padded with -1 at the end.
        merge: where the others go; None drops them.
        states: [B, K, D] what the kept tokens hold from here on, where that is no weighted mean of tokens (a class
            token, a learned one); None leaves it to `merge`. Finite where padded.
        counts: tokens kept per row, where the method is `adaptive` and decides itself; None follows the stage.
        ordered: the tokens stand in the order of `keep` behind the stage: the j-th takes the j-th smallest of the
            kept tokens' places. Needs positions: renumber.
        scores: [B, N] what the tokens were ranked by, where they were; anything where padded. The engine refuses NaN
            and inf among them. None says nothing of it.
        carried: [B, N] numbers by name of all tokens that were shown; anything where padded. They travel with the
            tokens: stages behind this one find those of kept tokens in `Tokens.carried`; a stage that acts in decode
            finds those of all when it is asked again.
    """

    keep: Tensor
    merge: MergePlan | None = None
    states: Tensor | None = None
    counts: tuple[int, ...] | None = None
    ordered: bool = False
    scores: Tensor | None = None
    carried: Mapping[str, Tensor] = field(default_factory=dict)


def check_shape(selection: object, counts: Sequence[int], method: str, site: object) -> None:
    """Refuse a selection by what is known without reading it: no host sync.

    Args:
        selection: what a pruner returned.
        counts: tokens each row must keep.
        method, site: names for the message.

    Raises:
        TypeError: it is no Selection, or its indices are not integers.
        ValueError: keep is not [B, max(counts)].
    """
    if not isinstance(selection, Selection):
        raise TypeError(
            f"pruner {method!r} returned {type(selection).__name__} at {site}. Return a btp.core.selection.Selection."
        )
    keep, wanted = selection.keep, (len(counts), max(counts, default=0))
    if keep.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"pruner {method!r} kept {keep.dtype} indices at {site}. Return int64.")
    if tuple(keep.shape) != wanted:
        raise ValueError(
            f"pruner {method!r} kept indices of shape {tuple(keep.shape)} at {site}, but the schedule keeps "
            f"{tuple(counts)} tokens of its rows: shape {wanted}. Return exactly tokens.keep_counts(stage), "
            "shorter rows padded with -1."
        )


def is_sound(keep: Tensor, counts: Tensor, alive: Tensor, ordered: bool = False) -> Tensor:
    """Whether every row is ascending, unique, in range, and padded only at its end. No host sync.

    Args:
        keep: [B, K] indices into N.
        counts: [B] tokens each row must keep.
        alive: [B] tokens each row has to choose from.
        ordered: any order is fine, as long as indices are unique.

    Returns:
        A bool scalar on the device of `keep`.
    """
    column = torch.arange(keep.shape[1], device=keep.device)
    real = column < counts[:, None]  # [B, K]
    inside = torch.where(real, (keep >= 0) & (keep < alive[:, None]), keep == -1)
    if ordered:  # padding goes behind the largest index, each with a number of its own
        keep = torch.where(real, keep, alive[:, None] + column).sort(dim=1).values
    rising = (keep[:, 1:] > keep[:, :-1]) | ~real[:, 1:]
    return inside.all() & rising.all()


def unsound_message(method: str, site: object) -> str:
    """What to tell the author of a pruner whose selection `is_sound` refused."""
    return (
        f"pruner {method!r} returned indices at {site} that are not ascending, unique and in range, with -1 "
        "only "
        "behind the count of a row. btp.core.topk.top_k returns them in that form; sort and deduplicate "
        "others."
    )
