"""What several methods kept of the same picture, side by side, with what each answered."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from btp.report.browser import picture_view, stage_view
from btp.report.fields import Entry, Field
from btp.report.load import RunFolder
from btp.report.overlays import StageView, on_grid, stage_views

MOST = 12  # samples shown
_STAGES = 8  # stages shown of a method that has more


def kept_cards(field: Field, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """One entry per chosen sample of a field.

    Chosen are samples with a picture that two methods or more answered; where there are too many, those on which they
    disagree come first.

    Args:
        rows: the field's rows of the ranking, in the order in which methods are shown.

    Returns:
        Per sample: id, number, ability, question, reference, picture (as `picture_view` says), unpruned (text, mark)
        or None, split (some are right and some are not), arms (per row with this sample: series, method, note, role,
        budget, tokens, text, score, mark, stages as `stage_view` says with `outside`, skipped stages, drawable).
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
    return [
        _card(number, sample, run, split, entries, answers)
        for number, (sample, run, split) in enumerate(f for f in found if f[0] in chosen)
    ]


def _card(
    number: int,
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
        "number": number,
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
    grid = run.pictures[sample].grid
    drawable = int(answer["total"]) == grid[0] * grid[1]
    if sample in entry.run.pictures:
        drawable = on_grid(entry.run, entry.arm.arm, sample) and entry.run.pictures[sample].grid == grid
    stages = stage_views(entry.run, entry.arm.arm, sample)
    few = _spread(stages)
    return {
        "series": row["series"],
        "method": row["method"],
        "note": row["note"],
        "role": row["role"],
        "budget": int(row["budget"]),
        "tokens": float(answer["tokens_avg"]),
        "stages": [_stage(stage, grid) for stage in few] if drawable else [],
        "skipped": len(stages) - len(few),
        "drawable": drawable,
    }


def _stage(stage: StageView, grid: tuple[int, int]) -> dict[str, Any]:
    """A stage's drawing; tokens that are no patch of the picture are counted, not drawn."""
    inside = [i for i in stage.kept if 0 <= i < grid[0] * grid[1]]
    merged = [i for i in stage.merged if i in set(inside)]
    drawn = StageView(stage.site, stage.before, stage.after, tuple(inside), tuple(merged))
    return stage_view(drawn, grid) | {"outside": len(stage.kept) - len(inside), "gathered": len(merged)}


def _spread(stages: Sequence[StageView]) -> list[StageView]:
    """All stages, or as many as are shown, evenly, the first and the last with them."""
    if len(stages) <= _STAGES:
        return list(stages)
    return [stages[round(i * (len(stages) - 1) / (_STAGES - 1))] for i in range(_STAGES)]
