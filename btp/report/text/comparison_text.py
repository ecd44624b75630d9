"""Text of a comparison, computed from its table: the leader at each budget, and warnings."""

from collections.abc import Sequence
from math import isnan

import pandas as pd

from btp.report.comparison.groups import Field
from btp.report.comparison.table import same_budget
from btp.report.tables.columns import number
from btp.report.text.checks import moved
from btp.report.text.executed_stages import fired
from btp.report.text.floor_effect import floor
from btp.report.text.run_text import NOTABLE, SAME_BUDGET, Remark, compared, foreign_set, listed, p_text, percent
from btp.results.find import LeftOut

_REFERENCES = (("random", "random selection"), ("downsampled", "the down-sampled picture"), ("btp", "BTP"))
_MOST = 8  # things that one sentence lists
_MOST_BUDGETS = 4  # that get a sentence each
_REPEATED = r", (run|in the run of) .*$"  # of a row's name: which of several runs of one setting it is


def verdict(field: Field, rows: pd.DataFrame) -> list[str]:
    """Paragraphs about one field: what it is, and the leader at each budget; with many budgets, one for each method."""
    methods = rows[rows["role"].eq("method")]
    answered = methods[methods["macro"].notna()]
    said = [_what(field, rows, methods)]
    if field.baseline is not None and floor(field.baseline.run):
        return [*said, "Where the unpruned model answers nothing, no difference tells anything of pruning."]
    if answered["budget"].nunique() <= _MOST_BUDGETS:
        for _, group in answered.groupby("budget"):
            said.append(_at_budget(group, rows))
    else:
        said += [_through_budgets(family, group) for family, group in answered.groupby("family", sort=False)]
    told = _told(methods)
    return [*said, *([told] if told else [])]


def notes(fields: Sequence[Field], frame: pd.DataFrame, left: Sequence[LeftOut]) -> list[Remark]:
    """What to know before using the comparison, worst first."""
    found = [*_left(left), *(remark for field in fields for remark in field.remarks)]
    found += [remark for field in fields for remark in (*_idle(field), *_inert(field))]
    found += [
        *_floors(fields),
        *_foreign(fields),
        *_missed(frame),
        *_moved(frame),
        *_alone(fields, frame),
        *_machines(fields, frame),
    ]
    shared = sum(field.shared for field in fields)
    if shared:
        found.append(Remark("good", f"{shared} arms that several runs had in common stand here once."))
    rank = {"bad": 0, "note": 1, "good": 2}
    return sorted(found, key=lambda remark: rank[remark.kind])


def _what(field: Field, rows: pd.DataFrame, methods: pd.DataFrame) -> str:
    samples = rows["samples"].max()
    base = rows[rows["role"].eq("baseline") & rows["macro"].notna()]
    asked = f", {samples} samples" if samples else ", costs only"
    named = methods["method"].str.replace(_REPEATED, "", regex=True)
    settings = named.groupby(methods["family"], sort=False).nunique()
    names = [f"{name} with {n} settings" if n > 1 else str(name) for name, n in settings.items()]
    said = f"{field.name}{asked}: {len(names)} method{'' if len(names) == 1 else 's'}"
    said += f" ({_some(names)})." if names else "."
    if len(base):
        row = base.iloc[0]
        said += f" The unpruned model answers {percent(row['macro'])} right with {row['tokens_avg']:.4g} {row['unit']}."
    return said


def _at_budget(group: pd.DataFrame, everyone: pd.DataFrame) -> str:
    """Who leads, by how much, and which controls with no more tokens score higher."""
    best = group.loc[group["macro"].idxmax()]
    said = f"At {_level(best)}"
    if best["visual_tokens"] > 0 and not best["evicts"]:
        said += f" ({100 * best['tokens_avg'] / best['visual_tokens']:.0f}%)"
    score = percent(best["macro"])
    said += f" {best['method']} " + (f"leads with {score}" if len(group) > 1 else f"answers {score} right")
    for key, name in _REFERENCES:
        if not isnan(best[f"gap_{key}"]):
            said += f", {compared(best[f'gap_{key}'], name)} ({p_text(best[f'p_{key}_holm'])})"
    affordable = everyone["level"] <= (1 + SAME_BUDGET) * max(best["level"], 1)
    affordable &= everyone["evicts"].eq(best["evicts"])
    ahead = everyone[everyone["role"].eq("control") & affordable & (everyone["macro"] > best["macro"])]
    if len(ahead):
        controls = listed([f"{m} ({percent(v)})" for m, v in zip(ahead["method"], ahead["macro"], strict=True)])
        said += f"; the control{'s' if len(ahead) > 1 else ''} {controls} score{'' if len(ahead) > 1 else 's'} higher"
    return f"{said}."


def _through_budgets(family: str, group: pd.DataFrame) -> str:
    """From the most tokens to the fewest, and the lowest and highest score between."""
    group = group.sort_values("level", ascending=False)
    first, last = group.iloc[0], group.iloc[-1]
    if len(group) == 1:
        return f"{family} answers {_scored(family, first)}."
    said = f"{family} goes from {_scored(family, first)} to {_scored(family, last)}"
    for name, row in (
        ("highest", group.loc[group["macro"].idxmax()]),
        ("lowest", group.loc[group["macro"].idxmin()]),
    ):
        if row["macro"] not in (first["macro"], last["macro"]):
            said += f"; {name} {_scored(family, row)}"
    return f"{said}."


def _scored(family: str, row: pd.Series) -> str:
    setting = row["method"].removeprefix(family).strip(" ,()")
    return f"{percent(row['macro'])} right at {_level(row)}" + (f" ({setting})" if setting else "")


