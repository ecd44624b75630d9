"""Explanation of one sample as an HTML page without other files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from btp.report.figures.style import looks
from btp.report.pages.explain_data import MEANING, Life, Said, StageLife, mark_of, places, ranks, shades
from btp.report.pages.explain_held import HeldLayer, StepLife, ends, named
from btp.report.pages.html import environment
from btp.report.pages.sample_cards import LARGEST, data_uri, svg_path
from btp.report.pages.word_cards import shaded
from btp.results.atomic import write_text
from btp.results.disk import make_folder
from btp.results.reader import View

_SMALL = 200  # pixels of the longer side below which they are shown as squares
_HEAT = "viridis"
MOST_WORDS = 1600  # of a text
MOST_BACK = 12  # words that are named of a step


def write_life(life: Life, page: Path) -> Path:
    """Write the page; folders above it are made.

    Returns:
        `page`.
    """
    make_folder(page.parent)
    write_text(page, _render(life))
    return page


def _render(life: Life) -> str:
    views = [_view(number, view) for number, view in enumerate(life.views)]
    return (
        environment()
        .get_template("explain.html")
        .render(
            life=life,
            looks=looks([(name, "method") for name in life.rules]),
            letters=life.letters,
            answers=_answers(life),
            picture=None if life.picture is None else _picture(life, life.picture),
            held=[_held(life, layer) for layer in life.held],
            left_out=max(0, len(life.words) - MOST_WORDS),
            steps=[_step(life, step) for step in life.steps],
            ramp=", ".join(to_hex(colormaps[_HEAT](at)) for at in np.linspace(0, 1, 6)),
            meaning=_meaning(life),
            views=views,
            marks=life.marks[1],
            stages=[_stage(life, stage) for stage in life.stages],
            layers=[{"tokens": n, "height": 100 * n / max(life.total, 1)} for n in life.layers],
            data={"views": [_cells(view) for view in life.views], "stages": [_facts(s) for s in life.stages]},
        )
    )


def _meaning(life: Life) -> dict[str, str]:
    """What those names mean that are shown and do not say it themselves."""
    parts = dict.fromkeys([*life.rules, *(part for stage in life.stages for part in stage.scores)])
    return {name: MEANING[name] for name in parts if name in MEANING}


def _answers(life: Life) -> list[dict[str, Any]]:
    """Rows of the table: without, with, and what the run's other arms said."""
    shown = ((f"without pruning, {life.total} tokens", life.unpruned),)
    shown += ((f"with {life.arm}, {life.average:.1f} tokens on average", life.pruned),)
    rows = [_answer(title, said) for title, said in shown]
    others = [(title, text, score) for title, text, score in life.others]
    return rows + [
        {"title": f"{title}, in the run", "text": text, "mark": mark_of(score), "score": score, "first": [], "run": ""}
        for title, text, score in others
    ]


def _answer(title: str, said: Said) -> dict[str, Any]:
    first = [{"token": token.strip() or repr(token), "percent": 100 * p} for token, p in said.first]
    run = "" if said.same else said.recorded or "(nothing)"
    return {"title": title, "text": said.text, "mark": said.mark, "score": said.score, "first": first, "run": run}


def _held(life: Life, layer: HeldLayer) -> dict[str, Any]:
    """Words of texts by how many heads hold them, and a drawing for each head of a cache that lost slots."""
    shares, heads = ends(layer.shares, MOST_WORDS), zip(layer.heads, layer.counts, layer.later, strict=True)
    return {
        "layer": layer.layer,
        "title": layer.title,
        "ranked": layer.ranked,
        "runs": shaded(ends(life.words, MOST_WORDS), shares) if life.words else [],
        "width": layer.heads.shape[1],
        "heads": [{"path": svg_path(held[None]), "count": count, "later": later} for held, count, later in heads]
        if layer.evicts
        else [],
    }


def _step(life: Life, step: StepLife) -> dict[str, Any]:
    return {**vars(step), "names": named(life.words, step.back, MOST_BACK) if life.words else ""}


