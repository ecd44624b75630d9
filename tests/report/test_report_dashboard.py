"""What the page of a comparison is made from: points, kept sets, settings, checks."""

import json
import re

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sample_run import BLIND, SHRUNK, of, write_run

from btp.report.comparison.config_diff import differences
from btp.report.comparison.groups import fields
from btp.report.comparison.table import ranking
from btp.report.figures import pareto_figures as fronts
from btp.report.figures.page_plots import page_plots
from btp.report.figures.style import LIGHT
from btp.report.pages.kept_cards import kept_data
from btp.report.text.checks import checks
from btp.results.reader import read_costs, read_run

pytestmark = pytest.mark.long


def gathered(*folders):
    runs = [read_run(folder) for folder in folders]
    (field,) = fields(runs)
    table = ranking([field])
    return runs, field, table, fronts.series_looks(table.frame)


@pytest.fixture(scope="module")
def plotted(tmp_path_factory):
    """A run with every control: its table, its looks and the plots of its page."""
    folder = write_run(tmp_path_factory.mktemp("a") / "a", samples=8, overlays=0, arms=of("btp", SHRUNK, BLIND))
    _, _, table, looks = gathered(folder)
    return table, looks, page_plots(table.frame, table.columns, looks, {str(folder): 7}, "0")


def test_marks_say_every_number_of_the_table(plotted):
    table, looks, found = plotted
    data = found["data"]
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    ours = [p.key for p in fronts.PRICES if p.key in table.frame and table.frame[p.key].notna().any()]
    assert [one["key"] for one in found["prices"]] == ours == [one["price"] for one in found["abilities"]]
    assert [one["key"] for one in found["scores"]] == ["macro", "reading", "rest"]
    assert {(d["price"], d["score"]) for d in found["drawings"]} == {
        (price, score) for price in ours for score in ("macro", "reading", "rest")
    }
    assert [one["name"] for one in found["series"]] == [name for name in looks if name != "unpruned"]
    for row, (_, wanted) in zip(data["rows"], table.frame.iterrows(), strict=True):
        assert dict(row["said"])["run"] == "7"
        assert row["texts"]["macro"].startswith(f"{100 * wanted['macro']:.1f} (")
        assert row["texts"]["accuracy_digit"].startswith(f"{100 * wanted['accuracy_digit']:.1f}")
        assert row["texts"].keys() == data["titles"].keys()
    assert data["rows"][0]["texts"]["prefill_ratio"] == "1.00"  # the unpruned model's own


def test_every_mark_knows_its_row(plotted):
    """The order of a group's marks is that of its rows: by height, as by the numbers."""
    table, _, found = plotted
    drawing = found["drawings"][0]["svg"]
    heights = {}
    for rows, body in re.findall(r'class="marks"[^>]*data-rows="([\d,]*)">(.*?)</g>\s*</g>', drawing, re.DOTALL):
        high = [float(y) for y in re.findall(r'<use [^>]*y="([\d.]+)"', body)]
        heights |= dict(zip(map(int, rows.split(",")), high, strict=True))
    order = sorted(heights, key=heights.get)
    scores = [table.frame["macro"].iloc[row] for row in order]
    assert scores == sorted(scores, reverse=True)
    assert len(order) >= len(table.frame) - 1


def test_costs_alone_are_no_points(tmp_path):
    folder = write_run(tmp_path / "a", samples=4, overlays=0)
    found = fields([read_costs(folder)])
    table = ranking(found)
    looks = fronts.series_looks(table.frame)
    assert page_plots(table.frame, table.columns, looks, {str(folder): 1}, "0") is None


def test_samples_are_left_out_where_the_page_would_grow_too_large(tmp_path):
    _, field, table, looks = gathered(write_run(tmp_path / "a", samples=40, overlays=20))
    data = kept_data(field, table.frame, looks)
    assert (len(data["samples"]), data["answered"]) == (12, 20)
    split = [card["id"] for card in data["samples"] if card["split"]]
    assert 0 < len(split) < 12
    size = len(json.dumps(data)) / 2**20
    less = kept_data(field, table.frame, looks, largest_mib=size / 2)
    assert 0 < len(less["samples"]) < 12
    assert len(json.dumps(less)) / 2**20 <= size / 2 + 0.001
    kept = [card["id"] for card in less["samples"]]
    assert set(kept) <= set(split) or set(split) <= set(kept)  # those on which all agree go first
    assert len(kept_data(field, table.frame, looks, largest_mib=0)["samples"]) == 1


