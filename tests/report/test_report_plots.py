"""Plots and overlays are drawn, legible and what the data says."""

import io
import json

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from sample_run import ARMS, BLIND, SHRUNK, write_run

from btp.report.browser import cards
from btp.report.load import read_run
from btp.report.overlays import StageView, kept_cells, on_grid, overlay_png, panel, stage_views
from btp.report.palette import DARK, LIGHT, looks
from btp.report.plots import PLOTS, to_png
from btp.report.table import run_table


@pytest.mark.parametrize("name", PLOTS)
def test_no_text_lies_on_another_or_outside(tmp_path, name):
    run = read_run(write_run(tmp_path / "run", samples=16, arms=(*ARMS, SHRUNK, BLIND), overlays=0))
    with matplotlib.rc_context(LIGHT.style()):
        figure = PLOTS[name](run, run_table(run), LIGHT)
        FigureCanvasAgg(figure).draw()
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
    return text.get_text(), text.get_window_extent()


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
    cells = kept_cells((0, 5), (2, 3))
    assert cells.tolist() == [[True, False, False], [False, False, True]]
    picture = Image.new("RGB", (90, 60), (200, 100, 50))
    drawn = np.asarray(panel(picture, cells))
    assert drawn[15, 15].tolist() == [200, 100, 50]
    assert drawn[15, 45].max() < 60
    assert drawn[45, 75].tolist() == [200, 100, 50]


def test_a_token_outside_the_grid_is_refused():
    with pytest.raises(ValueError, match=r"Visual token 6 lies outside a grid of 2 x 3\. Correct the grid"):
        kept_cells((0, 6), (2, 3))


def test_tokens_that_are_not_patches_are_not_drawn_on_the_picture(tmp_path):
    """Tiles and newline tokens: the report leaves the drawing out instead of drawing something wrong."""
    folder = write_run(tmp_path / "run", samples=4, overlays=2)
    index = json.loads((folder / "pictures/index.json").read_text())
    index["test-0-000000"]["grid"] = [12, 13]
    (folder / "pictures/index.json").write_text(json.dumps(index))
    run = read_run(folder)
    assert [on_grid(run, "btp", sample) for sample in run.pictures] == [False, True]
    one, other = cards(run)
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
        Image.open(io.BytesIO(overlay_png(image, picture.grid, rows)))
        for rows in ([("btp", stages)], [("btp", stages)] * 2, [("btp", [StageView("s", 2, 1, (0,))] * 9)])
    )
    assert one.width == two.width > 4 * 240
    assert two.height > 1.8 * one.height
    assert long.height > 2.5 * one.height
