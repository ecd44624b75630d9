"""Budget solver: solves the free keeps of a schedule, and moves its stages where counts alone are not enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from btp.core.host import PROMPT_TOKENS, Host
from btp.core.pruner import Pruner
from btp.core.schedule import PART, Schedule, Stage
from btp.schedules.budget import Budget, fit_each
from btp.schedules.fit import OutOfReach
from btp.schedules.place import lies_between, move_stages
from btp.schedules.solve import solve_fit

FREE_LAYER = "budget"
TOLERANCE = 0.02  # share by which the tokens reached may differ from those asked without a word


@dataclass(frozen=True)
class Facts:
    """What schedules are solved against.

    Attributes:
        layers: decoder layers; of a model without a language model those of its vision tower.
        total: visual tokens of a sample before any pruning; of samples that differ, their mean, rounded.
        vision_layers: layers of the vision tower up to and with the one the projector reads; 0 where none can be cut.
        pictures: Most pictures of a sample, tiles counted one by one; stages in the vision tower count tokens of each.
        totals: Totals of every sample with a picture, in any order; () where all have `total`.
        unequal: samples differ, so that each is solved for its own total.
        tower: over whose layers tokens are averaged: "llm", or "vision" without a language model.
        unit: what the tokens are called.
        tower_layers: layers of the vision tower that can be looked at; 0 where none can.
    """

    layers: int
    total: int
    vision_layers: int = 0
    pictures: int = 1
    totals: tuple[int, ...] = ()
    unequal: bool = False
    tower: str = "llm"
    unit: str = "visual tokens"
    tower_layers: int = 0

    @property
    def most(self) -> int:
        """Visual tokens of the largest sample."""
        return max(self.totals, default=self.total)

    def mean(self, of: Callable[[int], float] = float) -> float:
        """Mean over the samples of what `of` makes of a total."""
        counted = Counter(self.totals or (self.total,))
        return sum(of(total) * times for total, times in sorted(counted.items())) / counted.total()

    def reached(self, schedule: Schedule) -> float:
        """Layer-averaged visual tokens that a solved schedule leaves, as a mean over the samples."""
        return self.mean(lambda total: schedule.reached(total, self.layers, self.tower))


def passing(pixels: Tensor) -> int:
    """Pictures of pixel_values that pass the vision tower: tiles one by one, without those that only fill a batch.

    Args:
        pixels: [P, 3, height, width], or [pictures, tiles, 3, height, width] where fewer tiles are filled with zeros.
    """
    if pixels.dim() < 5:
        return pixels.shape[:-3].numel()
    return int((pixels != 0).flatten(2).any(-1).sum())


def pictures_of(inputs: Mapping[str, Any]) -> int:
    """Pictures that pass the vision tower for a row of a model's inputs, tiles counted one by one."""
    pixels = inputs.get("pixel_values")
    if pixels is None or "input_ids" not in inputs:
        return 1
    return max(1, passing(pixels) // len(inputs["input_ids"]))


def facts_of(host: Host, totals: int | Sequence[int], pictures: int = 1, unequal: bool = False) -> Facts:
    """What a model brings to the facts, with what its task does.

    Args:
        totals: visual tokens of each sample that has any, or of all of them.
        unequal: solve each sample for its own total, whether these differ or not.
    """
    tower = host.towers.get("vision")
    layers = 0 if tower is None or tower.feature is None else tower.feature + 1
    averaged = "llm" if "llm" in host.towers else "vision"
    depth = len(host.towers[averaged].layers)
    seen = len(tower.layers) if tower is not None and tower.pooled else layers
    own = {"tower": averaged, "unit": host.unit, "tower_layers": seen}
    if isinstance(totals, int):
        return Facts(depth, totals, layers, pictures, unequal=unequal, **own)
    mean, differ = round(sum(totals) / len(totals)), unequal or len(set(totals)) > 1
    return Facts(depth, mean, layers, pictures, tuple(totals), differ, **own)


@dataclass(frozen=True)
class Planned:
    """A schedule before its budget.

    Attributes:
        schedule: stages, with `fit` where a budget is to be solved.
        movable: which stages a budget may move towards the input.
        any_layer: the layer of the only stage is what the budget decides.
    """

    schedule: Schedule
    movable: Callable[[Stage], bool] = lambda stage: False
    any_layer: bool = False

    @property
    def free(self) -> bool:
        """True where a budget has something to decide."""
        return self.any_layer or self.schedule.has_fit


@dataclass(frozen=True)
class Met:
    """A schedule and its budget, both in visual tokens averaged over the decoder layers and over the samples.

    Attributes:
        schedule: solved.
        asked: the budget; None where the schedule leaves nothing to decide.
        reached: what the schedule comes to.
        moved: layers by which stages were moved towards the input.
        missed: the budget is out of reach, and this is the nearest.
        budget: what each sample is asked; None as `asked`.
    """

    schedule: Schedule
    asked: float | None
    reached: float
    moved: int = 0
    missed: bool = False
    budget: Budget | None = None


def budget_of(config: Mapping[str, Any], facts: Facts, in_cache: bool = False) -> Budget | None:
    """The run's budget of tokens; None where none is set.

    Args:
        in_cache: `budget.slots` is for stages in the K/V cache.
    """
    tokens, share, slots = (config["budget"].get(key) for key in ("tokens", "share", "slots"))
    if slots is not None and facts.unit == PROMPT_TOKENS and not in_cache:
        return Budget(facts.layers, tokens=slots - 1, tower=facts.tower)  # the last token of a prompt has one too
    if tokens is None and share is None:
        return None
    rule = {"tokens": tokens} if tokens is not None else {"share": share}
    return Budget(facts.layers, tower=facts.tower, **rule)


def wanted_budget(config: Mapping[str, Any], planned: Planned, facts: Facts, in_cache: bool = False) -> Budget | None:
    """The run's budget of tokens; None where the schedule leaves nothing to decide.

    Args:
        in_cache: the budget has an effect on stages in the K/V cache, which are solved already.

    Raises:
        ValueError: a budget was asked for and has no effect, or is needed and missing.
    """
    slots = config["budget"].get("slots")
    if slots is not None and not in_cache and facts.unit != PROMPT_TOKENS:
        raise ValueError(
            f"budget.slots is {slots:g}, but pruner {config['pruner']['name']!r} has no stage in the K/V cache. Set "
            "budget.tokens or budget.share, or choose a cache method, as snapkv."
        )
    if not planned.free:
        words = config["command"].split()
        keys = tuple(f"budget.{key}=" for key in ("tokens", "share", "slots"))
        asked = [w for w in words if w.startswith(keys) and not w.endswith("=null")]
        if asked and not in_cache:
            layer = f", or set pruner.layer={FREE_LAYER}" if config["pruner"].get("layer") is not None else ""
            raise ValueError(
                f"{asked[0]} has no effect: every stage of pruner {config['pruner']['name']!r} says itself how much it "
                f"keeps. Drop the budget, or write keep: fit{layer}."
            )
        return None
    budget = budget_of(config, facts, in_cache)
    if budget is None:
        raise ValueError("The schedule has keep: fit, but no budget is set. Set budget.share or budget.tokens.")
    return budget


def meet(
    planned: Planned, facts: Facts, budget: Budget | None, method: Pruner | None, *, move: bool, nearest: bool
) -> Met:
    """Solve a schedule for a budget.

    Where no counts meet it and `move` is set, the movable stages in front of decoder layers (of a model without a
    language model: of its vision tower's) go towards the input together, layer by layer, as far as it takes and the
    method accepts. Where they stand is one for all samples; how many tokens stay is solved for each sample's own total
    where these differ.

    Args:
        planned: what to solve.
        facts: Facts of model and task.
        budget: what each sample is asked; None where nothing is free.
        method: says whether it accepts stages where they have come to.
        move: stages may move.
        nearest: take the nearest that can be reached.

    Raises:
        ValueError: the schedule does not fit the model.
        OutOfReach: the budget cannot be met, and nearest is not set.
    """
    check_towers(planned.schedule, facts)
    planned.schedule.check_sites(facts.layers, facts.layers if facts.tower == "vision" else None)
    if budget is None:
        schedule = _bare(planned.schedule)
        schedule.tokens_avg(facts.most, facts.layers, facts.tower)  # refuses more than are alive
        return Met(schedule, None, facts.reached(schedule))
    if planned.any_layer:
        return _meet_by_layer(planned.schedule, facts, budget, nearest)
    asked = facts.mean(budget.asked)
    best: tuple[Met, OutOfReach] | None = None
    for by in range(_deepest(planned, facts.tower) + 1 if move else 1):
        try:
            schedule = move_stages(planned.schedule, by, planned.movable, facts.tower) if by else planned.schedule
            solved, error = _solved(schedule, facts, budget)
            if by and method is not None:
                accept(method, solved, planned.schedule)
        except ValueError:
            if not by:
                raise
            break
        reached = facts.reached(solved)
        met = Met(solved, asked, reached, by, error is not None, budget)
        if error is None:
            return met
        if best is None or abs(reached - error.budget) < abs(best[0].reached - error.budget) - 1e-9:
            best = met, error
        if error.nearest <= error.budget:
            break  # moving on would take still more away
    assert best is not None  # the first round raises or sets it
    if not nearest:
        raise best[1].of(facts.unit)
    return best[0]


def _solved(schedule: Schedule, facts: Facts, budget: Budget) -> tuple[Schedule, OutOfReach | None]:
    """Solved for the budget, or for the nearest and why."""
    in_tower = facts.tower == "llm" and any(stage.is_free and stage.site.tower == "vision" for stage in schedule)
    if facts.unequal or (in_tower and facts.pictures > 1):
        return _solved_each(schedule, facts, budget, in_tower)
    asked = budget.asked(facts.total)
    try:
        solved, why = solve_fit(schedule, facts.total, facts.layers, asked, tower=facts.tower), None
    except OutOfReach as error:
        solved, why = solve_fit(schedule, facts.total, facts.layers, asked, True, facts.tower), error
    return _bare(solved), why


def _solved_each(
    schedule: Schedule, facts: Facts, budget: Budget, in_tower: bool
) -> tuple[Schedule, OutOfReach | None]:
    """The same where each sample is solved for its own total, and a picture in the vision tower for its own."""
    asked, most = facts.mean(budget.asked), facts.most
    if in_tower and budget.share is None:  # a picture does not know what is asked of the prompt it will stand in
        budget = Budget(facts.layers, share=min(1.0, asked / facts.mean()), tower=facts.tower)
    solve_fit(schedule, most, facts.layers, budget.wanted(most), True, facts.tower)  # refuses stages without any room
    solved = _bare(fit_each(schedule, budget))
    reached, wanted = facts.reached(solved), facts.mean(budget.wanted)
    beyond = wanted >= facts.mean()
    if not beyond and abs(reached - wanted) <= max(TOLERANCE * wanted, 0.5):
        return solved, None
    least = min(facts.totals, default=most)
    first = next(s.site.first_of(facts.tower) for s in schedule if s.moves_prefill)
    far = "would keep all of them" if beyond else f"reaches {reached:.2f}"
    change = "Lower" if beyond or reached < wanted else "Raise"
    return solved, OutOfReach(
        f"A budget of {asked:g} visual tokens on average cannot be met: with the first cut at layer {first} of "
        f"{facts.layers} and {least} to {most} tokens a sample the schedule {far}. The nearest is {reached:.2f}, off "
        f"by {abs(reached - asked):.2f}. {change} budget.share (or budget.tokens), set budget.nearest=true to run at "
        "the nearest, or move the stages.",
        wanted,
        reached,
    )


def _bare(schedule: Schedule) -> Schedule:
    """Without the name of a part where everything leaves, so that no part has anything to say there."""
    return Schedule(
        tuple(
            replace(stage, settings={k: v for k, v in stage.settings.items() if k != PART})
            if stage.withdraws_all
            else stage
            for stage in schedule
        )
    )


def check_towers(schedule: Schedule, facts: Facts) -> None:
    """Refuse a stage in a language model where there is none.

    Raises:
        ValueError: says which.
    """
    for i, stage in enumerate(schedule):
        if facts.tower == "vision" and (stage.site.tower == "llm" or stage.site.kind == "output"):
            raise ValueError(
                f"schedule.{i}.site is {stage.site}, but this model has no language model: its tokens can leave "
                f"between the layers of its vision tower alone. Set pruner.schedule.{i}.site to vision.layer.N where "
                "the method can work there, or choose another pruner."
            )


def accept(method: Pruner, schedule: Schedule, before: Schedule) -> None:
    """Let a method check its stages behind a solve.

    Args:
        method: says what it needs there.
        schedule: moved and solved.
        before: the same where the yaml has it.

    Raises:
        ValueError: it cannot work at one of them, or has nothing to look at where it had before.
    """
    method.check(schedule)
    for stage in schedule:
        for signal in () if stage.withdraws_all else method.needs(stage):
            if not signal.ready_for(stage.site):
                raise ValueError(f"pruner {method.name!r} asks for {signal}, which {stage.site} comes before.")
    if _blind(method, schedule) > _blind(method, before):
        raise ValueError(f"pruner {method.name!r} has nothing to look at at {schedule[0].site}.")


def _blind(method: Pruner, schedule: Schedule) -> int:
    """Stages that choose without a signal."""
    return sum(not stage.withdraws_all and not method.needs(stage) for stage in schedule)


def _deepest(planned: Planned, tower: str) -> int:
    """Layers that the deepest movable stage has in front of it."""
    mine = [stage for stage in planned.schedule if lies_between(stage, tower) and planned.movable(stage)]
    return max((stage.site.layer for stage in mine), default=0)


def _meet_by_layer(schedule: Schedule, facts: Facts, budget: Budget, nearest: bool) -> Met:
    """Choose the layer of the only stage, from 1 on: without any layer the picture would never be seen."""
    met, asked, total = [], facts.mean(budget.asked), facts.mean()
    for layer in range(1, facts.layers):
        entry = schedule[0].to_config() | {"site": f"{facts.tower}.layer.{layer}"}
        solved = Schedule.from_config([entry])
        met.append(Met(solved, asked, facts.reached(solved), budget=budget))
    best = min(met, key=lambda found: abs(found.reached - asked))
    gap, grain = abs(best.reached - asked), total / facts.layers / 2
    if gap > grain and not nearest:
        raise OutOfReach(
            f"A budget of {asked:g} {facts.unit} on average cannot be met: with all {total:g} tokens up to one of "
            f"{facts.layers} layers and none behind it, {met[0].reached:.2f} to {met[-1].reached:.2f} are reached. The "
            f"nearest is {best.reached:.2f}, off by {gap:.2f}. Change the budget.",
            asked,
            best.reached,
        )
    return replace(best, missed=gap > grain)