def test_settings_differ_by_value_or_by_being_there(tmp_path):
    both = {"output": "x", "notes": "n" * 99}
    one = {"schedule": {"kind": "auto", "tau": 0.93}, "budget": {"share": True}, **both}
    other = {"schedule": {"kind": "auto"}, "budget": {"share": None}, **both, "output": "y", "notes": "m" * 99}
    runs = [
        read_run(write_run(tmp_path / str(i), samples=4, overlays=0, config=config))
        for i, config in enumerate((one, other))
    ]
    found = {row["key"]: [value["text"] for value in row["values"]] for row in differences(runs)}
    assert found == {
        "budget.share": ["true", "null"],
        "schedule.tau": ["0.93", "–"],
        "notes": ["n" * 47 + "…", "m" * 47 + "…"],
    }
    (notes,) = [row["values"] for row in differences(runs) if row["key"] == "notes"]
    assert [value["whole"] for value in notes] == ["n" * 99, "m" * 99]
    assert differences(runs[:1] * 2) == []


def test_settings_of_the_commands_come_first_and_what_is_only_offered_does_not_count(tmp_path):
    runs = []
    for name, tau in (("btp", 1), ("dart", 2)):
        pruner = {"name": name, "over": tau, "published": {"llava15": {"over": tau}}}
        config = {"limit": tau, "command": f"python run.py {name}", "pruner": pruner, "schedule": {"tau": tau}}
        run = {"command": f"python run.py schedule.tau={tau} pruner={name}"}
        runs.append(read_run(write_run(tmp_path / name, samples=4, overlays=0, config=config, run=run)))
    assert [row["key"] for row in differences(runs)][:2] == ["schedule.tau", "pruner.name"]
    assert {row["key"] for row in differences(runs)} == {"schedule.tau", "pruner.name", "limit", "pruner.over"}


def test_a_run_says_what_to_mind_worst_first(tmp_path):
    arms = [arm | ({"moved": 1} if arm["arm"] == "btp" else {}) for arm in of("btp")]
    loud = {"inert": {"checked": 8, "identical": False, "max_logit_difference": 0.5}}
    idle = write_run(tmp_path / "a", samples=4, overlays=0, arms=arms, run=loud, stages=[("llm.layer.2", 1.0)])
    assert [(c.kind, c.text) for c in checks(read_run(idle))] == [
        ("bad", "not inert: logits differ by up to 0.5"),
        ("bad", "llm.layer.2 of btp withdrew nothing"),
        ("bad", "llm.layer.2 of random withdrew nothing"),
        ("note", "stages of btp moved 1 layer towards the input"),
    ]
    silent = write_run(tmp_path / "b", samples=4, overlays=0, run={"inert": None})
    assert [(c.kind, c.text) for c in checks(read_run(silent))] == [("note", "inertness not checked")]
    fine = write_run(tmp_path / "c", samples=4, overlays=0)
    assert [(c.kind, c.text) for c in checks(read_run(fine))] == [("good", "inert on 8 samples")]
    assert checks(read_costs(fine)) == [*checks(read_run(fine))]


def test_runs_of_unequal_length_say_so_in_every_row(tmp_path):
    one = write_run(tmp_path / "a", samples=8, overlays=0)
    other = write_run(tmp_path / "b", samples=12, overlays=0, name="dart", arms=of("dart"))
    _, _, table, looks = gathered(one, other)
    assert "samples" in [column.key for column in table.columns]
    rows = page_plots(table.frame, table.columns, looks, {str(one): 1, str(other): 2}, "0")["data"]["rows"]
    said = {row["series"]: dict(row["said"])["samples"] for row in rows}
    assert (said["btp"], said["dart"]) == ("8", "12")
    assert "samples" not in [column.key for column in gathered(one)[2].columns]


def test_a_figure_of_many_variants_of_one_method_has_room(tmp_path, recwarn):
    """Their names are long and alike; the legend grows the figure instead of leaving the axes no room."""
    folder = write_run(tmp_path / "a", samples=8, overlays=0)
    _, _, table, _ = gathered(folder)
    (row,) = table.frame[table.frame["role"].eq("method")].to_dict("records")
    many = [
        row | {"series": f"btp (schedule.balance.first=0.{i:02d}, schedule.kind=uniform)", "tokens_avg": 40 + i}
        for i in range(44)
    ]
    frame = type(table.frame)([*table.frame.to_dict("records"), *many])
    for name in ("accuracy_over_tokens_avg", "reading_and_rest", "by_ability"):  # one of each kind
        draw = fronts.PLOTS[name]
        with matplotlib.rc_context(LIGHT.style()):
            figure = draw(frame, fronts.series_looks(frame), LIGHT)
            FigureCanvasAgg(figure).draw()
        shown = [axes for axes in figure.axes if axes.get_visible()]
        assert min(axes.get_position().height for axes in shown) * figure.get_figheight() > 0.7  # inches
        assert figure.legends[0].get_window_extent().width <= figure.bbox.width
    assert [str(w.message) for w in recwarn if "layout" in str(w.message)] == []


def test_short_names_stay_different():
    names = ["btp", "btp (schedule.balance.first=0.25, tau=0.9)", f"dart ({'x' * 40}1)", f"dart ({'x' * 40}2)"]
    assert list(fronts.shortened(names).values()) == [
        "btp",
        "btp (first=0.25, tau=0.9)",
        f"dart ({'x' * 27}…",
        f"dart ({'x' * 27}… (2)",
    ]