def _level(row: pd.Series) -> str:
    """What a row keeps on average over the layers; of one that cuts and evicts, slots and tokens."""
    said = f"{number(row['level'], 'tokens')} {'slots of the K/V cache' if row['evicts'] else row['unit']}"
    both = row["evicts"] and row["cuts"]
    return f"{said} and {number(row['tokens_avg'], 'tokens')} {row['unit']}" if both else said


def _told(methods: pd.DataFrame) -> str:
    said = []
    for key, name in _REFERENCES:
        tested = methods[methods[f"p_{key}_holm"].notna()]
        sure = tested[tested[f"p_{key}_holm"] < NOTABLE]
        if len(tested):
            which = f" ({_some(_at_tokens(sure))})" if 0 < len(sure) < len(tested) else ""
            count = "all" if len(sure) == len(tested) > 1 else "none" if not len(sure) else str(len(sure))
            said.append(f"{count} of {len(tested)} rows of methods differ from {name}{which}")
    return f"After Holm's correction {listed(said)} (p below {NOTABLE})." if said else ""


def _at_tokens(rows: pd.DataFrame) -> list[str]:
    """Rows as "btp at 57.6 and 31.6", one part a method."""
    return [
        f"{method} at {listed([number(t, 'tokens') for t in group['level']])}"
        for method, group in rows.groupby("method", sort=False)
    ]


def _left(left: Sequence[LeftOut]) -> list[Remark]:
    out = [x for x in left if x.kind in ("failed", "unfinished")]
    if not out:
        return []
    kinds = [f"{sum(x.kind == k for x in out)} {k}" for k in ("failed", "unfinished") if any(x.kind == k for x in out)]
    plural = "s" if len(out) > 1 else ""
    return [Remark("bad", f"Not in here: {listed(kinds)} run{plural}, listed below with the reason.")]


def _floors(fields: Sequence[Field]) -> list[Remark]:
    said = [(field, floor(field.baseline.run)) for field in fields if field.baseline is not None]
    return [Remark("bad", f"{field.name}: {text[:1].lower()}{text[1:]}") for field, text in said if text]


def _foreign(fields: Sequence[Field]) -> list[Remark]:
    """Calibration sets that are not the task's own, each said once."""
    said = [foreign_set(run) for field in fields for run in field.runs]
    return [Remark("note", text) for text in dict.fromkeys(said) if text]


def _idle(field: Field) -> list[Remark]:
    idle = [
        f"{stage['site']} of {stage['title']} ({run.path.name})"
        for run in field.runs
        if len(run.samples)
        for stage in fired(run)
        if not stage["fired"]
    ]
    return [Remark("bad", f"{_some(list(dict.fromkeys(idle)))} withdrew nothing.")] if idle else []


def _inert(field: Field) -> list[Remark]:
    checked = [(run, run.run["inert"]) for run in field.runs if run.run.get("inert")]
    loud = [run.path.name for run, inert in checked if not inert.get("identical")]
    if loud:
        return [Remark("bad", f"Not inert with hooks attached and nothing pruned: {_some(loud)}.")]
    if not checked:
        return []
    return [Remark("good", f"{field.name}: hooks that prune nothing change nothing, in {len(checked)} runs checked.")]


def _missed(frame: pd.DataFrame) -> list[Remark]:
    off = [
        f"{row['method']} ({number(row['tokens_avg'], 'tokens')} for {number(row['budget_asked'], 'tokens')})"
        for _, row in frame[frame["role"].eq("method")].iterrows()
        if not same_budget(row)
    ]
    return [Remark("note", f"Not at the budget asked for: {_some(off)}.")] if off else []


def _moved(frame: pd.DataFrame) -> list[Remark]:
    rows = frame[frame["role"].eq("method") & frame["budget_moved"].gt(0)]
    which = [
        f"{row['method']} at {number(row['tokens_avg'], 'tokens')} ({moved(int(row['budget_moved']))})"
        for _, row in rows.iterrows()
    ]
    return [Remark("note", f"Stages moved towards the input to meet the budget: {_some(which)}.")] if which else []


def _alone(fields: Sequence[Field], frame: pd.DataFrame) -> list[Remark]:
    """Methods without a reference at their budget, where one was asked for: controls, or BTP at another budget."""
    out = []
    rows = frame[frame["role"].eq("method") & frame["macro"].notna()]
    runs = [run for field in fields for run in field.runs]
    without = {str(run.path) for run in runs if "controls" in run.config and not run.config["controls"]}
    btp = set(rows.loc[rows["pruner"].eq("btp"), "field"])
    for key, name, asked in (
        ("random", "random selection", ~rows["folder"].isin(without)),
        ("btp", "BTP", rows["pruner"].ne("btp") & rows["field"].isin(btp)),
    ):
        alone = rows[asked & rows[f"gap_{key}"].isna()]
        if len(alone):
            which = _some(_at_tokens(alone))
            out.append(Remark("note", f"Nothing of {name} at the budget of {which}: no test against it."))
    return out


def _machines(fields: Sequence[Field], frame: pd.DataFrame) -> list[Remark]:
    out = []
    for at, field in enumerate(fields):
        kinds = sorted({h for h in frame.loc[frame["field"].eq(at), "hardware"] if h})
        if len(kinds) > 1:
            text = f"times come from {len(kinds)} kinds of machine, each beside its own unpruned model's"
            out.append(Remark("note", f"{field.name}: {text}."))
    return out


def _some(parts: Sequence[str]) -> str:
    """A list in a sentence, cut where nobody would read on."""
    return listed([*parts[:_MOST], f"{len(parts) - _MOST} more"] if len(parts) > _MOST + 1 else parts)
