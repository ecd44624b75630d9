"""Explanation of every stage for one sample's visual tokens, in the prompt's own numbering."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from btp.core.schedule import Schedule, Stage
from btp.core.trace import Call
from btp.models.lvlm import LVLM
from btp.report.pages.explain_data import HIGHEST, KEPT, StageLife
from btp.report.pages.html import keep_text
from btp.runner.explain.recording_pruner import Account, Witness

PLAIN = {"site", "keep", "phase"}  # what every stage has, or says elsewhere


def stage_lives(
    host: LVLM,
    inputs: Mapping[str, Tensor],
    call: Call,
    schedule: Schedule,
    witness: Witness | None,
    recorded: Mapping[str, tuple[int, ...]],
) -> tuple[StageLife, ...]:
    """What happened at each stage, with the pruner's reasons where it was asked.

    Args:
        inputs: Inputs of the prompt, one row.
        call: what the engine did with it.
        witness: Witness that was attached; None where no pruner was.
        recorded: what the run kept, by site.
    """
    told = [] if witness is None else witness.accounts
    accounts = {account.site: account for account in reversed(told)}  # of the prefill, where later steps asked too
    plans = {str(stage.site): stage for stage in schedule}
    alive, lives = tuple(range(call.total[0])), []
    for record in call.stages:
        site, kept = str(record.site), tuple(record.kept[0])
        account = accounts.get(site)
        numbers = _numbers(account, host, inputs) if account is not None else []
        rules = _rules(account, numbers, kept)
        lives.append(
            StageLife(
                site=site,
                plan=plan_text(plans[site]),
                alive=alive,
                kept=kept,
                rules=rules,
                scores=_scores(account, numbers),
                merged=tuple(record.merged[0]),
                flowed=_flowed(account, numbers),
                recorded=recorded.get(site),
            )
        )
        alive = kept
    return tuple(lives)


def plan_text(stage: Stage) -> str:
    """A stage's keep and settings, as "keep 21, balance 0.6"."""
    config = stage.to_config()
    config.pop("positions") if stage.positions == "original" else None
    rest = [f"{key} {value}" for key, value in config.items() if key not in PLAIN]
    return ", ".join([f"keep {keep_text(stage.keep)}", *rest])


def _numbers(account: Account, host: LVLM, inputs: Mapping[str, Tensor]) -> list[list[int]]:
    """Which of the prompt's visual tokens each of the account's tokens is; -1 for padding and for none of them."""
    if account.site.startswith("llm"):
        return account.index.masked_fill(~account.valid, -1).tolist()
    layout = host.layout(inputs)
    per_picture = math.prod(host.picture_grid(inputs["pixel_values"]))
    place = account.picture * per_picture + account.slot
    if layout.source is None:
        return place.masked_fill(~account.valid, -1).tolist()
    sources = layout.source[0][layout.visual[0]].tolist()
    prompt = {source: number for number, source in enumerate(sources) if source >= 0}
    rows = place.masked_fill(~account.valid, -1).tolist()
    return [[prompt.get(source, -1) for source in row] for row in rows]


def _pairs(numbers: list[list[int]], values: Tensor) -> list[tuple[int, Any]]:
    """(visual token, value) of all that are tokens of the prompt."""
    rows = zip(numbers, values.tolist(), strict=True)
    return [(n, v) for mine, given in rows for n, v in zip(mine, given, strict=True) if n >= 0]


def _rules(account: Account | None, numbers: list[list[int]], kept: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Kept tokens by rule. Those that no rule names are the highest score's, where they are; otherwise simply kept."""
    found: dict[str, tuple[int, ...]] = {}
    stays, named = set(kept), set()
    for name, marks in (account.rules if account is not None else {}).items():
        found[name] = tuple(sorted(n for n, mark in _pairs(numbers, marks) if mark and n in stays))
        named.update(found[name])
    rest = tuple(sorted(stays - named))
    name = HIGHEST if account is not None and not found and _ranks_by_score(account) else KEPT
    return found | ({name: rest} if rest else {})


def _ranks_by_score(account: Account) -> bool:
    """Whether the method tells of one score, and no token that goes has a higher one than one that stays."""
    if len(account.scores) != 1:
        return False
    (score,) = account.scores.values()
    lowest = score.masked_fill(~account.kept, math.inf).amin(1)
    return bool((score.masked_fill(account.kept | ~account.valid, -math.inf).amax(1) <= lowest).all())


def _scores(account: Account | None, numbers: list[list[int]]) -> dict[str, dict[int, float]]:
    return {name: dict(_pairs(numbers, value)) for name, value in (account.scores if account else {}).items()}


def _flowed(account: Account | None, numbers: list[list[int]]) -> dict[int, int]:
    """Tokens that went -> the kept one that each flowed into."""
    if account is None or account.target is None:
        return {}
    found = {}
    for mine, targets, kept in zip(numbers, account.target.tolist(), account.kept.tolist(), strict=True):
        for n, target, stays in zip(mine, targets, kept, strict=True):
            if n >= 0 and target >= 0 and not stays and mine[target] >= 0:
                found[n] = mine[target]
    return found
