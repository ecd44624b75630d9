"""Text of a run's report, computed from the table: results, and warnings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

from btp.report.tables.columns import number, spread_of, told_from_one
from btp.report.tables.run_table import Table, ability_drops, paired
from btp.report.text.executed_stages import fired
from btp.report.text.floor_effect import floor
from btp.report.text.real_shapes import real_shape
from btp.results.reader import UNIT, Arm, RunFolder

NOTABLE = 0.05  # p below which a difference is called one
EMBEDDED = "pocket"  # how the names of embedded models begin, whose layers are too small to save much time in
SAME_BUDGET = 0.05  # share by which layer-averaged tokens may differ and still count as equal


@dataclass(frozen=True)
class Remark:
    """A sentence under the headline: "good" (a check that passed), "note", or "bad" (mind this first)."""

    kind: str
    text: str


def headline(run: RunFolder, table: Table) -> list[str]:
    """A paragraph per method; one about the unpruned model where the run has no method."""
    rows = {row["arm"]: row for _, row in table.frame.iterrows()}
    base = rows.get(run.baseline.arm) if run.baseline else None
    if not run.methods:
        return [_unpruned(run, rows[run.arms[0].arm])]
    return [_method(run, arm, rows[arm.arm], base, rows) for arm in run.methods]


def _unpruned(run: RunFolder, row: Mapping[str, Any]) -> str:
    return (
        f"{_first_up(row['method'])} answers {percent(row['macro'])} right "
        f"(macro average of {len(run.abilities)} abilities over {row['samples']} samples), with "
        f"{row['tokens_avg']:.4g} {run.unit} in every layer. No method was run beside it."
    )


def _method(
    run: RunFolder, arm: Arm, row: Mapping[str, Any], base: Mapping[str, Any] | None, rows: Mapping[str, Any]
) -> str:
    said = [
        f"{arm.title} {_works(run, arm, row, base)}, and answers {percent(row['macro'])} right"
        + (f"; the unpruned model {percent(base['macro'])}." if base is not None else ".")
    ]
    if base is not None and floor(run):
        said.append("Where the unpruned model answers nothing, no difference tells anything of pruning.")
    else:
        if base is not None:
            said.append(_against_unpruned(row, base))
            said.append(_reading(row, base) or _worst(run, arm, row, base))
        said.append(_against_controls(run, arm, row, rows))
    said.append(_cost(row, base))
    if run.unit == UNIT and str(run.config.get("model", {}).get("name", "")).startswith(EMBEDDED):
        said.append(real_shape(arm.arm))
    return " ".join(s for s in said if s)


def _works(run: RunFolder, arm: Arm, row: Mapping[str, Any], base: Mapping[str, Any] | None) -> str:
    """What it keeps: slots where it evicts from the K/V cache, tokens where it cuts between layers."""
    if arm.evicts and not isnan(row["slots"]):
        whole = nan if base is None else base["slots"]
        of = "" if isnan(whole) else f" of {whole:.4g}"
        share = "" if isnan(whole) else f" ({100 * row['slots'] / whole:.0f}%)"
        held = (
            f"holds {row['slots']:.1f}{of} slots per key head in the K/V cache, averaged over the decoder layers{share}"
        )
        return f"{_tokens(run, row)}, and {held}" if arm.cuts else held
    return _tokens(run, row)


def _tokens(run: RunFolder, row: Mapping[str, Any]) -> str:
    share = row["tokens_avg"] / row["visual_tokens"] if row["visual_tokens"] else 0.0
    layers = "decoder layers" if run.unit.endswith("tokens") else "layers"
    return (
        f"works with {row['tokens_avg']:.1f} of {row['visual_tokens']:.4g} {run.unit}, averaged over the {layers} "
        f"({100 * share:.0f}%)"
    )


def _against_unpruned(row: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    said = f"That is {compared(row['macro'] - base['macro'], 'unpruned')}"
    if row["p_unpruned"] >= NOTABLE:
        return f"{said}, which {row['samples']} samples cannot tell from chance ({p_text(row['p_unpruned'])})."
    return f"{said} ({p_text(row['p_unpruned'])})."


def _reading(row: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    if "reading" not in row or isnan(row["reading"]) or isnan(base["reading"]):
        return ""
    moved = {key: row[key] - base[key] for key in ("reading", "rest")}
    return f"Reading in the picture {_moved(moved['reading'])}, everything else {_moved(moved['rest'])}."


def _worst(run: RunFolder, arm: Arm, row: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    drops = {a: row[f"accuracy_{a}"] - base[f"accuracy_{a}"] for a in run.abilities}
    ability = min(drops, key=drops.__getitem__)
    if drops[ability] >= 0:
        return ""
    sure = ability_drops(run, arm).get(ability, 1.0) < NOTABLE
    return f"It loses most in {ability}: {_moved(drops[ability])}" + ("." if sure else ", which may be chance.")


def _against_controls(run: RunFolder, arm: Arm, row: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    """Random selection, and whichever control scores highest: the one that hurts most."""
    most = (1 + SAME_BUDGET) * max(row["tokens_avg"], 1)
    near = [c for c in run.controls if rows[c.arm]["tokens_avg"] <= most and not isnan(rows[c.arm]["macro"])]
    hardest = max(near, key=lambda c: rows[c.arm]["macro"], default=None)
    said = []
    for control in [run.random] if hardest == run.random else [run.random, hardest]:
        p = paired(run, arm, control)
        if control is not None and not isnan(p):
            name = "random selection" if control == run.random else control.title
            said.append(_against(name, control == hardest and len(near) > 1, row, rows[control.arm], p))
    return " ".join(said)


def _against(name: str, hardest: bool, row: Mapping[str, Any], control: Mapping[str, Any], p: float) -> str:
    which = f"The control that hurts most, {name}," if hardest else _first_up(name)
    gap = f"the method is {compared(row['macro'] - control['macro'])}"
    if p >= NOTABLE:
        gap = f"not told apart from the method, which is {compared(row['macro'] - control['macro'])}"
    return f"{which} gets {percent(control['macro'])}: {gap} ({p_text(p)})."


def _cost(row: Mapping[str, Any], base: Mapping[str, Any] | None) -> str:
    said = []
    for key, name in (("flops_prefill", "prefill FLOPs"), ("flops_model", "FLOPs")):
        if base is not None and base.get(key) and not isnan(row[key]):
            said.append(f"{100 * row[key] / base[key]:.0f}% of the {name}")
    if base is not None and base.get("kv_mib") and not isnan(row["kv_mib"]):
        said.append(f"{100 * row['kv_mib'] / base['kv_mib']:.0f}% of the KV cache")
    key, name = ("prefill_ratio", "prefill time") if isnan(row["forward_ratio"]) else ("forward_ratio", "time")
    ratio, open_ = row[key], not told_from_one(row, key)
    if not isnan(ratio) and not open_:
        said.append(f"{ratio:.2f} times the {name}")
    text = f"It takes {listed(said)} of the unpruned model." if said else ""
    if isnan(ratio) or not open_:
        return text
    ends = spread_of(row, key, "times")
    why = f"the ratio lies in {ends}" if ends else "too few rounds were timed for an interval"
    return f"{text} Its {name} is not told from the unpruned model's: {why}.".lstrip()


def remarks(run: RunFolder, table: Table) -> list[Remark]:
    """Checks of the run, worst first."""
    found = [*_state(run), *_floor(run), *_calibrated(run), *_inert(run), *_fired(run), *_budgets(run, table)]
    rank = {"bad": 0, "note": 1, "good": 2}
    return sorted(found, key=lambda remark: rank[remark.kind])


def _state(run: RunFolder) -> list[Remark]:
    state = run.run.get("state", "?")
    if state == "finished":
        return []
    why = f" ({run.run['error']})" if run.run.get("error") else ""
    text = f"This run is {state}, not finished{why}: its numbers cover what was answered until now."
    return [Remark("bad", text)]


def _floor(run: RunFolder) -> list[Remark]:
    said = floor(run)
    return [Remark("bad", said)] if said else []


def _calibrated(run: RunFolder) -> list[Remark]:
    """A calibration set that is not the task's own."""
    said = foreign_set(run)
    return [Remark("note", said)] if said else []


