"""Plots and overlays are drawn, legible and what the data says."""

import io
import json

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from sample_run import ARMS, BLIND, SHRUNK, of, write_run

from btp.report.comparison.groups import fields
from btp.report.comparison.table import ranking
from btp.report.drawing_errors import Spared
from btp.report.figures import pareto_figures as fronts
from btp.report.figures.axes import tradeoff
from btp.report.figures.labels import name_points
from btp.report.figures.run_figures import PLOTS, to_png
from btp.report.figures.style import DARK, LIGHT, looks
from btp.report.figures.token_overlays import StageView, kept_cells, on_grid, overlay_png, panel, stage_views
from btp.report.pages.sample_cards import cards
from btp.report.tables.run_table import run_table
from btp.results.reader import View, read_costs, read_run

pytestmark = pytest.mark.long

ELSEWHERE = ("_model", "forward_ratio", "_slots")  # plots of what other models and methods cost
OTHERS = ("unpruned", "random", "downsampled", "no image")


@pytest.mark.parametrize("name", [name for name in PLOTS if name not in ("needles", "rows_per_step")])
def test_no_text_lies_on_another_or_outside(tmp_path, name):
    run = read_run(write_run(tmp_path / "run", samples=16, arms=(*ARMS, SHRUNK, BLIND), overlays=0))
    with matplotlib.rc_context(LIGHT.style()):
        figure = PLOTS[name](run, run_table(run), LIGHT)
        FigureCanvasAgg(figure).draw()
        assert_apart(figure)


def test_rows_of_decode_steps(tmp_path):
    """A panel per arm that acts in them, a line per stage, means over the samples; the prefill is not drawn."""
    run = read_run(write_run(tmp_path / "run", samples=4, arms=(*ARMS, SHRUNK, BLIND), overlays=0))
    assert PLOTS["rows_per_step"](run, run_table(run), LIGHT) is None
    arm = run.methods[0].arm
    rows = [
        {
            "arm": arm,
            "sample": str(s),
            "step": t,
            "site": f"llm.layer.{at}",
            "computed": 9 if t == 0 else t + s,
            "revived": 0,
        }
        for s in range(2)
        for t in range(4)
        for at in (2, 5)
    ]
    pd.DataFrame(rows).to_parquet(run.path / "steps.parquet")
    figure = PLOTS["rows_per_step"](run, run_table(run), LIGHT)
    (axes,) = [a for a in figure.axes if a.get_visible()]
    stages = axes.get_lines()[:2]
    assert [line.get_label() for line in stages] == ["behind llm.layer.2", "behind llm.layer.5"]
    assert [list(line.get_ydata()) for line in stages] == [[1.5, 2.5, 3.5]] * 2


@pytest.mark.parametrize("name", [name for name in fronts.PLOTS if not name.endswith(ELSEWHERE)])
@pytest.mark.parametrize("methods", [2, 9])
def test_no_text_of_a_comparison_lies_on_another_or_outside(crowd, name, methods):
    frame = crowd[crowd["series"].isin([*(f"method{i}" for i in range(methods)), *OTHERS])]
    with matplotlib.rc_context(LIGHT.style()):
        figure = fronts.PLOTS[name](frame, fronts.series_looks(frame), LIGHT)
        FigureCanvasAgg(figure).draw()
        assert_apart(figure)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """Nine methods at two budgets."""
    root = tmp_path_factory.mktemp("crowd")
    runs = [
        read_run(
            write_run(
                root / f"{i}-{keep}",
                samples=24,
                overlays=0,
                name=f"method{i}",
                arms=of(f"method{i}", SHRUNK, BLIND),
                stages=[("llm.layer.1", keep)],
            )
        )
        for i in range(9)
        for keep in (0.4, 0.2)
    ]
    return ranking(fields(runs)).frame


