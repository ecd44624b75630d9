"""Searches a strategy for VFlowOpt on the calibration set: its settings, and what its stages keep.

Source: Yang et al. 2025, arXiv:2508.05211, section 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from torch.utils.data import DataLoader

from btp.core.keep import FIT
from btp.core.pruner import Pruner
from btp.core.schedule import Schedule, Stage
from btp.models.loading.load import Loaded
from btp.results.shapes import TEXT, Shape, either, keys, listed, number, one_of, whole
from btp.results.shipped import lacking
from btp.runner.calibration.artifact import PACKAGES, artifact_named, made, origin
from btp.runner.calibration.reference import Kept, Reference, run_reference, similarity
from btp.runner.calibration.search_artifact import (
    ADVICE,
    WHAT,
    find_search,
    found_settings,
    found_stages,
    home,
    search_identity,
)
from btp.runner.devices import Machine
from btp.runner.evaluation.answer_store import Answers
from btp.runner.identity import digest
from btp.runner.targets import make
from btp.schedules.place import place_stages

if TYPE_CHECKING:
    from btp.schedules.meet import Facts

SHAPE = keys(
    method=keys(True, t=number(), m=number(), alpha=number()),
    schedule=listed(keys(site=TEXT, keep=either("a share or fit", number(0, 1), one_of(FIT))), 1),
    budget_tokens=number(0),
    total=whole(1),
)
FOUND = ("t", "m", "alpha")  # settings of the method
SPACE = ("first", "second", *FOUND)
METHOD = "pruner.method"
_NUMBER = Shape("a number as text", lambda value: isinstance(value, str) and value.isdecimal())
TRIAL = keys(
    sample=_NUMBER, value=number(), counts=listed(whole(1), 3, 3), **dict.fromkeys(SPACE, number())
)  # a row of the store


def search_vflowopt(
    config: Mapping[str, Any],
    loaded: Loaded,
    checkpoint: str,
    store: Path,
    machine: Machine,
    facts: Facts,
    budget_tokens: float,
    pruner: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Search t, m, alpha and the stages' counts for a budget, or find what an earlier run found.

    Every strategy that is tried meets the budget: stage 1 keeps a share, stage 2 a share of that, and stage 3 what the
    budget leaves; where that were more than stage 2 keeps, both keep the same. A search goes on where it was killed.

    Args:
        config: Config of the run, resolved.
        checkpoint: identity of the model.
        store: Folder of the artifacts that runs share.
        facts: decoder layers, and the visual tokens that the budget refers to.
        budget_tokens: visual tokens averaged over the decoder layers.
        pruner: config of the pruner, where it is not the run's own.

    Returns:
        The artifact: `method` and `schedule` go into the pruner's config, see `with_strategy`; its last stage is left
        to the budget. `found` is the best strategy, `trials` are all.

    Raises:
        ValueError: settings out of range, a budget that leaves nothing to search, an artifact of something else.
    """
    if fault := lacking("pruner.strategy=search", "optuna", "optuna"):
        raise ValueError(fault)
    from btp.runner.calibration.trials import Trials

    pruner = pruner or dict(config["pruner"])
    settings, share = pruner["search"], budget_tokens / facts.total
    stages = _three_stages(pruner, facts.layers)
    if not 0 < share < 1:
        raise ValueError(
            f"A budget of {budget_tokens:g} of {facts.total} visual tokens leaves no strategy to search. Lower the "
            "budget, or set pruner.strategy=given."
        )
    missing = [name for name in SPACE if name not in settings["space"]]
    if missing:
        raise ValueError(f"pruner.search.space lacks {', '.join(missing)}. Give each its lowest and highest value.")

    def search() -> dict[str, Any]:
        alpha = max(settings["space"]["alpha"], key=abs)  # one that asks for pixels, where any does
        pruned = make(dict(pruner["method"]) | {"alpha": alpha}, Pruner, METHOD)
        begin = partial(Reference, loaded, watched=pruned)
        module = run_reference(config, loaded, settings["samples"], machine, begin, "search: unpruned")
        space = _space(settings["space"], share, module.kept, pruned)
        rows = Answers(home(store, identity).with_suffix(""), shape=TRIAL)
        if not config["resume"]:
            rows.clear()
        trials = Trials(space, settings["optimiser"], settings["startup"], settings["seed"], rows)

        def attempt() -> None:
            params = trials.propose()
            counts = strategy_counts(params["first"], params["second"], stages, facts, budget_tokens)
            method = make(dict(pruner["method"]) | {name: params[name] for name in FOUND}, Pruner, METHOD)
            schedule = Schedule.from_config(_stages(stages, counts, facts.total))
            value = similarity(loaded.host, module.kept, method, schedule)
            trials.add(params, value, counts=list(counts))

        left = settings["startup"] + settings["evaluations"] - len(trials)
        _repeat(attempt, left, machine)
        best = trials.best
        return {
            **origin(config, loaded, checkpoint, identity),
            "kind": "vflowopt",
            "search": dict(settings) | {"space": {name: list(ends) for name, ends in space.items()}},
            "budget_tokens": float(budget_tokens),
            "total": facts.total,
            "found": dict(best),
            "method": {name: best[name] for name in FOUND},
            "schedule": _stages(stages, best["counts"], facts.total, FIT),
            "trials": trials.found,
            **made((*PACKAGES, "optuna")),
        }

    identity = digest(
        "vflowopt",
        search_identity(__name__, config, checkpoint, pruner, settings),
        stages,
        round(share, 9),
        facts.total,
        facts.layers,
    )
    artifact = find_search("vflowopt", settings, identity, SHAPE, config, checkpoint, store, machine, search)
    path = Path(settings["artifact"]) if settings["artifact"] is not None else home(store, identity)
    checked(artifact, path, facts.layers)
    if (artifact["budget_tokens"], artifact["total"]) != (budget_tokens, facts.total):
        raise ValueError(
            f"the search artifact {path} was made for a budget of {artifact['budget_tokens']:g} of "
            f"{artifact['total']} visual tokens, but this run's budget is {budget_tokens:g} of {facts.total}. {ADVICE}"
        )
    return artifact


