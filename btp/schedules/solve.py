"""Solving the keeps of a schedule for a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from btp.core.keep import FIT, fit_times, is_fit
from btp.core.schedule import PART, Schedule, Stage
from btp.schedules.fit import Knob, OutOfReach, fit_counts
from btp.schedules.ladder import falls, ladder, shortest


def solve_fit(
    schedule: Schedule, total: int, num_layers: int, budget_tokens: float, nearest: bool = False, tower: str = "llm"
) -> Schedule:
    """Fill every `keep: fit` and `fit*X`, so that `tokens_avg` comes as near to the budget as whole tokens allow.

    The first fit keeps a share t of the original tokens, each later one half of the one before (t of it
    where t is above one half), and a `fit*X` X times what the first fit keeps; numbers written in the
    schedule bound the fits between them. t is found by bisection, then the counts are rounded and moved by
    single tokens until the error is least. What was reached is `solved.tokens_avg(total, num_layers)`.

    Neighbouring fits in the vision tower are one number, the count behind the last of them: its layers drop a
    constant number each, never more than half of what is alive where tokens are merged (vision.mlp), and
    vision.output gets the rest. A rung or a `fit*X` that would change nothing is left out.

    Args:
        schedule: Schedule with free stages.
        total: visual tokens of a sample before any pruning.
        num_layers: Number of layers of the tower.
        budget_tokens: wanted visual tokens, averaged over its layers.
        nearest: take the nearest that can be reached where the budget cannot.
        tower: "llm", or "vision" of a model without a language model: each layer counts for itself there, and only
            stages inside layers (vision.mlp) are a ladder; others each leave the same share of what is alive.

    Returns:
        The schedule with ints in place of `fit`.

    Raises:
        ValueError: no stage is `fit`, or the stages leave it no room.
        OutOfReach: no counts reach the budget; the message says what the nearest is.
    """
    if not schedule.has_fit:
        raise ValueError(
            f"A budget of {budget_tokens} tokens was given, but no stage says keep: fit, so it has no effect. "
            "Write keep: fit at one stage or more, or drop the budget."
        )
    counts = solve_counts(schedule.stages, total, num_layers, budget_tokens, nearest, tower)
    filled = [replace(s, keep=counts[i]) if is_fit(s.keep) else s for i, s in _left_in(schedule.stages, counts)]
    return Schedule(tuple(filled))


def _left_in(stages: Sequence[Stage], counts: Mapping[int, int | None]) -> list[tuple[int, Stage]]:
    """The stages that are not left out, with their index."""
    return [(i, stage) for i, stage in enumerate(stages) if counts.get(i, 0) is not None]


def solve_counts(
    stages: Sequence[Stage], total: int, num_layers: int, budget: float, nearest: bool, tower: str = "llm"
) -> dict[int, int | None]:
    """Counts of all stages that shorten the prompt, by their index; None for one that would change nothing.

    Args and errors: see `solve_fit`.
    """
    chain = [i for i, stage in enumerate(stages) if stage.moves_prefill]
    for i, stage in enumerate(stages):
        if is_fit(stage.keep) and i not in chain:
            raise ValueError(
                f"schedule.{i}.keep is {stage.keep} at {stage.site} in phase {stage.phase}, where it does not change "
                "the layer-averaged tokens of the prompt. Write a number there."
            )
        if fit_times(stage.keep) is not None and not any(_is_first(s, stage.settings.get(PART)) for s in stages):
            raise ValueError(
                f"schedule.{i}.keep is {stage.keep}, X times what the first stage with keep: fit keeps, but no stage "
                "says keep: fit. Write it at one stage."
            )
    knots = _knots(stages, chain)
    if tower == "vision":
        return _in_tower(stages, _merging(stages, knots), total, num_layers, budget, nearest)
    knobs: list[Knob] = []
    for knot in knots:
        before = total if not knobs else knobs[-1].count or 0
        knobs.append(_knob(stages, knots, knot, total, before))
    counts = fit_counts(knobs, total, num_layers, budget, nearest)
    found: dict[int, int | None] = {}
    alive = total
    for knot, count in zip(knots, counts, strict=True):
        found |= _spread(stages, knot, alive, count)
        alive = alive if count is None else count
    return found


def _knots(stages: Sequence[Stage], chain: Sequence[int]) -> list[list[int]]:
    """Stages that one number decides: neighbouring fits of a vision tower together, every other one alone."""
    knots: list[list[int]] = []
    for i in chain:
        mine = _ladder_of(stages[i])
        if mine is not None and knots and _ladder_of(stages[knots[-1][-1]]) == mine:
            knots[-1].append(i)
        else:
            knots.append([i])
    return knots


def _ladder_of(stage: Stage) -> tuple | None:
    """Names the ladder a stage may be a rung of; None where it stands alone."""
    return ("vision", stage.settings.get(PART)) if stage.keep == FIT and stage.site.tower == "vision" else None


def _knob(stages: Sequence[Stage], knots: list[list[int]], knot: list[int], total: int, before: int) -> Knob:
    last = stages[knot[-1]]
    first = last.site.first_layer
    if not is_fit(last.keep):
        if last.of == "alive" and isinstance(last.keep, float):
            raise ValueError(
                f"schedule.{knot[-1]}.keep is {last.keep} of the tokens alive, while a budget solves other stages, so "
                "that nobody knows how many that will be. Write keep: fit there too, or numbers everywhere."
            )
        return Knob(first, last.count(total))
    times = fit_times(last.keep)
    if times is None:
        merging = last.site.kind == "mlp" and before  # a ladder that ends at vision.output may leave it the rest
        return Knob(first, least=max(1, shortest(before, len(knot))) if merging else 1)
    part = last.settings.get(PART)
    of = next(k for k, other in enumerate(knots) if _is_first(stages[other[-1]], part))
    return Knob(first, times=times, of=of)


def _is_first(stage: Stage, part: object) -> bool:
    return stage.keep == FIT and stage.settings.get(PART) == part


def _spread(stages: Sequence[Stage], knot: list[int], alive: int, count: int | None) -> dict[int, int | None]:
    """The count of a knot on its stages: a ladder over the layers of a tower."""
    if len(knot) == 1 or count is None:
        return dict.fromkeys(knot, count)
    output = stages[knot[-1]].site.kind == "output"
    rungs = knot[:-1] if output else knot
    halving = any(stages[i].site.kind == "mlp" for i in rungs)
    counts = ladder(alive, count, len(rungs), halving, exact=not output) + [count] * output
    if counts[-1] != count:
        raise ValueError(
            f"schedule.{knot[-1]}.keep: fit comes to {count} tokens, but {len(rungs)} layers that each merge half at "
            f"most leave {counts[-1]} of {alive}. Add a stage at vision.output, or raise the budget."
        )
    return {i: c if drops else None for i, c, drops in zip(knot, counts, falls(alive, counts), strict=True)}


def _in_tower(
    stages: Sequence[Stage], knots: list[list[int]], total: int, layers: int, budget: float, nearest: bool
) -> dict[int, int | None]:
    """Counts of stages that all stand between the layers that the budget is a mean over.

    Every free knot leaves the same share of what is alive in front of it, and the last one what comes nearest.
    """
    free = [k for k, knot in enumerate(knots) if stages[knot[-1]].keep == FIT]
    for knot in knots[: free[0]]:
        if is_fit(stages[knot[0]].keep):
            raise ValueError(
                f"schedule.{knot[0]}.keep is {stages[knot[0]].keep}, but the stage with keep: fit that it multiplies "
                "lies behind it. In a vision tower the first of them says keep: fit: write it there, and a multiple at "
                "the others."
            )

    def filled(share: float, last: int | None = None) -> tuple[float, dict[int, int | None]]:
        found: dict[int, int | None] = {}
        alive, first = total, 0
        for k, knot in enumerate(knots):
            stage, merging = stages[knot[-1]], stages[knot[-1]].site.kind == "mlp"
            times = fit_times(stage.keep)
            if not is_fit(stage.keep):
                count = stage.kept(total, alive)
            elif times is not None:
                count = min(max(1, int(times * first + 0.5)), alive)
            else:
                least = shortest(alive, len(knot)) if merging else 1
                wish = round(alive * share) if k != free[-1] or last is None else last
                count = min(max(wish, least, 1), max(alive - 1, 1))
                first = first or count
            found |= _spread(stages, knot, alive, None if is_fit(stage.keep) and count == alive else count)
            alive = count
        return _mean(stages, found, total, layers), found

    (least, _), (most, _) = filled(0.0), filled(1.0)
    grain = (layers - min(stages[i].site.first_of("vision") for i in knots[free[-1]])) / layers / 2
    if not least - grain <= budget <= most + grain:
        near = least if budget < least else most
        if not nearest:
            raise OutOfReach(
                f"A budget of {budget:g} tokens on average cannot be met: with {total} tokens in {layers} layers the "
                f"schedule reaches {least:.2f} to {most:.2f}. The nearest is {near:.2f}, off by "
                f"{abs(near - budget):.2f}. Set budget.share (or budget.tokens) within that, budget.nearest=true to "
                "run at the nearest, or move the stages.",
                budget,
                near,
            )
        budget = near
    below, above = 0.0, 1.0
    for _ in range(40):
        middle = (below + above) / 2
        below, above = (middle, above) if filled(middle)[0] < budget else (below, middle)
    low, high = 0, total  # the least count of the last knot that does not fall short
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if filled(above, middle)[0] < budget else (low, middle)
    return min((filled(above, count) for count in (low, low - 1)), key=lambda found: abs(found[0] - budget))[1]


def _merging(stages: Sequence[Stage], knots: list[list[int]]) -> list[list[int]]:
    """The same, where only stages that merge inside layers are one ladder."""
    return [part for knot in knots for part in ([knot] if stages[knot[0]].site.kind == "mlp" else [[i] for i in knot])]


def _mean(stages: Sequence[Stage], counts: Mapping[int, int | None], total: int, layers: int) -> float:
    """Tokens averaged over the layers of the tower, as they enter each."""
    alive = [total] * layers
    for i, count in counts.items():
        if count is not None:
            first = stages[i].site.first_of("vision")
            alive[first:] = [count] * (layers - first)
    return sum(alive) / layers