def test_the_front_is_drawn_through_its_points(crowd):
    """Steps from point to point, and on to the edge; dominated points lie on or below them."""
    with matplotlib.rc_context(LIGHT.style()):
        figure = fronts.PLOTS["accuracy_over_flops_prefill"](crowd, fronts.series_looks(crowd), LIGHT)
    axes = figure.axes[0]
    (front,) = [line for line in axes.get_lines() if line.get_label() == "Pareto front"]
    on = crowd[crowd["front_flops_prefill"]].sort_values("flops_prefill")
    assert front.get_ydata()[:-1].tolist() == pytest.approx((100 * on["macro"]).tolist())
    assert (np.diff(front.get_xdata()) >= 0).all()
    assert (np.diff(front.get_ydata()) >= 0).all()


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_marks_stand_at_their_tokens(tmp_path, crowd, kind):
    """None is moved along the axis, however many there are at one place."""
    with matplotlib.rc_context(LIGHT.style()):
        if kind == "run":
            table = run_table(read_run(write_run(tmp_path / "run", samples=16, arms=(*ARMS, SHRUNK), overlays=0)))
            frame, figure = table.frame, tradeoff(table, LIGHT)
        else:
            draw = fronts.PLOTS["accuracy_over_tokens_avg"]
            frame, figure = crowd[crowd["role"] != "baseline"], draw(crowd, fronts.series_looks(crowd), LIGHT)
    marks = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "None"]
    drawn = {(round(x, 6), round(y, 6)) for line in marks for x, y in zip(*line.get_data(), strict=True)}
    assert drawn == {(round(x, 6), round(100 * y, 6)) for x, y in zip(frame["tokens_avg"], frame["macro"], strict=True)}


def test_every_method_is_named_where_there_is_room(crowd):
    frame = crowd[crowd["series"].isin(["method0", "method1", *OTHERS])]
    with matplotlib.rc_context(LIGHT.style()):
        figure = fronts.PLOTS["accuracy_over_tokens_avg"](frame, fronts.series_looks(frame), LIGHT)
    named = {text.get_text() for text in figure.axes[0].texts}
    assert {"method0", "method1", "random", "downsampled", "no image"} <= named
    assert any("unpruned" in text for text in named)
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"Pareto front", "method0", "random"} <= legend


def test_controls_are_hollow_and_methods_come_first(crowd):
    found = fronts.series_looks(crowd)
    assert list(found)[:2] == ["unpruned", "method0"]
    assert found["method0"] == looks([("unpruned", "baseline"), ("method0", "method")])["method0"]
    hollow = set(crowd.loc[crowd["role"] == "control", "series"])
    assert len({(look.light, look.marker, name in hollow) for name, look in found.items()}) == len(found) == 13


def test_a_comparison_of_costs_has_no_plots(tmp_path):
    runs = [read_costs(write_run(tmp_path / "run", samples=4, overlays=0))]
    frame = ranking(fields(runs)).frame
    drawn = [name for name, draw in fronts.PLOTS.items() if to_png(draw, frame, {}, DARK)]
    assert drawn == []


def test_names_are_left_to_the_legend_where_there_is_no_room():
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1])
    assert name_points(axes, [(0.5, 0.5, "a name", "k", "series:0")], [(0.5, 0.5)]) == 1
    assert name_points(axes, [(0.5, 0.5, "a name far too long for these small axes", "k", "series:0")], []) == 0


def assert_apart(figure):
    boxes = []
    for axes in figure.axes:
        texts = [*_ticks(axes.xaxis), *_ticks(axes.yaxis), *axes.texts, axes.xaxis.label, axes.yaxis.label]
        boxes += [_box(t) for t in texts if t.get_text() and t.get_visible()]
    boxes += [_box(t) for legend in figure.legends for t in legend.get_texts()]
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        small = box.shrunk(0.9, 0.9)
        assert [other for other, area in boxes[:i] if small.overlaps(area)] == [], text


def _box(text):
    return text.get_text(), Text.get_window_extent(text)  # an annotation's own extent has its line in it


