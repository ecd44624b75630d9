"""What layers held of one sample and what its decode steps computed, from the trace, and whether a run did so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from btp.core.trace import Call
from btp.report.pages.explain_held import HeldLayer, StepLife
from btp.results import run_folder_schema as shapes
from btp.results.reader import RunFolder, read_frame

MOST_LAYERS = 4  # shown of an arm, spread over those in which something left


def held_by_head(call: Call, visual: Tensor) -> list[Tensor]:
    """[H, S] bool for each layer: what its key heads hold of the first row's prompt behind it.

    H is 1 where all heads hold the same, in layers in whose cache nothing was chosen.

    Args:
        visual: [S] bool, tokens that could leave between layers, of the row without padding.
    """
    L, S = len(call.tokens), len(visual)
    entered, places = torch.ones(L, S, dtype=torch.bool), visual.nonzero().flatten().cpu()
    for stage in call.stages:
        at = stage.site.layer if stage.site.kind == "layer" and stage.site.tower == "llm" else 0
        entered[at:, places] = False
        entered[at:, places[stage.kept[0]]] = True
    layers = [row[None] for row in entered]
    for site in dict.fromkeys(record.site for record in call.evicted if record.step == 0):
        gone = call.gone(site, step=0)[0]
        heads = layers[site.layer].repeat(len(gone), 1)
        for head, places_gone in zip(heads, gone, strict=True):
            head[sorted(places_gone)] = False
        layers[site.layer] = heads
    return layers


def held_layers(call: Call, visual: Tensor, ranked: Mapping[int, str], cuts: bool) -> tuple[HeldLayer, ...]:
    """Some layers that do not hold the whole prompt, the first and the last of them among them.

    Args:
        visual: as `held_by_head` takes it.
        ranked: what a cache method ranked the slots of a layer by.
        cuts: show layers in front of which tokens left, too, not only those whose caches lost slots.
    """
    evicting = {record.site.layer: record.site for record in call.evicted}
    found = []
    for at, heads in enumerate(held_by_head(call, visual)):
        if at not in evicting and (not cuts or bool(heads.all())):
            continue
        later = (0,) * len(heads)
        if at in evicting:
            lost = [call.gone(evicting[at], step)[0] for step in (0, None)]
            later = tuple(len(end) - len(begin) for begin, end in zip(*_as_many(*lost), strict=True))
            heads = heads.expand(len(later), -1)
        found.append(HeldLayer(at, heads.numpy(), later, at in evicting, ranked.get(at, "")))
    return tuple(found[i] for i in spread_over(len(found)))


def spread_over(n: int, most: int = MOST_LAYERS) -> list[int]:
    """Some of 0 ... n - 1, the first and the last among them."""
    return sorted({round(i * (n - 1) / (most - 1)) for i in range(most)}) if n > most else list(range(n))


def step_lives(call: Call) -> tuple[StepLife, ...]:
    """What stages that act in decode did with the first row, forward by forward."""
    found = []
    for step, records in enumerate(call.steps):
        before = {call.total[0] + call.text[0] - 1 + step}  # the newest token
        for record in records:
            here = set(record.computed_at[0])
            back = tuple(sorted(here - before)) if step else ()
            counts = {name: getattr(record, name)[0] for name in ("computed", "revived", "parked", "waiting")}
            found.append(StepLife(step, str(record.site), **counts, back=back))
            before = here
    return tuple(found)


def against_run(run: RunFolder, arm: str, sample: str, now: Mapping[str, Any]) -> tuple[tuple[bool, str], ...]:
    """Whether as many slots left the cache as in the run, and every step computed as many rows, each in words.

    Args:
        now: what happened, as the answers' store has it.
    """
    found, row = [], run.rows(arm).loc[sample]
    if now.get("evicted") and row.get("evicted") == row.get("evicted"):
        here, there = now["evicted"], int(row.get("evicted", -1))
        said = f"As many slots left the caches as in the run: {here} a head, all layers together."
        found.append((True, said) if here == there else (False, _other("slots a head left", here, there)))
    file = run.path / "steps.parquet"
    if now.get("steps") and file.exists():
        steps = read_frame(file, shapes.STEPS)
        mine = steps[(steps["arm"] == arm) & (steps["sample"] == sample)]
        keys = ("step", "site", "computed", "revived")
        there = set(zip(*(mine[key] for key in keys), strict=True))
        here = {tuple(entry[key] for key in keys) for entry in now["steps"]}
        if here == there:
            found.append((True, "Every step computed as many rows as in the run."))
        else:
            rows = (sum(entry[2] for entry in each) for each in (here, there))
            found.append((False, _other("rows were computed", *rows)))
    return tuple(found)


def _other(what: str, here: int, there: int) -> str:
    return f"Other than in the run: {here} {what} here, {there} there."


def _as_many(begin: list[set[int]], end: list[set[int]]) -> tuple[list[set[int]], list[set[int]]]:
    """Where all heads lost the same at first, once for each."""
    return (begin * len(end) if len(begin) < len(end) else begin), end
