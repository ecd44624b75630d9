"""Kept-token cards of a comparison: tokens that several methods kept of one picture, stage by stage, and answers."""

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from btp.report.comparison.groups import Entry, Field
from btp.report.drawing_errors import Spared
from btp.report.figures.token_overlays import StageView, kept_cells, on_grid, stage_views
from btp.report.pages.sample_cards import picture_view
from btp.report.tables.columns import number
from btp.results.reader import RunFolder, View

MOST = 12  # samples shown
MIB = 2**20
LARGEST_MIB = 4.0  # of all samples together inside the page
_STAGES = 8  # stages shown of a method that has more


def kept_data(
    field: Field, rows: pd.DataFrame, looks: Mapping[str, Any], largest_mib: float = LARGEST_MIB
) -> dict[str, Any] | None:
    """What the page's browser of kept tokens reads: as many samples as fit.

    Args:
        rows: the field's rows of the ranking, in the order in which methods are shown.
        looks: per series.
        largest_mib: size above which samples are left out, those on which all agree first; one always stays.

    Returns:
        budgets (budget, tokens as text), most tokens first; opens: the budget that is shown first, None for all of
        them; samples as `kept_cards` says, each arm with its look: the place of its series in `looks`; answered: how
        many samples there were to choose from; None without any.
    """
    names = list(looks)
    cards, answered = kept_cards(field, rows)
    if not cards:
        return None
    for card in cards:
        card["arms"] = [arm | {"look": names.index(arm["series"])} for arm in card["arms"]]
    used, fit = 0.0, set()
    for card in sorted(cards, key=lambda card: not card["split"]):
        used += len(json.dumps(card)) / MIB
        if not fit or used <= largest_mib:
            fit.add(card["id"])
    methods = rows[rows["role"].eq("method")]
    budgets = {int(b): float(group["tokens_avg"].iloc[0]) for b, group in methods.groupby("budget")}
    return {
        "budgets": [{"budget": b, "tokens": number(t, "tokens")} for b, t in sorted(budgets.items())],
        "opens": _opens(cards, budgets),
        "samples": [card for card in cards if card["id"] in fit],
        "answered": answered,
    }


def _opens(cards: Sequence[Mapping[str, Any]], budgets: Mapping[int, float]) -> int | None:
    """The budget at which most methods can be seen, with fewest tokens of several; None where each has one arm."""
    seen = {(arm["budget"], arm["method"], arm["role"]) for card in cards for arm in card["arms"] if arm["stages"]}
    arms = Counter(budget for budget, _, _ in seen)
    methods = Counter(budget for budget, _, role in seen if role == "method")
    return max(budgets, key=lambda b: (methods[b], b), default=None) if max(arms.values(), default=0) > 1 else None


def kept_cards(field: Field, rows: pd.DataFrame) -> tuple[list[dict[str, Any]], int]:
    """One entry per chosen sample of a field, and how many there were to choose from.

    Chosen are samples with a picture that two methods or more answered; where there are too many, those on which they
    disagree come first.

    Args:
        rows: the field's rows of the ranking, in the order in which methods are shown.

    Returns:
        Per sample: id, ability, question, reference, picture (as `picture_view` says), unpruned (text, score, mark)
        or None, split (some are right and some are not), arms (per row with this sample: series, method, note, role,
        budget, tokens, text, score, mark, skipped stages, drawable, and stages, one after the other for each view:
        site, before, after, the view's number and name, kept and merged as `packed` says, gathered: how many are
        merged, outside: how many are on no view).
    """
    by_row = {(str(e.run.path), e.arm.arm): e for e in field.entries}
    entries = [(by_row[row["folder"], row["arm"]], row) for _, row in rows.iterrows()]
    answers = {id(entry): entry.rows for entry, _ in entries}
    pictures: dict[str, RunFolder] = {}
    for run in field.runs:
        for sample in run.pictures:
            pictures.setdefault(sample, run)
    shown = [(entry, row) for entry, row in entries if row["role"] != "baseline"]
    enough = min(2, len(shown))
    found = []
    for sample, run in pictures.items():
        scores = [float(answers[id(e)].loc[sample, "score"]) for e, _ in shown if sample in answers[id(e)].index]
        if len(scores) >= max(enough, 1):
            found.append((sample, run, len(set(scores)) > 1))
    chosen = {f[0] for f in sorted(found, key=lambda f: not f[2])[:MOST]}
    cards, spared = [], Spared()
    for sample, run, split in found:
        if sample in chosen:
            with spared.part(f"sample {sample} of {run.path} in the browser"):
                cards.append(_card(sample, run, split, entries, answers))
    return cards, len(found)


