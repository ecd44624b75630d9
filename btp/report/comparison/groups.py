"""Groups the arms of several runs by model and task, each arm once, with one unpruned baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from typing import Any

import pandas as pd

from btp.report.comparison.series_names import RANDOM, depths, variants
from btp.report.text.run_text import SAME_BUDGET, Remark, listed
from btp.results.reader import Arm, RunFolder

_MOST = 3  # methods that a name lists
SAME_MODEL = 0.95  # share of unpruned answers that two runs must share to count as runs of one model


@dataclass(frozen=True)
class Entry:
    """One row of a comparison.

    Attributes:
        run, arm: Run and arm that it comes from.
        role: Role as the arm's, but random selection is a control wherever it was run.
        series: what its points at several budgets have in common: the method and, where runs differ in settings, those.
        note: what tells it from other rows of its series, "" where nothing needs to.
        owners: methods whose runs it stood in.
    """

    run: RunFolder
    arm: Arm
    role: str
    series: str
    note: str = ""
    owners: tuple[str, ...] = ()

    @property
    def rows(self) -> pd.DataFrame:
        """Its samples, indexed by sample."""
        return self.run.rows(self.arm.arm)

    @property
    def stages(self) -> tuple[tuple[str, Any], ...]:
        """Planned sites and counts; empty where the run does not say."""
        return tuple((str(s["site"]), s.get("keep")) for s in self.arm.schedule or ())


@dataclass(frozen=True)
class Field:
    """Group of comparable arms: one model on one task.

    Attributes:
        model, task: names; a model that answers unlike its namesake carries a number.
        entries: the unpruned one first, where there is one.
        runs: the runs that are in it.
        shared: arms that stood in several runs and stand here once.
        remarks: what to know before comparing.
    """

    model: str
    task: str
    entries: tuple[Entry, ...]
    runs: tuple[RunFolder, ...]
    shared: int = 0
    remarks: tuple[Remark, ...] = ()

    @property
    def name(self) -> str:
        """Model and task."""
        return f"{self.model}, {self.task}"

    @property
    def baseline(self) -> Entry | None:
        """The unpruned model."""
        return next((e for e in self.entries if e.role == "baseline"), None)


def fields(runs: Sequence[RunFolder]) -> list[Field]:
    """Sort runs into fields, in their order."""
    named: dict[tuple[str, str], list[RunFolder]] = {}
    for run in runs:
        named.setdefault((run.setting("model.name", "?"), run.setting("task.name", "?")), []).append(run)
    out = []
    for (model, task), members in named.items():
        groups = _same_model(members)
        for number, group in enumerate(groups, start=1):
            title = f"{model} ({number})" if len(groups) > 1 else model
            out.append(_field(title, task, group, len(groups)))
    return out


def pair(one: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the samples that both answered, in one order; a sample is the same where its question is."""
    both = one.index.intersection(other.index)
    a, b = one.loc[both], other.loc[both]
    same = ((a["question"] == b["question"]) & (a["reference"] == b["reference"])).to_numpy(bool)
    return a[same], b[same]


def _same_model(runs: Sequence[RunFolder]) -> list[list[RunFolder]]:
    """Runs of one name by what the unpruned model said; runs that share no sample cannot be told apart."""
    groups: list[list[RunFolder]] = []
    for run in runs:
        fits = next((group for group in groups if all(_alike(run, other) for other in group)), None)
        if fits is None:
            groups.append([run])
        else:
            fits.append(run)
    return groups


def _alike(run: RunFolder, other: RunFolder) -> bool:
    share = _agreement(run, other)
    return share is None or share[0] >= SAME_MODEL * share[1]


def _agreement(run: RunFolder, other: RunFolder) -> tuple[int, int] | None:
    """Unpruned answers that are equal, of how many that both have."""
    if run.baseline is None or other.baseline is None:
        return None
    a, b = pair(run.rows(run.baseline.arm), other.rows(other.baseline.arm))
    return (int((a["prediction"] == b["prediction"]).sum()), len(a)) if len(a) else None


