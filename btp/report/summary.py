"""The report in words, computed from the table: what a run found, and what to know before using it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from btp.report.columns import number
from btp.report.fired import fired
from btp.report.load import Arm, RunFolder
from btp.report.table import Table, ability_drops

NOTABLE = 0.05  # p below which a difference is called one
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
        f"{row['tokens_avg']:.4g} visual tokens in every layer. No method was run beside it."
    )


def _method(
    run: RunFolder, arm: Arm, row: Mapping[str, Any], base: Mapping[str, Any] | None, rows: Mapping[str, Any]
) -> str:
    share = row["tokens_avg"] / row["visual_tokens"] if row["visual_tokens"] else 0.0
    said = [
        f"{arm.title} works with {row['tokens_avg']:.1f} of {row['visual_tokens']:.4g} visual tokens, "
        f"averaged over the decoder layers ({100 * share:.0f}%), and answers {percent(row['macro'])} right"
        + (f"; the unpruned model {percent(base['macro'])}." if base is not None else ".")
    ]
    if base is not None:
        said.append(_against_unpruned(row, base))
        said.append(_reading(row, base) or _worst(run, arm, row, base))
    random = rows.get(run.random.arm) if run.random else None
    if random is not None and not isnan(row["p_random"]):
        said.append(_against_random(row, random))
    said.append(_cost(row, base))
    return " ".join(s for s in said if s)


def _against_unpruned(row: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    gap = points(row["macro"] - base["macro"])
    if row["p_unpruned"] >= NOTABLE:
        return (
            f"That is {gap} than unpruned, which {row['samples']} samples cannot tell from chance "
            f"({p_text(row['p_unpruned'])})."
        )
    return f"That is {gap} than unpruned ({p_text(row['p_unpruned'])})."


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


def _against_random(row: Mapping[str, Any], random: Mapping[str, Any]) -> str:
    gap = points(row["macro"] - random["macro"])
    if row["p_random"] >= NOTABLE:
        return f"It is not told apart from random selection ({gap}, {p_text(row['p_random'])})."
    return f"Random selection gets {percent(random['macro'])}: the method is {gap} ({p_text(row['p_random'])})."


def _cost(row: Mapping[str, Any], base: Mapping[str, Any] | None) -> str:
    said = []
    if base is not None and base.get("flops_prefill") and not isnan(row["flops_prefill"]):
        said.append(f"{100 * row['flops_prefill'] / base['flops_prefill']:.0f}% of the prefill FLOPs")
    if base is not None and base.get("kv_mib") and not isnan(row["kv_mib"]):
        said.append(f"{100 * row['kv_mib'] / base['kv_mib']:.0f}% of the KV cache")
    if not isnan(row["prefill_ratio"]):
        said.append(f"{row['prefill_ratio']:.2f} times the prefill time")
    return f"It takes {listed(said)} of the unpruned model." if said else ""


def remarks(run: RunFolder, table: Table) -> list[Remark]:
    """Checks of the run, worst first."""
    found = [*_state(run), *_inert(run), *_fired(run), *_budgets(run, table)]
    rank = {"bad": 0, "note": 1, "good": 2}
    return sorted(found, key=lambda remark: rank[remark.kind])


def _state(run: RunFolder) -> list[Remark]:
    state = run.run.get("state", "?")
    if state == "finished":
        return []
    why = f" ({run.run['error']})" if run.run.get("error") else ""
    text = f"This run is {state}, not finished{why}: its numbers cover what was answered until now."
    return [Remark("bad", text)]


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
    return [Remark("good", "Every stage withdrew visual tokens.")] if len(run.trace) else []


def _budgets(run: RunFolder, table: Table) -> list[Remark]:
    """Methods that are not at their budget, and controls meant to match the method that are not at its tokens."""
    return [*_missed(run), *_unmatched(run, table)]


def _missed(run: RunFolder) -> list[Remark]:
    found = []
    for arm in run.methods:
        asked, reached = arm.budget.get("asked"), arm.budget.get("reached")
        if arm.budget.get("missed") and asked and reached is not None:
            text = f"{arm.title} reaches {reached:.2f} of the {asked:.2f} layer-averaged visual tokens asked for"
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
        if a.role == "control" and tokens[a.arm] > 0 and abs(tokens[a.arm] - mine) > SAME_BUDGET * max(mine, 1)
    ]
    if not off:
        return []
    return [Remark("note", f"Not at the method's {mine:.1f} layer-averaged visual tokens: {listed(off)}.")]


def percent(share: float) -> str:
    """A share in percent."""
    return f"{number(share, 'percent')}%"


def p_text(p: float) -> str:
    """A p-value in a sentence."""
    text = number(p, "p")
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


def points(gap: float) -> str:
    """A difference of shares in points."""
    return f"{abs(100 * gap):.1f} points {'lower' if gap < 0 else 'higher'}"


def _moved(gap: float) -> str:
    return f"{'loses' if gap < 0 else 'gains'} {abs(100 * gap):.1f} points"


def listed(parts: Sequence[str]) -> str:
    """One part or more as a sentence lists them."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]