def _ticks(axis):
    """Labels of ticks within the limits; others exist, but are not drawn."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def test_plots_without_data_are_left_out(tmp_path):
    folder = write_run(tmp_path / "run", samples=4, arms=ARMS[:1], drop=["layers.json", "calibration.yaml"])
    run = read_run(folder)
    drawn = {name for name, draw in PLOTS.items() if to_png(draw, run, run_table(run), DARK)}
    assert drawn == {"accuracy_by_ability"}


def test_an_arm_has_one_colour_and_arms_differ():
    arms = [("unpruned", "baseline"), *((f"m{i}", "method") for i in range(12))]
    found = looks(arms)
    assert len({(look.light, look.marker) for look in found.values()}) == 13
    assert looks(arms[:3])["m1"] == found["m1"]


def test_kept_patches_are_clear_and_dropped_ones_dim():
    cells = kept_cells((0, 5), View((2, 3)))
    assert cells.tolist() == [[True, False, False], [False, False, True]]
    picture = Image.new("RGB", (90, 60), (200, 100, 50))
    drawn = np.asarray(panel(picture, cells))
    assert drawn[15, 15].tolist() == [200, 100, 50]
    assert drawn[15, 45].max() < 60
    assert drawn[45, 75].tolist() == [200, 100, 50]
    tinted = np.asarray(panel(picture, cells, kept_cells((5,), View((2, 3)))))
    assert tinted[15, 15].tolist() == [200, 100, 50]
    assert tinted[45, 75].tolist() == [227, 50, 125]


def test_a_token_outside_the_grid_is_refused():
    with pytest.raises(ValueError, match=r"Visual token 6 lies outside a grid of 2 x 3\. Correct the grid"):
        kept_cells((0, 6), View((2, 3)))


def test_tokens_of_several_views_are_found_by_number():
    """The whole picture in two rows of two, its mosaic in one row of three, newlines nowhere."""
    whole, tiles = View((2, 2), (0, 1, 2, 3), "whole"), View((1, 3), (4, 5, -1), "tiles")
    kept = (1, 5, 6)
    assert kept_cells(kept, whole).tolist() == [[False, True], [False, False]]
    assert kept_cells(kept, tiles).tolist() == [[False, True, False]]
    assert kept_cells((-1,), tiles).tolist() == [[False, False, False]]


def test_an_overlay_shows_every_view_of_a_stage():
    views = View((2, 2), (0, 1, 2, 3), "whole"), View((1, 2), (4, 5), "tiles")
    stages = [StageView("llm.layer.1", 6, 2, (1, 4))]
    sheet = Image.open(io.BytesIO(overlay_png(Image.new("RGB", (60, 60), (200, 100, 50)), views, [("btp", stages)])))
    left, top, step = 110, 32, 252  # of the first panel, and from one to the next

    def clear(panel, across, down):
        return sheet.getpixel((left + panel * step + round(across * 240), top + round(down * 240))) == (200, 100, 50)

    assert clear(0, 0.25, 0.25)
    assert [clear(1, x, y) for y in (0.25, 0.75) for x in (0.25, 0.75)] == [False, True, False, False]
    assert [clear(2, x, 0.5) for x in (0.25, 0.75)] == [True, False]


def test_tokens_that_are_not_patches_are_not_drawn_on_the_picture(tmp_path):
    """Tiles and newline tokens: the report leaves the drawing out instead of drawing something wrong."""
    folder = write_run(tmp_path / "run", samples=4, overlays=2)
    index = json.loads((folder / "pictures/index.json").read_text())
    index["test-0-000000"]["grid"] = [12, 13]
    (folder / "pictures/index.json").write_text(json.dumps(index))
    run = read_run(folder)
    assert [on_grid(run, "btp", sample) for sample in run.pictures] == [False, True]
    one, other = cards(run, Spared())
    assert (one["drawable"], one["strips"]) == (False, [])
    assert (other["drawable"], len(other["strips"])) == (True, 2)


def test_an_overlay_has_a_panel_per_stage_and_a_row_per_arm(run_folder):
    run = read_run(run_folder)
    sample, picture = next(iter(run.pictures.items()))
    stages = stage_views(run, "btp", sample)
    assert [(s.site, s.before, s.after, len(s.kept)) for s in stages] == [
        ("llm.layer.3", 144, 72, 72),
        ("llm.layer.6", 72, 36, 36),
        ("llm.layer.9", 36, 0, 0),
    ]
    assert stage_views(run, "unpruned", sample) == []
    image = Image.open(picture.path)
    one, two, long = (
        Image.open(io.BytesIO(overlay_png(image, picture.views, rows)))
        for rows in ([("btp", stages)], [("btp", stages)] * 2, [("btp", [StageView("s", 2, 1, (0,))] * 9)])
    )
    assert one.width == two.width > 4 * 240
    assert two.height > 1.8 * one.height
    assert long.height > 2.5 * one.height