def _field(model: str, task: str, runs: Sequence[RunFolder], groups: int) -> Field:
    bases = [(run, run.baseline) for run in runs if run.baseline is not None]
    base = max(bases, key=lambda b: _weight(*b), default=None)
    entries, shared = [], 0
    if base is not None:
        entries.append(Entry(*base, "baseline", base[1].title))
    others = [
        Entry(
            run=run,
            arm=arm,
            role=_role(arm),
            series=labels.get(arm.arm, arm.title),
            note=depth if arm.role == "method" else "",
            owners=tuple(labels[method.arm] for method in run.methods) or (run.path.name,),
        )
        for run, labels, depth in zip(runs, variants(runs), depths(runs), strict=True)
        for arm in run.arms
        if arm.role != "baseline"
    ]
    for entry in others:
        twin = next((i for i, known in enumerate(entries) if _same(known, entry)), None)
        if twin is None:
            entries.append(entry)
            continue
        shared += 1
        known = entries[twin]
        better = entry if _claim(entry) > _claim(known) else known
        entries[twin] = replace(better, owners=tuple(dict.fromkeys((*known.owners, *entry.owners))))
    remarks = _remarks(runs, base, groups)
    return Field(model, task, tuple(_noted(entries)), tuple(runs), shared, tuple(remarks))


def _role(arm: Arm) -> str:
    return "control" if arm.pruner in RANDOM else arm.role


def _claim(entry: Entry) -> tuple[bool, int, bool]:
    """Which of two copies of an arm stands for both: that of the run whose method it is, not one beside another."""
    return entry.role == "method", *_weight(entry.run, entry.arm)


def _weight(run: RunFolder, arm: Arm) -> tuple[int, bool]:
    """How much is known about an arm: its samples, and whether its cost was measured."""
    return len(run.rows(arm.arm)), arm.arm in run.cost


def _same(one: Entry, other: Entry) -> bool:
    """One arm in two runs: same series, same stages, same answers wherever both answered."""
    if one.role == "baseline" or one.series != other.series or one.stages != other.stages:
        return False
    a, b = one.rows, other.rows
    if not len(a) or not len(b):  # costs only: nothing but the plan can tell
        return len(a) == len(b)
    x, y = pair(a, b)
    if len(x) < min(len(a), len(b)):
        return False
    return bool(
        (x["prediction"] == y["prediction"]).all()
        and (x["tokens_avg"] == y["tokens_avg"]).all()
        and one.arm.slots == other.arm.slots
    )


def _noted(entries: Sequence[Entry]) -> list[Entry]:
    """Tell rows of one series at one budget apart; methods show their tokens."""
    at: dict[tuple[str, Any], list[int]] = {}
    tokens = [level(entry) for entry in entries]
    for i, (entry, group) in enumerate(zip(entries, kinds_of_budget(entries), strict=True)):
        where = group if entry.role == "control" else (entry.note, f"{tokens[i]:.1f}")
        at.setdefault((entry.series, where), []).append(i)
    out = list(entries)
    for alike in at.values():
        if len(alike) < 2:
            continue
        for i, note in zip(alike, _apart([entries[i] for i in alike]), strict=True):
            out[i] = replace(entries[i], note=", ".join(n for n in (entries[i].note, note) if n))
    return out


def _apart(alike: Sequence[Entry]) -> list[str]:
    """What tells rows of one series apart: random selection by the stages that it copies, others by their runs."""
    if alike[0].arm.pruner in RANDOM:
        ways = [[_at(e, counts) + _whose(e) for e in alike] for counts in (False, True)]
    else:
        ways = [[f"in the run of {listed(_others(e))}" if _others(e) else "" for e in alike]]
    for notes in ways:
        if len(set(notes)) == len(notes) and all(notes):
            return notes
    if alike[0].role == "method":
        return [f"run {e.run.path.name}" for e in alike]
    return [f"{note} ({n})".lstrip() for n, note in enumerate(ways[-1], start=1)]


