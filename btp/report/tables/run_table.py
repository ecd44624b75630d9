"""The table: one row per arm, made from a run folder's files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import pandas as pd

from btp.report.tables import columns as c
from btp.report.text.token_names import PROMPT
from btp.results.reader import Arm, RunFolder
from btp.results.stats import Interval, holm, macro_interval, mean_interval, paired_p

_ANSWERS = (c.METHOD, c.TOKENS, c.SLOTS, c.MACRO, c.RETAINED, c.HARD, c.EASY, c.READING, c.REST, *c.ANSWERS)
_COST = tuple(column for column in c.COST if column.key in c.SHOWN_COST)


@dataclass(frozen=True)
class Table:
    """Rows and the columns to show, in order.

    Attributes:
        frame: one row per arm; numbers unrounded, shares in [0, 1], FLOPs plain. Beside the shown columns it
            holds run, model, task, arm, role, note, samples, visual_tokens, unit, evicts, cuts and every cost quantity.
        columns: what formats show; the first one names the row.
        title: what the rows are about.
    """

    frame: pd.DataFrame
    columns: tuple[c.Column, ...]
    title: str


def run_table(run: RunFolder) -> Table:
    """The table of one run: its arms in their order."""
    frame = pd.DataFrame([arm_row(run, arm) for arm in run.arms])
    counts = {a: int(run.rows(run.arms[0].arm)["ability"].eq(a).sum()) for a in run.abilities}
    abilities = [c.ability_column(ability, n) for ability, n in counts.items()]
    hidden = set() if evicts(frame) else {c.SLOTS} if run.unit == PROMPT else {c.SLOTS, c.KL_STEPS}
    columns = [x for x in (*_ANSWERS, *metric_columns([run]), *_COST, *abilities) if x not in hidden]
    return Table(frame, with_numbers(frame, [x.of(run.unit) for x in columns]), run_title(run))


def metric_columns(runs: Sequence[RunFolder]) -> list[c.Column]:
    """A column per metric that any task of the runs reports of all answers together."""
    names = dict.fromkeys(name for run in runs for arm in run.arms for name in run.metrics(arm.arm))
    return [c.metric_column(name) for name in names]


def run_title(run: RunFolder) -> str:
    """A run in a few words: pruner, model, task and samples."""
    pruner, model, task = (run.setting(f"{k}.name", "?") for k in ("pruner", "model", "task"))
    return f"{pruner} on {model}, {task}, {run.samples['sample'].nunique()} samples"


def evicts(frame: pd.DataFrame) -> bool:
    """Whether a row has slots that tokens do not tell."""
    return bool(frame["evicts"].any())


def ability_drops(run: RunFolder, arm: Arm) -> dict[str, float]:
    """Holm-adjusted p of each ability's scores against the unpruned model's; empty without that arm."""
    base = run.baseline
    if base is None or base.arm == arm.arm:
        return {}
    p = [paired(run, arm, base, ability) for ability in run.abilities]
    return dict(zip(run.abilities, holm(p), strict=True))


def arm_row(run: RunFolder, arm: Arm) -> dict[str, Any]:
    """Every quantity of an arm; nan where it was not measured, or nothing was answered."""
    rows = run.rows(arm.arm)
    parts = {a: mean_interval(rows.loc[rows["ability"] == a, "score"]) for a in run.abilities}
    reading = [parts[a] for a in run.reading]
    rest = [parts[a] for a in run.abilities if a not in run.reading]
    row = {
        "run": run.run.get("name") or run.path.name,
        "model": run.setting("model.name", "?"),
        "task": run.setting("task.name", "?"),
        "arm": arm.arm,
        "method": arm.title,
        "role": arm.role,
        "pruner": arm.pruner,
        "note": arm.note,
        "samples": len(rows),
        "visual_tokens": float(rows["total"].mean()),
        "tokens_avg": float(rows["tokens_avg"].mean()),
        "slots": nan if arm.slots is None else arm.slots,
        "evicts": arm.evicts,
        "cuts": arm.cuts,
        "unit": run.unit,
        **_spread("macro", macro_interval(list(parts.values()))),
    }
    row |= {"retained": _retained(run, row["macro"]), **_by_need(run, arm)}
    if reading and rest:
        row |= _spread("reading", macro_interval(reading)) | _spread("rest", macro_interval(rest))
    drops = ability_drops(run, arm)
    for ability, part in parts.items():
        row |= _spread(f"accuracy_{ability}", part) | {f"accuracy_{ability}_p": drops.get(ability, nan)}
    row |= _spread("agreement", mean_interval(rows["agreement"].astype(float)))
    row["kl"] = float(rows["kl"].mean())
    row["kl_steps"] = float(rows["kl_steps"].mean()) if "kl_steps" in rows else nan
    row["p_unpruned"] = paired(run, arm, run.baseline)
    row["p_random"] = nan if arm.role == "baseline" else paired(run, arm, run.random)
    row["p_downsampled"] = nan if arm.role == "baseline" else paired(run, arm, run.downsampled)
    row |= {c.metric_column(name).key: float(value) for name, value in run.metrics(arm.arm).items()}
    return row | cost_of(run, arm.arm)


def _retained(run: RunFolder, macro: float) -> float:
    """The share of the unpruned model's macro; nan without that arm, or where it answers nothing."""
    if run.baseline is None:
        return nan
    rows = run.rows(run.baseline.arm)
    whole = macro_interval([mean_interval(rows.loc[rows["ability"] == a, "score"]) for a in run.abilities]).mean
    return macro / whole if whole > 0 else nan


