"""The plots of a comparison's page: matplotlib's SVG in the reader's colours, and what each mark stands for."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import StringIO
from typing import Any

import matplotlib
import pandas as pd
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

from btp.report.comparison.table import SLOTS, price
from btp.report.figures.axes import lay_out
from btp.report.figures.pareto_figures import PRICES, Price, by_ability, score_over_price, score_title, shortened
from btp.report.figures.style import LIGHT, Look
from btp.report.tables.columns import ABILITY, DASH, METRICS, Column, number, spread
from btp.report.text.token_names import common, in_unit

_KINDS = {"tokens_avg": "tokens", SLOTS: "tokens", "prefill_ratio": "times", "forward_ratio": "times"}
_SCORES = ("macro", "reading", "rest")  # drawn in large, beside the task's own metrics
_REFERENCES = ("random", "downsampled", "btp")
_SAID = (*(f"{of}_{name}{end}" for name in _REFERENCES for of, end in (("gap", ""), ("p", "_holm"))), "agreement")
_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_SIZE = re.compile(r'(<svg [^>]*?)width="[^"]*" |height="[^"]*" (?=[^>]*viewBox)')
_PART = re.compile(r'<g id="series:(\d+)">')
_MARKS = re.compile(r'<g id="marks:(\d+):([^":]+):([\d,]*)">')
_COLOR = re.compile(r"#[0-9a-f]{6}\b")


def page_plots(
    rows: pd.DataFrame, columns: Sequence[Column], looks: Mapping[str, Look], numbers: Mapping[str, int], name: str
) -> dict[str, Any] | None:
    """A field's plots, every score over every price.

    Args:
        rows: Rows of the field, as the ranking has them.
        columns: Columns of the table; accuracies and the task's metrics become what is drawn upwards.
        looks: Look of each series.
        numbers: Numbers of runs, by folder.
        name: Name of the field, no other's on the page.

    Returns:
        prices and scores (key, title); drawings (price, score, title, svg) and abilities (price, svg); series (place in
        `looks`, name, short, role, mark: the path of its mark); data: titles of keys and rows (series, method, note,
        texts by key, said: [title, text] pairs) for what a mark says. None where nothing can be drawn.
    """
    prices = [p for p in PRICES if pd.Series(price(rows, p.key), rows.index)[rows["role"].ne("baseline")].notna().any()]
    own = [c for c in columns if c.key in _SCORES or c.group in (METRICS, ABILITY)]
    own = [c for c in own if rows.loc[rows["role"].ne("baseline"), c.key].notna().any()]
    scores = [c for c in own if c.group != ABILITY]
    drawings = []
    prices = [Price(p.key, in_unit(p.axis, common(rows["unit"]))) for p in prices]
    for of in prices:
        for score in scores:
            title = f"{score_title(score)} over {of.axis}"
            draw = partial(score_over_price, rows, looks, of=of, score=score, page=True)
            svg = _svg(draw, looks, title, name)
            drawings += [{"price": of.key, "score": score.key, "title": title, "svg": svg}] if svg else []
    if not drawings:
        return None
    abilities = []
    for of in prices:
        title = f"accuracy in each ability over {of.axis}"
        svg = _svg(partial(by_ability, rows, looks, of=of, page=True), looks, title, name)
        abilities += [{"price": of.key, "svg": svg}] if svg else []
    roles = rows.drop_duplicates("series").set_index("series")["role"]
    short, drawn = shortened(list(looks)), {key: {d[key] for d in drawings} for key in ("price", "score")}
    return {
        "prices": [{"key": p.key, "title": p.axis} for p in prices if p.key in drawn["price"]],
        "scores": [{"key": c.key, "title": score_title(c)} for c in scores if c.key in drawn["score"]],
        "drawings": drawings,
        "abilities": abilities,
        "series": [
            {"place": i, "name": one, "short": short[one], "role": roles[one], "mark": _mark(look)}
            for i, (one, look) in enumerate(looks.items())
            if roles.get(one, "baseline") != "baseline"
        ],
        "data": {
            "titles": {c.key: score_title(c) for c in own} | {p.key: re.split(r",| \(", p.axis)[0] for p in prices},
            "rows": [_row(row, price_of, own, columns, numbers) for row, price_of in _priced(rows, prices)],
        },
    }


def _svg(draw: Callable[..., Figure | None], looks: Mapping[str, Look], title: str, name: str) -> Markup | None:
    """A figure as a part of a page: no size of its own, colours by the page's names, ids turned into data."""
    salt = {"svg.fonttype": "none", "svg.hashsalt": f"{name} {title}"}  # ids differ from those of all other plots
    with matplotlib.rc_context(LIGHT.style() | salt):
        figure = draw(theme=LIGHT)
        if figure is None:
            return None
        lay_out(figure)
        FigureCanvasSVG(figure)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = _SIZE.sub(r"\1", _HEAD.sub("", buffer.getvalue()))
    text = _PART.sub(r'<g data-series="\1">', text)
    text = _MARKS.sub(r'<g class="marks" data-series="\1" data-key="\2" data-rows="\3">', text)
    names = {look.light: f"var(--arm-{place})" for place, look in enumerate(looks.values())}
    names |= {LIGHT.paper: "var(--card)", LIGHT.ink: "var(--ink)", LIGHT.soft: "var(--soft)", LIGHT.line: "var(--line)"}
    text = _COLOR.sub(lambda found: names.get(found[0], found[0]), text).replace("'DejaVu Sans'", "sans-serif")
    return Markup(text)  # matplotlib escapes the names in it


def _mark(look: Look) -> str:
    """[-1, 1]^2 the mark of a series, as the path of an SVG."""
    shape = MarkerStyle(look.marker)
    path = shape.get_path().transformed(shape.get_transform())
    corners = path.to_polygons()[0]
    most = abs(corners).max()
    return "M" + "L".join(f"{x / most:.2f} {-y / most:.2f}" for x, y in corners) + "z"


def _priced(rows: pd.DataFrame, prices: Sequence[Price]) -> list[tuple[pd.Series, dict[str, str]]]:
    """Every row with its prices in words."""
    paid = {p.key: price(rows, p.key) for p in prices}
    texts = [{key: number(v[i], _KINDS.get(key, "flops")) for key, v in paid.items()} for i in range(len(rows))]
    return list(zip((row for _, row in rows.iterrows()), texts, strict=True))


def _row(
    row: pd.Series,
    paid: Mapping[str, str],
    scores: Sequence[Column],
    columns: Sequence[Column],
    numbers: Mapping[str, int],
) -> dict[str, Any]:
    said = [[c.title, _text(row, c)] for c in columns if c.key in _SAID]
    return {
        "series": row["series"],
        "method": row["method"],
        "note": row["budget_note"],
        "texts": {c.key: _text(row, c) for c in scores} | paid,
        "said": [
            *([title, text] for title, text in said if text != DASH),
            ["samples", str(row["samples"])],
            ["run", str(numbers[row["folder"]])],
        ],
    }


def _text(row: Mapping[str, Any], column: Column) -> str:
    text, ends = number(row.get(column.key), column.kind), spread(row, column)
    return f"{text} ({ends})" if ends and text != DASH else text