def _picture(life: Life, picture: Image.Image) -> dict[str, Any]:
    image = picture.convert("RGB")
    sharp = max(image.size) < _SMALL
    image.thumbnail((LARGEST, LARGEST))
    buffer = BytesIO()
    image.save(buffer, "png" if sharp else "jpeg")
    labels = (*life.labels, *[""] * len(life.boxes))
    boxes = zip(life.boxes, labels, strict=False)
    needed = [{"x": x0, "y": y0, "w": x1 - x0, "h": y1 - y0} for x0, y0, x1, y1 in life.targets]
    return {
        "needed": needed,
        "uri": data_uri(buffer.getvalue(), "png" if sharp else "jpeg"),
        "aspect": image.width / image.height,
        "sharp": sharp,
        "boxes": [
            {"x": 100 * x0, "y": 100 * y0, "w": 100 * (x1 - x0), "h": 100 * (y1 - y0), "label": label}
            for (x0, y0, x1, y1), label in boxes
        ],
    }


def _view(number: int, view: View) -> dict[str, Any]:
    return {"number": number, "rows": view.grid[0], "columns": view.grid[1], "name": view.name}


def _stage(life: Life, stage: StageLife) -> dict[str, Any]:
    return {
        "site": stage.site,
        "plan": stage.plan,
        "before": len(stage.alive),
        "after": len(stage.kept),
        "same": stage.same,
        "against": stage.against_run(),
        "counts": [(name, len(stage.rules.get(name, ()))) for name in life.rules],
        "merged": len(stage.merged),
        "drawn": [_drawn(life, stage, view) for view in life.views],
        "spans": [] if life.views else [f"{part}: {said}" for part in stage.scores if (said := stage.spans(part))],
        "scores": [(name, _ends(values)) for name, values in stage.scores.items() if shades(values)],
        "heat": {name: [_heat(view, shades(values)) for view in life.views] for name, values in stage.scores.items()},
    }


def _ends(values: Mapping[int, float]) -> tuple[str, str]:
    """The least and the greatest finite score."""
    finite = [value for value in values.values() if math.isfinite(value)]
    return f"{min(finite):.3g}", f"{max(finite):.3g}"


def _drawn(life: Life, stage: StageLife, view: View) -> dict[str, Any]:
    """SVG paths of what stayed, of each rule's share of it and of what others flowed into, and a letter per token."""

    def path(tokens: set[int]) -> str:
        cells = np.zeros(view.grid, bool)
        for row, column, token in places(view):
            cells[row, column] = token in tokens
        return svg_path(cells)

    reason = {token: name for name, tokens in stage.rules.items() for token in tokens}
    letters = [
        {"x": column + 0.5, "y": row + 0.5, "text": life.letters[reason[token]]}
        for row, column, token in places(view)
        if token in reason
    ]
    rules = [(name, path(set(tokens))) for name, tokens in stage.rules.items() if tokens]
    return {"kept": path(set(stage.kept)), "rules": rules, "letters": letters, "merged": path(set(stage.merged))}


def _heat(view: View, values: Mapping[int, float]) -> str:
    """A picture of one pixel per token, as a data URI; clear where a token has no score."""
    pixels = np.zeros((*view.grid, 4), np.uint8)
    colors = colormaps[_HEAT]
    for row, column, token in places(view):
        if token in values:
            pixels[row, column] = (255 * np.asarray(colors(values[token]))).round().astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return data_uri(buffer.getvalue())


def _cells(view: View) -> dict[str, Any]:
    return {"rows": view.grid[0], "columns": view.grid[1], "tokens": [token for _, _, token in places(view)]}


def _facts(stage: StageLife) -> dict[str, Any]:
    """What the page says of a token that is pointed at."""
    return {
        "alive": list(stage.alive),
        "rule": {token: name for name, tokens in stage.rules.items() for token in tokens},
        "merged": list(stage.merged),
        "flowed": dict(stage.flowed),
        "scores": {
            name: {token: [float(f"{values[token]:.4g}"), place] for token, place in ranks(values).items()}
            for name, values in stage.scores.items()
        },
    }