def hard_samples(run: RunFolder) -> frozenset[str]:
    """Samples that lose by a smaller picture; none where the run lacks the unpruned or the down-sampled arm.

    Source: the filter of VTC-Bench, Liao et al. 2025, arXiv:2510.07143.
    """
    if run.baseline is None or run.downsampled is None:
        return frozenset()
    whole, less = (run.rows(arm.arm)["score"] for arm in (run.baseline, run.downsampled))
    both = whole.index.intersection(less.index)
    return frozenset(both[whole.loc[both] > less.loc[both]])


def _by_need(run: RunFolder, arm: Arm) -> dict[str, float]:
    """Scores on the samples that need the whole picture, and on the others."""
    hard, chosen_by = hard_samples(run), [each.arm for each in (run.baseline, run.downsampled) if each is not None]
    if not hard or arm.arm in chosen_by:
        return {}
    scores = run.rows(arm.arm)["score"]
    mine = scores.index.isin(hard)
    return _spread("hard", mean_interval(scores[mine])) | _spread("easy", mean_interval(scores[~mine]))


def cost_of(run: RunFolder, arm: str) -> dict[str, float]:
    """An arm's cost quantities, nan where not measured; spreads as `<key>_low` and `<key>_high`."""
    entry = run.cost.get(arm)
    out: dict[str, float] = {}
    for column in c.COST:
        value = entry.get(column.key) if isinstance(entry, Mapping) else None
        if isinstance(value, Mapping):
            out[column.key] = _float(value.get("median"))
            out[f"{column.key}_low"] = _float(value.get("low", value.get("p10")))
            out[f"{column.key}_high"] = _float(value.get("high", value.get("p90")))
        else:
            out[column.key] = _float(value)
    return out


def paired(run: RunFolder, arm: Arm, other: Arm | None, ability: str | None = None) -> float:
    """p over the samples that both arms answered, of one ability or of all; nan against itself or against nothing."""
    if other is None or other.arm == arm.arm:
        return nan
    pair = []
    for each in (arm, other):
        rows = run.rows(each.arm)
        pair.append(rows["score"] if ability is None else rows.loc[rows["ability"] == ability, "score"])
    both = pair[0].index.intersection(pair[1].index)
    return paired_p(pair[0].loc[both], pair[1].loc[both])


def _float(value: Any) -> float:
    return nan if value is None else float(value)


def _spread(key: str, found: Interval) -> dict[str, float]:
    return {key: found.mean, f"{key}_low": found.low, f"{key}_high": found.high}


def with_numbers(frame: pd.DataFrame, columns: Sequence[c.Column]) -> tuple[c.Column, ...]:
    """Those of the columns that hold a number or a text anywhere."""
    return tuple(x for x in columns if x.key in frame and (frame[x.key].notna() & frame[x.key].ne("")).any())