def packed(cells: np.ndarray) -> str:
    """[rows, columns] of True and False as base64: a bit each, row by row, the first in the first byte's highest."""
    return base64.b64encode(np.packbits(cells).tobytes()).decode() if cells.any() else ""


def _card(
    sample: str,
    run: RunFolder,
    split: bool,
    entries: Sequence[tuple[Entry, pd.Series]],
    answers: dict[int, pd.DataFrame],
) -> dict[str, Any]:
    asked = run.samples[run.samples["sample"] == sample].iloc[0]
    arms, unpruned = [], None
    for entry, row in entries:
        mine = answers[id(entry)]
        if sample not in mine.index or mine.loc[sample, "question"] != asked["question"]:
            continue
        answer = _answer(mine.loc[sample])
        if row["role"] == "baseline":
            unpruned = answer
        else:
            arms.append(answer | _arm(entry, row, mine.loc[sample], sample, run))
    return {
        "id": sample,
        "ability": str(asked["ability"]),
        "question": str(asked["question"]),
        "reference": str(asked["reference"]),
        "picture": picture_view(run.pictures[sample]),
        "unpruned": unpruned,
        "split": split,
        "arms": arms,
    }


def _answer(row: pd.Series) -> dict[str, Any]:
    score = float(row["score"])
    mark = "right" if score == 1 else "wrong" if score == 0 else "partly"
    return {"text": str(row["prediction"]), "score": score, "mark": mark}


def _arm(entry: Entry, row: pd.Series, answer: pd.Series, sample: str, run: RunFolder) -> dict[str, Any]:
    views = run.pictures[sample].views
    drawable = int(answer["total"]) == run.pictures[sample].total
    if sample in entry.run.pictures:
        drawable = on_grid(entry.run, entry.arm.arm, sample) and entry.run.pictures[sample].views == views
    stages = stage_views(entry.run, entry.arm.arm, sample)
    few = _spread(stages)
    return {
        "series": row["series"],
        "method": row["method"],
        "note": row["note"],
        "role": row["role"],
        "budget": int(row["budget"]),
        "tokens": float(answer["tokens_avg"]),
        "stages": [panel for stage in few for panel in _stage(stage, views)] if drawable else [],
        "skipped": len(stages) - len(few),
        "drawable": drawable,
    }


def _stage(stage: StageView, views: Sequence[View]) -> list[dict[str, Any]]:
    """A stage's drawings, one a view; tokens that are no patch of the picture are counted at the last, not drawn."""
    found, outside = [], len(stage.kept)
    for at, view in enumerate(views):
        inside = tuple(i for i in stage.kept if i in view.drawn)
        merged = tuple(i for i in stage.merged if i in inside)
        outside -= len(inside)
        found.append(
            {
                "site": stage.site,
                "before": stage.before,
                "after": stage.after,
                "view": at,
                "name": view.name,
                "kept": packed(kept_cells(inside, view)),
                "merged": packed(kept_cells(merged, view)),
                "gathered": len(merged),
                "outside": 0,
            }
        )
    found[-1]["outside"] = outside
    return found


def _spread(stages: Sequence[StageView]) -> list[StageView]:
    """All stages, or as many as are shown, evenly, the first and the last with them."""
    if len(stages) <= _STAGES:
        return list(stages)
    return [stages[round(i * (len(stages) - 1) / (_STAGES - 1))] for i in range(_STAGES)]