def foreign_set(run: RunFolder) -> str:
    """Which pictures the stages come from, where they are not the task's; "" where they are, or nothing says so."""
    found = run.run.get("calibration")
    return found["said"] if isinstance(found, Mapping) and not found.get("own", True) else ""


def _inert(run: RunFolder) -> list[Remark]:
    inert = run.run.get("inert")
    if not inert:
        return [Remark("note", "The inertness control (hooks attached, nothing pruned) was not run.")]
    if inert.get("identical"):
        checked = f"{inert.get('checked', '?')} samples with hooks attached and nothing pruned"
        return [Remark("good", f"Inert: {checked} are identical to the last bit.")]
    difference = inert.get("max_logit_difference", "?")
    return [
        Remark(
            "bad",
            f"Not inert: with hooks attached and nothing pruned, logits differ by up to {difference}. "
            "Differences between arms may come from the hooks.",
        )
    ]


def _fired(run: RunFolder) -> list[Remark]:
    idle = [f"{e['site']} of {e['title']}" for e in fired(run) if not e["fired"]]
    if idle:
        return [Remark("bad", f"{listed(idle)} withdrew nothing. See the table of stages.")]
    if any(arm.evicts for arm in run.arms):
        return [Remark("good", "Every stage took something out.")]
    return [Remark("good", f"Every stage withdrew {run.unit}.")] if len(run.trace) else []