def checked(artifact: Mapping[str, Any], path: Path, layers: int) -> Mapping[str, Any]:
    """An artifact whose stages are such as this model has layers for.

    Raises:
        ValueError: they are not; says which file.
    """
    with artifact_named(path, WHAT, ADVICE):
        Schedule.from_config(artifact["schedule"]).check_sites(layers)
    return artifact


def with_strategy(pruner: Mapping[str, Any], artifact: Mapping[str, Any], file: str = "") -> dict[str, Any]:
    """A pruner's config with what a search found for it; the last stage is `fit`, as the budget gave it.

    Args:
        file: File that the artifact was read from; "" takes the one that the config names, or its identity.

    Raises:
        ValueError: the artifact holds more than numbers for settings of the method, or stages that are none.
    """
    file = file or str(pruner["search"].get("artifact") or artifact.get("identity"))
    method = {**pruner["method"], **found_settings(artifact, pruner["method"], file)}
    return {**pruner, "method": method, "schedule": found_stages(artifact, file)}


def strategy_counts(
    first: float, second: float, stages: Sequence[Mapping[str, Any]], facts: Facts, budget_tokens: float
) -> tuple[int, int, int]:
    """Whole tokens behind the three stages, which meet the budget as nearly as they can.

    Args:
        first: share of the original tokens that stage 1 keeps.
        second: share of those that stage 2 keeps, raised or lowered where the budget leaves stage 3 no room.
        stages: at sites of the model.

    Returns:
        Counts that do not increase, each at least 1.

    Source: Yang et al. 2025, arXiv:2508.05211, section 3.4: r3 follows from the others. The released code stays below
    the budget where r3 comes to more than 1.
    """
    starts = [Stage(stage["site"], 1.0).site.first_layer for stage in stages]
    spans = [b - a for a, b in pairwise([*starts, facts.layers])]
    one = min(facts.total, max(1, round(first * facts.total)))
    rest = budget_tokens * facts.layers - facts.total * starts[0] - one * spans[0]
    two = round(second * one)
    if (rest - two * spans[1]) / spans[2] > two:
        two = math.ceil(rest / (spans[1] + spans[2]) - 1e-9)
    elif (rest - two * spans[1]) / spans[2] < 1:
        two = math.floor((rest - spans[2]) / spans[1])
    two = min(one, max(1, two))
    three = round((rest - two * spans[1]) / spans[2])
    return one, two, min(two, max(1, three))


class _Repeat(L.LightningModule):
    """Calls a function once per batch, so that a search has the run's devices and progress bar."""

    def __init__(self, once: Callable[[], None]) -> None:
        super().__init__()
        self.once = once

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        self.once()


def _repeat(once: Callable[[], None], times: int, machine: Machine) -> None:
    if times > 0:
        numbers = DataLoader(range(times), batch_size=None)  # type: ignore[arg-type]
        machine.trainer("search").predict(_Repeat(once), numbers, return_predictions=False)


def _three_stages(pruner: Mapping[str, Any], layers: int) -> list[dict[str, Any]]:
    """The stages of the yaml at sites of the model.

    Raises:
        ValueError: they are not one at the input and two between layers.
    """
    stages = place_stages(pruner["schedule"], layers)
    sites = [str(stage["site"]) for stage in stages]
    if len(sites) != 3 or sites[0] != "llm.input" or not all(site.startswith("llm.layer.") for site in sites[1:]):
        raise ValueError(
            f"pruner.schedule comes to stages at {', '.join(sites)}, but the search is for one at llm.input and two "
            f"at llm.layer.N of this model's {layers} layers. Write those, or set pruner.strategy=given."
        )
    Schedule.from_config(stages).check_sites(layers)
    return stages


def _stages(
    stages: Sequence[Mapping[str, Any]], counts: Sequence[int], total: int, last: str | None = None
) -> list[dict[str, Any]]:
    """Stages that keep these counts of `total` tokens, as shares; those that would change nothing are left out.

    Args:
        last: what to write in place of the last count.
    """
    found: list[dict[str, Any]] = []
    before = total
    for stage, count in zip(stages, counts, strict=True):
        if count < before:
            found.append({**stage, "keep": count / total})
        before = count
    if last is not None:
        found[-1]["keep"] = last
    return found


def _space(
    asked: Mapping[str, Sequence[float]], share: float, kept: Sequence[Kept], pruner: Any
) -> dict[str, tuple[float, float]]:
    """Ranges of what is searched: stage 1 by the budget, t and m no further than anything changes."""
    space = {name: (float(asked[name][0]), float(asked[name][1])) for name in SPACE}
    low, high = space["first"]
    space["first"] = (min(1.0, share * low), min(1.0, share * high))
    received = max(pruner.most_received(batch.signals) for batch in kept)
    longest = max(float(batch.coord[..., 1:].max()) + 1 for batch in kept)
    for name, limit in (("t", received), ("m", longest)):
        low, high = space[name]
        space[name] = (min(low, limit), min(high, limit))
    return space
