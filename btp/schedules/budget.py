"""A budget that every sample meets by its own number of visual tokens, whatever other samples there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from btp.core.keep import FIT, is_fit
from btp.core.schedule import Schedule, Stage
from btp.core.site import Site
from btp.schedules.fit import OutOfReach
from btp.schedules.solve import solve_counts

GRAIN = 1000  # parts of a token, where whole ones leave the stages of a small picture no room


@dataclass(frozen=True)
class Budget:
    """Visual tokens averaged over the layers of a tower, by one of three rules.

    Attributes:
        layers: Layers of the tower.
        tokens: as many for every sample.
        share: Share of a sample's own visual tokens.
        like: as many as this solved schedule leaves of the sample.
        tower: "llm", or "vision" of a model without a language model.
    """

    layers: int
    tokens: float | None = None
    share: float | None = None
    like: Schedule | None = None
    tower: str = "llm"

    def asked(self, total: int) -> float:
        """What is asked of a sample with `total` visual tokens; nothing where it has none."""
        if not total:
            return 0.0
        if self.like is not None:
            return self.like.reached(total, self.layers, self.tower)
        if self.tokens is not None:
            return self.tokens
        assert self.share is not None
        return self.share * total

    def wanted(self, total: int) -> float:
        """What is asked of a sample, no more than it has."""
        return min(self.asked(total), total)


@dataclass(frozen=True)
class PerSample:
    """Solves stages for one sample at a time.

    Attributes:
        stages: Stages before their budget.
        budget: Budget that they meet.
    """

    stages: tuple[Stage, ...]
    budget: Budget

    def count(self, site: Site, total: int) -> int:
        """Tokens that the stage at `site` keeps of `total`, at most as many as the stages before it."""
        return _counts(self.stages, self.budget, total)[site]


def fit_each(schedule: Schedule, budget: Budget) -> Schedule:
    """Leave every `keep: fit` and `fit*X` to each sample: solved as by `solve_fit` for its own number of tokens.

    A sample that cannot meet its budget takes the nearest. One that has no more tokens than it is asked for keeps
    all, and in one that has few more, multiples give way. Where whole tokens at every stage have no room, shares
    are rounded.

    Returns:
        The same stages, whose `count(total)` depends on nothing but `total`.
    """
    solver = PerSample(schedule.stages, budget)
    return Schedule(tuple(replace(stage, solver=solver) if stage.is_free else stage for stage in schedule.stages))


@lru_cache(maxsize=1 << 16)
def _counts(stages: tuple[Stage, ...], budget: Budget, total: int) -> dict[Site, int]:
    """Counts of all free stages, by their site."""
    wanted = budget.wanted(total)
    solved = {} if wanted >= total else _solved(stages, budget, total, wanted)
    found: dict[Site, int] = {}
    alive = total
    for i, stage in enumerate(stages):
        if not is_fit(stage.keep):
            alive = stage.kept(total, alive) if stage.moves_prefill else alive
            continue
        count = solved.get(i)
        alive = found[stage.site] = alive if count is None else min(alive, count)
    return found


def _solved(stages: Sequence[Stage], budget: Budget, total: int, wanted: float) -> dict[int, int | None]:
    """Counts by index of the stage, None where it changes nothing; {} where numbers in the schedule leave no room."""
    try:
        return solve_counts(stages, total, budget.layers, wanted, nearest=False, tower=budget.tower)
    except OutOfReach as error:
        if error.nearest < wanted and budget.tokens is not None:  # a sample with few more than asked keeps nearly all
            stages = [replace(s, keep=FIT) if is_fit(s.keep) else s for s in stages]
    except ValueError:  # no room for whole tokens
        pass
    fine = [replace(s, keep=s.keep * GRAIN) if isinstance(s.keep, int) else s for s in stages]
    try:
        parts = solve_counts(fine, total * GRAIN, budget.layers, wanted * GRAIN, nearest=True, tower=budget.tower)
    except ValueError:
        return {}
    return {i: None if n is None else max(1, round(n / GRAIN)) for i, n in parts.items()}