def _budgets(run: RunFolder, table: Table) -> list[Remark]:
    """Methods that are not at their budget, and controls meant to match the method that are not at its tokens."""
    return [*_missed(run), *_unmatched(run, table)]


def _missed(run: RunFolder) -> list[Remark]:
    found = []
    for arm in run.methods:
        asked, reached = arm.budget.get("asked"), arm.budget.get("reached")
        if arm.budget.get("missed") and asked and reached is not None:
            text = f"{arm.title} reaches {reached:.2f} of the {asked:.2f} layer-averaged {run.unit} asked for"
            found.append(Remark("note", f"{text}: {100 * (reached / asked - 1):+.0f}%."))
    return found


def _unmatched(run: RunFolder, table: Table) -> list[Remark]:
    """The unpruned model and none at all are not meant to match."""
    if len(run.methods) != 1:
        return []
    tokens = dict(zip(table.frame["arm"], table.frame["tokens_avg"], strict=True))
    mine = tokens[run.methods[0].arm]
    off = [
        f"{a.title} ({tokens[a.arm]:.1f})"
        for a in run.arms
        if a.role == "control"
        and tokens[a.arm] > 0
        and a.picture != "none"
        and abs(tokens[a.arm] - mine) > SAME_BUDGET * max(mine, 1)
    ]
    if not off:
        return []
    return [Remark("note", f"Not at the method's {mine:.1f} layer-averaged {run.unit}: {listed(off)}.")]


def percent(share: float) -> str:
    """A share in percent."""
    return f"{number(share, 'percent')}%"


def p_text(p: float) -> str:
    """A p-value in a sentence."""
    text = number(p, "p")
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


def compared(gap: float, name: str = "") -> str:
    """A difference of shares in points, as in "3.2 points lower than random"; what rounds to nothing is level."""
    if f"{abs(100 * gap):.1f}" == "0.0":
        return f"level with {name}" if name else "level with it"
    said = f"{abs(100 * gap):.1f} points {'lower' if gap < 0 else 'higher'}"
    return f"{said} than {name}" if name else said


def _moved(gap: float) -> str:
    return f"{'loses' if gap < 0 else 'gains'} {abs(100 * gap):.1f} points"


def listed(parts: Sequence[str]) -> str:
    """One part or more as a sentence lists them."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]
