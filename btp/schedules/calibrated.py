"""Calibrated stages: from curves over the layers to layers at which to prune."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from btp.core.keep import FIT


@dataclass(frozen=True)
class Shift:
    """Peak of the curve of changed tokens, with the layers it reaches over.

    Attributes:
        peak: layer in which most change.
        first, last: the run of layers around it in which at least half as many change.
    """

    peak: int
    first: int
    last: int

    def holds(self, layer: int) -> bool:
        """True where a cut in front of `layer` would fall inside the shift."""
        return self.first < layer <= self.last


def calibrated_stages(
    changed: Sequence[float],
    attention: Sequence[float],
    *,
    stages: int,
    min_gap: int,
    balance: Mapping[str, float],
    withdraw_last: bool,
    deepest_first: int | None = None,
) -> list[dict[str, Any]]:
    """Choose stages from what a calibration set showed.

    Layers come from `shift_layers`. The balance rises from `first` to `last` with the share of the attention
    to the image, between the first and the last stage, that lies behind: the fewer layers still look at the
    image, the less diversity is needed for them, and the more the layer at hand counts. Every stage is
    `keep: fit`, for `solve_fit`.

    Args:
        changed: per decoder layer, visual tokens whose cosine between the layer's input and output is below
            tau, averaged over samples.
        attention: per decoder layer, attention that the prompt's last token gives to visual tokens.
        stages: Number of stages, 1 or more.
        min_gap: least number of layers between two stages.
        balance: `first` and `last`, in [0, 1].
        withdraw_last: the last stage withdraws all visual tokens. Off unless the model is known not to need
            the image late: it destroys text reading where it does.
        deepest_first: the first stage lies no deeper, see `deepest_first`; None sets no limit.

    Returns:
        One mapping per stage, as `Schedule.from_config` reads it: site, keep, balance (none where keep is 0).

    Raises:
        ValueError: the stages do not fit the layers, or settings are out of range.

    Source: Li et al. 2025, arXiv:2505.22038, section 4.3 and appendix 7.6, which leave the rule open between
    before and after a shift and give no formula for the balance; table 7 has 0.6, 0.8, 1.0.
    """
    layers = shift_layers(changed, attention, stages, min_gap, deepest_first)
    weights = _between(attention, layers[: len(layers) - withdraw_last])
    return _as_config(layers, weights, balance, withdraw_last)


def uniform_stages(
    stages: int,
    num_layers: int,
    *,
    balance: Mapping[str, float] | None = None,
    withdraw_last: bool = False,
) -> list[dict[str, Any]]:
    """Stages spread evenly over the layers, without calibration.

    Stage i of n lies in front of layer i L / (n + 1), rounded. The balance rises evenly; without one the
    stages carry none. Other arguments, result and errors are those of `calibrated_stages`.
    """
    _check_stages(stages, num_layers, 1)
    layers = [max(1, (2 * i * num_layers + stages + 1) // (2 * (stages + 1))) for i in range(1, stages + 1)]
    weights = _ramp(stages - withdraw_last)
    return _as_config(layers, weights, balance, withdraw_last)


def deepest_first(share: float, num_layers: int) -> int:
    """The deepest layer at which the first stage may lie under a budget.

    The layers in front of it hold all visual tokens; they may spend three quarters of the budget at most, so
    that a quarter is left for the layers behind.

    Args:
        share: the budget: visual tokens averaged over the layers, as a share of the original ones.

    Returns:
        A layer from 1 on; a budget too small even for 1 is refused when it is solved.
    """
    return max(1, int(0.75 * share * num_layers))


def shift_layers(
    changed: Sequence[float],
    attention: Sequence[float],
    stages: int,
    min_gap: int,
    deepest_first: int | None = None,
) -> list[int]:
    """Layers to prune in front of: immediately before or behind the strongest shifts, never inside one.

    Shifts are taken in order of strength. Each offers the layer it starts with and the layer behind it; of
    those that keep the gap and leave room for the stages still to come, the one that gives the image less
    attention is taken, since its output suffers least from the cut; of equals the earlier. Where shifts run
    out, the layer in which most tokens change comes next among those that keep the gap and lie in no shift,
    and after these among those that lie in one; of equals the one farthest from all stages and both ends,
    then the lowest. Where a budget says how deep the first stage may lie at most, that one is chosen first,
    by the same rules among the layers it leaves.

    Args:
        changed, attention: as `calibrated_stages`.
        stages: Number of stages.
        min_gap: least distance of two.
        deepest_first: As in `calibrated_stages`.

    Returns:
        Ascending 0-based layers, from 1 on: something must come before a cut to look at.

    Raises:
        ValueError: the curves differ in length, or the layers have no room for so many stages.
    """
    L = len(changed)
    if len(attention) != L:
        raise ValueError(
            f"The change curve has {L} layers, the attention curve {len(attention)}. Calibrate again: both "
            "need one number per decoder layer."
        )
    _check_stages(stages, L, min_gap)
    taken: list[int] = []

    def fits(layer: int) -> bool:
        apart = 1 <= layer < L and all(abs(layer - other) >= min_gap for other in taken)
        return apart and _room([*taken, layer], L, min_gap) >= stages

    found = shifts(changed)
    used: list[Shift] = []

    def choose(wanted: int, deepest: int) -> None:
        for shift in [s for s in found if s not in used]:
            sides = (shift.first, shift.last + 1)
            free = [s for s in sides if s <= deepest and fits(s) and not any(o.holds(s) for o in found)]
            if free and len(taken) < wanted:
                taken.append(min(free, key=lambda layer: (attention[layer], layer)))
                used.append(shift)
        while len(taken) < wanted:
            free = [layer for layer in range(1, min(L, deepest + 1)) if fits(layer)]
            outside = [layer for layer in free if not any(shift.holds(layer) for shift in found)]
            apart = {layer: min(abs(layer - other) for other in (0, *taken, L)) for layer in free}
            taken.append(max(outside or free, key=lambda layer: (changed[layer], apart[layer], -layer)))

    if deepest_first is not None:
        choose(1, deepest_first)
    choose(stages, L - 1)
    return sorted(taken)


def shifts(changed: Sequence[float]) -> list[Shift]:
    """Local maxima of the curve with the layers they reach over, strongest first, none overlapping.

    A shift reaches as far as at least half as many tokens change as at its peak; a weaker maximum inside a
    stronger one's reach is part of it.
    """
    L = len(changed)
    claimed: set[int] = set()
    found = []
    for peak in sorted(_maxima(changed), key=lambda layer: (-changed[layer], layer)):
        if peak in claimed:
            continue
        first = last = peak
        while first > 0 and first - 1 not in claimed and 2 * changed[first - 1] >= changed[peak]:
            first -= 1
        while last < L - 1 and last + 1 not in claimed and 2 * changed[last + 1] >= changed[peak]:
            last += 1
        claimed.update(range(first, last + 1))
        found.append(Shift(peak, first, last))
    return found


def _maxima(curve: Sequence[float]) -> list[int]:
    """First layers of the runs of equal value above 0 that are higher than what lies on either side."""
    found = []
    for i, value in enumerate(curve):
        after = next((other for other in curve[i + 1 :] if other != value), -1.0)
        before = curve[i - 1] if i else -1.0
        if value > 0 and before < value and after < value:
            found.append(i)
    return found


def _room(taken: Iterable[int], num_layers: int, min_gap: int) -> int:
    """Most stages that fit, these among them."""
    edges = [1 - min_gap, *sorted(taken), num_layers - 1 + min_gap]
    inside = sum((b - a) // min_gap - 1 for a, b in pairwise(edges))
    return inside + len(edges) - 2


def _check_stages(stages: int, num_layers: int, min_gap: int) -> None:
    if stages < 1:
        raise ValueError(f"stages is {stages}, so nothing is pruned. Set stages to 1 or more, or pruner=none.")
    if min_gap < 1:
        raise ValueError(f"schedule.min_gap is {min_gap}. Set it to 1 layer or more.")
    most = _room([], num_layers, min_gap)
    if stages > most:
        raise ValueError(
            f"stages is {stages}, but {num_layers} layers have room for {most} with "
            f"schedule.min_gap={min_gap}. Set stages to {most} or fewer"
            + (", or lower schedule.min_gap." if min_gap > 1 else ".")
        )


def _ramp(number: int) -> list[float]:
    """From 0 to 1 in even steps; a single one lies in the middle."""
    return [i / (number - 1) for i in range(number)] if number > 1 else [0.5] * number


def _between(attention: Sequence[float], layers: Sequence[int]) -> list[float]:
    """Share of the attention between the first and the last layer that lies before each; even without any."""
    mass = [sum(attention[layers[0] : layer]) for layer in layers] if layers else []
    return [m / mass[-1] for m in mass] if mass and mass[-1] > 0 else _ramp(len(layers))


def _as_config(
    layers: Sequence[int], weights: Sequence[float], balance: Mapping[str, float] | None, withdraw_last: bool
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"site": f"llm.layer.{layer}", "keep": FIT} for layer in layers]
    if withdraw_last:
        if len(layers) < 2:
            raise ValueError(
                "schedule.withdraw_last withdraws all visual tokens at the only stage, so nothing is left "
                "for the budget to solve. Set stages to 2 or more, or take pruner=withdraw."
            )
        found[-1]["keep"] = 0
    if balance is not None:
        first, last = _ends(balance)
        for stage, weight in zip(found, weights, strict=False):
            stage["balance"] = round(first + (last - first) * weight, 2)
    return found


def _ends(balance: Mapping[str, float]) -> tuple[float, float]:
    if set(balance) != {"first", "last"} or not 0 <= balance["first"] <= balance["last"] <= 1:
        raise ValueError(
            f"schedule.balance is {dict(balance)}. Give first and last with 0 <= first <= last <= 1, as "
            "{first: 0.6, last: 1.0}."
        )
    return float(balance["first"]), float(balance["last"])