def _at(entry: Entry, counts: bool) -> str:
    """The sites of an arm's stages, as "at llm.layer.2, 5", and how many tokens each keeps; "" where nothing says."""
    said, before = [], ""
    for site, keep in entry.stages:
        head, _, last = site.rpartition(".")
        name = last if head == before and last.isdigit() else site
        said.append(f"{name} (keeps {keep})" if counts else name)
        before = head
    return f"at {', '.join(said)}" if said else ""


def _whose(entry: Entry) -> str:
    """The methods whose stages random selection copies."""
    names = _others(entry)
    few = [*names[:_MOST], f"{len(names) - _MOST} more"] if len(names) > _MOST + 1 else names
    return f" as {listed(few)}" if few else ""


def _others(entry: Entry) -> list[str]:
    """The methods in whose runs an arm stood beside them."""
    return [owner for owner in entry.owners if owner not in (entry.series, entry.run.path.name)]


def tokens_avg(entry: Entry) -> float:
    """Mean visual tokens over samples and decoder layers; from the costs where nothing was answered."""
    rows = entry.rows
    if len(rows):
        return float(rows["tokens_avg"].mean())
    cost: Mapping[str, Any] = entry.run.cost.get(entry.arm.arm) or {}
    value = cost.get("tokens_avg")
    return float("nan") if value is None else float(value)


def level(entry: Entry) -> float:
    """What a row's budget counts: slots of the K/V cache where it evicts from it, else tokens."""
    slots = entry.arm.slots
    return slots if entry.arm.evicts and slots is not None else tokens_avg(entry)


def kinds_of_budget(entries: Sequence[Entry]) -> list[int]:
    """Number rows by budget as `budget_groups` does, those that evict from the cache apart from all others."""
    groups, first = [0] * len(entries), 0
    for evicts in (False, True):
        mine = [i for i, entry in enumerate(entries) if entry.arm.evicts is evicts]
        found = budget_groups([level(entries[i]) for i in mine])
        for i, group in zip(mine, found, strict=True):
            groups[i] = first + group
        first += 1 + max(found, default=-1)
    return groups


def budget_groups(tokens: Sequence[float]) -> list[int]:
    """Number rows by budget, most tokens first; budgets within 5% are one, rows without tokens come last."""
    order = sorted((i for i, t in enumerate(tokens) if not isnan(t)), key=lambda i: -tokens[i])
    out, group, top = [-1] * len(tokens), -1, nan
    for i in order:
        if isnan(top) or top - tokens[i] > SAME_BUDGET * max(tokens[i], 1):
            group, top = group + 1, tokens[i]
        out[i] = group
    return [group + 1 if g < 0 else g for g in out]


def _remarks(runs: Sequence[RunFolder], base: tuple[RunFolder, Arm] | None, groups: int) -> list[Remark]:
    out = []
    name = f"{runs[0].setting('model.name', '?')} on {runs[0].setting('task.name', '?')}"
    if groups > 1:
        out.append(
            Remark(
                "bad",
                f"Unpruned answers of runs of {name} differ in more than {100 * (1 - SAME_MODEL):.0f}% of the samples "
                "that they share: other weights, precision or code. They are compared apart.",
            )
        )
    if base is None:
        out.append(Remark("note", f"No run of {name} has an unpruned baseline."))
        return out
    drift = [
        f"{run.path.name} ({found[1] - found[0]} of {found[1]})"
        for run in runs
        if run is not base[0] and (found := _agreement(run, base[0])) and found[0] < found[1]
    ]
    if drift:
        out.append(
            Remark(
                "note",
                f"The unpruned answers shown are those of {base[0].path.name}; a few differ in {', '.join(drift)}.",
            )
        )
    sizes = {run.samples["sample"].nunique() for run in runs if len(run.samples)}
    if len(sizes) > 1:
        out.append(
            Remark(
                "note",
                f"Runs of {name} answered {' and '.join(str(n) for n in sorted(sizes))} samples. Paired tests use the "
                "samples that both sides answered; accuracies are over all that each answered.",
            )
        )
    return out
