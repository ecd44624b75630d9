"""Refuses NaN and inf in states, signals and scores of real tokens, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from btp.core.pruner import Tokens
from btp.core.signals import Signal
from btp.core.site import Site
from btp.engine.hooks.deferred_checks import Doubts, Read, whole

WORDS = ("", "inf", "NaN", "nothing but -inf")  # of what is found in a row
INF, NAN, BLIND = 1, 2, 3
_SIDES = ("update", "change", "rotary")  # [2, B, ...]


def codes(worst: list[float]) -> list[int]:
    """Numbers of `WORDS`, of rows by their worst value."""
    return [NAN if x != x else INF if x == math.inf else BLIND if x == -math.inf else 0 for x in worst]


class NotFinite(ValueError):
    """What a pruner would rank is not finite.

    Attributes:
        rows: Rows of the batch, in which it was found; empty where only pictures are known.
    """

    def __init__(self, text: str, rows: tuple[int, ...]) -> None:
        super().__init__(text)
        self.rows = rows


class Finite:
    """Checks that what a pruner is shown, and what it returns, is finite.

    Padding may hold anything. -inf is one of the logits that a mask forbids, as long as some token of the row may be
    looked at.

    Args:
        doubts: collects the checks.
    """

    def __init__(self, doubts: Doubts) -> None:
        self._doubts = doubts

    def shown(
        self, name: str, site: Site, tokens: Tokens, seen: Mapping[Signal, Tensor], rows_valid: Mapping[Signal, Tensor]
    ) -> None:
        """Check states and signals in front of a decision of pruner `name` at `site`.

        Raises:
            NotFinite: something is not finite and lies on the CPU; on a device this is said by `Doubts.settle`.
        """
        for signal, value in seen.items():
            worst, read = _of_signal(signal, value, tokens, site, rows_valid.get(signal))
            self._refuse(worst, site, lambda word, rows, what=str(signal): _shown(what, word, name, site, rows), read)
        worst = _worst(tokens.hidden, tokens.valid[..., None])
        self._refuse(worst, site, lambda word, rows: _shown(f"hidden at {site}", word, name, site, rows))

    def slots(self, name: str, site: Site, valid: Tensor, seen: Mapping[Signal, Tensor]) -> None:
        """Check signals over the slots of a cache, of which `valid` [B, Hkv, n] hold a token; raises as `shown`."""
        for signal, value in seen.items():
            places = None if signal.kind == "attention" else valid[..., None]
            worst = _worst(value, places)
            self._refuse(worst, site, lambda word, rows, what=str(signal): _shown(what, word, name, site, rows))

    def scores(self, name: str, site: Site, scores: Tensor, valid: Tensor) -> None:
        """Check [B, N] scores that the pruner ranked by; raises as `shown`."""
        self._refuse(
            _worst(scores, valid),
            site,
            lambda word, rows: (
                f"pruner {name!r} scored tokens with {word} at {site}, {rows}, which would be ranked at random. Scores "
                "are finite; give a token that is to go first a low one, as torch.finfo(scores.dtype).min."
            ),
        )

    def states(self, name: str, site: Site, states: Tensor, keep: Tensor) -> None:
        """Check [B, K, D] states that kept tokens get; raises as `shown`."""
        self._refuse(
            _worst(states, (keep >= 0)[..., None]),
            site,
            lambda word, rows: (
                f"pruner {name!r} made states with {word} for tokens that stay at {site}, {rows}. Look at the weights "
                "of its MergePlan, or at the states of its Selection."
            ),
        )

    def _refuse(self, worst: Tensor | None, site: Site, say: Callable[[str, str], str], read: Read = codes) -> None:
        if worst is None:
            return

        def error(found: list[int]) -> NotFinite:
            rows, pictures = tuple(row for row, code in enumerate(found) if code), site.tower == "vision"
            name = ("picture" if pictures else "row") + ("s" if len(rows) > 1 else "")
            numbers = ", ".join(map(str, rows))
            text = say(WORDS[max(found)], f"in {name} {numbers} of the batch, counted from 0")
            return NotFinite(text, () if pictures else rows)

        self._doubts.refuse(worst, error, read)


def _shown(what: str, word: str, name: str, site: Site, rows: str) -> str:
    advice = "The model overflowed before the cut: try another dtype, or look at the input."
    if word == WORDS[BLIND]:
        advice = "The mask lets none of the tokens be looked at: move the stage behind another layer."
    return f"{what} holds {word}, which pruner {name!r} would rank at random at {site}, {rows}. {advice}"


def _of_signal(
    signal: Signal, value: Tensor, tokens: Tokens, site: Site, real: Tensor | None
) -> tuple[Tensor | None, Read]:
    """[B] the worst of a signal in each row of the tokens, as `_worst` has it, and how it is read."""
    if _is_fine(value):
        return None, codes
    x = value.movedim(1, 0) if signal.kind in _SIDES else value
    if signal.kind == "projected":  # frames of all rows
        return _worst(value.flatten(0, 1)[None], None).expand(len(tokens.valid)), codes  # type: ignore[union-attr]
    own = signal.site.tower == site.tower  # seen per picture otherwise, over tokens that may be gone
    alive = tokens.valid if own and signal.kind != "pixels" else None
    if signal.kind in ("attention", "preview"):  # [B, H, R, N]
        places = None if alive is None else alive[:, None, None]
        if real is not None:
            asked = real.to(x.device)[:, None, :, None]
            places = asked if places is None else places.to(x.device) & asked
    else:
        places = real if signal.rows is not None else alive
        if places is not None:
            axis = 1 if signal.kind == "hidden" else 2
            places = places.view(len(places), *[1] * (axis - 1), -1, *[1] * (x.dim() - axis - 1))
    worst = _worst(x, places, signal.form == "logits")
    return (worst, codes) if own or worst is None or tokens.picture is None else (_of_pictures(worst, tokens), whole)


def _of_pictures(worst: Tensor, tokens: Tokens) -> Tensor:
    """[B] the code of any picture that a row's tokens belong to, of the worst [P] by picture."""
    assert tokens.picture is not None
    found = torch.where(worst.isnan(), NAN, (worst == torch.inf) * INF + (worst == -torch.inf) * BLIND)
    picture = tokens.picture.to(found.device)
    mine = found[picture.clamp(min=0)].masked_fill(picture < 0, 0)
    return mine.amax(1) if mine.shape[1] else mine.sum(1)


def _worst(x: Tensor, places: Tensor | None, masked: bool = False) -> Tensor | None:
    """[B] one value of each row of [B, ...] that tells whether all of them are finite: NaN where there is one, else the
    largest. A few operators, as a GPU is asked for each of them in every stage.

    Args:
        places: bool, of the dimensions of `x`, where it counts; None for everywhere.
        masked: -inf is allowed, but not at every place of a row, which has -inf then; otherwise the largest magnitude.

    Returns:
        None where the values lie on the CPU, where reading is free, and all are finite.
    """
    if _is_fine(x):
        return None
    if places is None:
        return (x if masked else x.abs()).flatten(1).amax(1)
    hidden = ~places.to(x.device)
    worst = (x.masked_fill(hidden, -torch.inf) if masked else x.masked_fill(hidden, 0).abs()).flatten(1).amax(1)
    return worst.masked_fill(hidden.flatten(1).all(1), 0) if masked else worst


def _is_fine(x: Tensor) -> bool:
    """Whether it is known at once that all is finite."""
    return not x.is_floating_point() or not x.numel() or (x.device.type == "cpu" and bool(x.isfinite().all()))
