"""The sample browser: what the page shows of each sample that has a picture."""

import base64
import shlex
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from btp.report.drawing_errors import Spared
from btp.report.figures.token_overlays import Mark, StageView, kept_cells, marks_of, on_grid, stage_views
from btp.report.pages.explain_data import numbered
from btp.results.reader import Picture, RunFolder, View
from btp.tasks.files.decode_image import open_picture

LARGEST = 640  # pixels of the longer side of a picture inside the page
_SMALL = 200  # below, pixels are shown as squares instead of a blur


def cards(run: RunFolder, spared: Spared) -> list[dict[str, Any]]:
    """One entry per sample with a picture, in the order of the run; first those that a method answers otherwise than
    the unpruned model, then those that a control does.

    Args:
        spared: of a sample that cannot be shown.

    Returns:
        Per sample: id, number, ability, question, reference, picture (as `picture_view` says), answers (per arm:
        arm, title, text, score, mark, same), strips (per arm with stages: arm, title, stages as `stage_view` says, one
        after the other for each view), drawable (its visual tokens lie on views of the picture), differs (not all
        answer like the unpruned model), explain (the command that says why its tokens stay, "" where no arm has a
        stage).
    """
    order = [s for s in dict.fromkeys(run.samples["sample"]) if s in run.pictures]
    rows = {arm.arm: run.rows(arm.arm) for arm in run.arms}
    methods = {arm.arm for arm in run.methods}
    found = []
    for number, sample in enumerate(order):
        with spared.part(f"sample {sample} in the browser"):
            found.append(_card(run, rows, number, sample))
    explain = explain_commands(run)
    for card in found:
        card["explain"] = explain.get(card["id"], "")
    return sorted(
        found, key=lambda card: (all(a["same"] for a in card["answers"] if a["arm"] in methods), not card["differs"])
    )


def explain_commands(run: RunFolder) -> dict[str, str]:
    """`python -m btp.explain RUN SAMPLE` for each sample, the folder as one writes it where the report is made; {}
    where no arm has a stage.
    """
    if not any(arm.schedule for arm in run.arms):
        return {}
    path = run.path.resolve()
    where = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    numbers = {sample: number for number, sample in numbered(run.samples["sample"]).items()}
    command = f"python -m btp.explain {shlex.quote(str(where))}"
    return {sample: f"{command} {shlex.quote(numbers.get(sample, sample))}" for sample in run.samples["sample"]}


def data_uri(png: bytes, kind: str = "png") -> str:
    """Bytes of an image as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(png).decode()}"


def _card(run: RunFolder, rows: dict[str, pd.DataFrame], number: int, sample: str) -> dict[str, Any]:
    answers, first = [], None
    for arm in run.arms:
        if sample not in rows[arm.arm].index:
            continue
        row = rows[arm.arm].loc[sample]
        first = row if first is None else first
        score = float(row["score"])
        answers.append(
            {
                "arm": arm.arm,
                "title": arm.title,
                "text": str(row["prediction"]),
                "score": score,
                "mark": "right" if score == 1 else "wrong" if score == 0 else "partly",
                "same": float(row["agreement"]) == 1,
            }
        )
    picture = run.pictures[sample]
    return {
        "id": sample,
        "number": number,
        "ability": str(first["ability"]),
        "question": str(first["question"]),
        "reference": str(first["reference"]),
        "picture": picture_view(picture),
        "answers": answers,
        "strips": [s for arm in run.arms if (s := _strip(run, arm.arm, arm.title, sample, picture))],
        "drawable": any(on_grid(run, arm.arm, sample) for arm in run.arms),
        "differs": not all(a["same"] for a in answers),
    }


def picture_view(picture: Picture) -> dict[str, Any]:
    """Data URI, aspect (width over height), whether to show its pixels sharp, grids, and boxes in percent."""
    with open_picture(picture.path) as opened:
        image = opened.convert("RGB")
    sharp = max(image.size) < _SMALL
    image.thumbnail((LARGEST, LARGEST))
    buffer = BytesIO()
    kind = "png" if sharp else "jpeg"
    image.save(buffer, kind, **({"optimize": True} if sharp else {"quality": 85}))
    labels = (*picture.labels, *[""] * len(picture.boxes))
    return {
        "uri": data_uri(buffer.getvalue(), kind),
        "aspect": image.width / image.height,
        "sharp": sharp,
        "views": [{"rows": view.grid[0], "columns": view.grid[1], "name": view.name} for view in picture.views],
        "boxes": [
            {"x": 100 * x0, "y": 100 * y0, "w": 100 * (x1 - x0), "h": 100 * (y1 - y0), "label": label}
            for (x0, y0, x1, y1), label in zip(picture.boxes, labels, strict=False)
        ],
    }


def _strip(run: RunFolder, arm: str, title: str, sample: str, picture: Picture) -> dict[str, Any] | None:
    stages = stage_views(run, arm, sample)
    if not stages or not on_grid(run, arm, sample):
        return None
    shown = [stage_view(stage, at, view) | {"marks": []} for stage in stages for at, view in enumerate(picture.views)]
    shown[-1]["marks"] = [_rectangle(mark, picture.views[-1]) for mark in marks_of(run, arm, sample)]
    return {"arm": arm, "title": title, "stages": shown}


def _rectangle(mark: Mark, view: View) -> dict[str, Any]:
    """A box in patches, with its kind and label."""
    (rows, columns), (x0, y0, x1, y1) = view.grid, mark.box
    place = {"x": x0 * columns, "y": y0 * rows, "w": max(x1 - x0, 0) * columns, "h": max(y1 - y0, 0) * rows}
    return {"kind": mark.kind, "label": mark.label, **place}


def stage_view(stage: StageView, at: int, view: View) -> dict[str, Any]:
    """What the page draws of a stage on a view: site, before, after, the view's number and name, and the SVG paths of
    what was kept and what was merged.
    """
    return {
        "site": stage.site,
        "before": stage.before,
        "after": stage.after,
        "view": at,
        "name": view.name,
        "kept": svg_path(kept_cells(stage.kept, view)),
        "merged": svg_path(kept_cells(stage.merged, view)),
    }


def svg_path(cells: Sequence[Sequence[bool]] | np.ndarray) -> str:
    """SVG path around the true cells of a grid, one unit a cell, a rectangle per run of cells in a row."""
    parts = []
    for y, row in enumerate(np.asarray(cells, bool)):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]])))
        parts += [f"M{start} {y}h{end - start}v1h{start - end}z" for start, end in edges.reshape(-1, 2)]
    return "".join(parts)
