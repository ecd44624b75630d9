"""How a study looks: human words, one colour per method, captions, and what its page and a comparison show."""

from io import BytesIO

import pandas as pd
import pytest
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from sample_run import of, set_scores, write_run
from studying import SAMPLES, answer, config, write_settings

from btp.report.comparison.compare import compare
from btp.report.figures.style import LIGHT, looks_apart
from btp.report.studies.ablation import dots
from btp.report.studies.calibration import calibration
from btp.report.studies.controls import inertness
from btp.report.studies.coverage import coverage
from btp.report.studies.curves import curves
from btp.report.studies.setting_names import setting, title
from btp.report.studies.study import column_of
from btp.report.studies.write import _png, typed, write_study

BY = ["pruner.method.over", "pruner.method.seed"]


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda x: hasattr(x, "get_text")) if text.get_text()]


def write_facets(root):
    """BTP and DART with and without a withdrawal, random selection beside BTP."""
    for name in ("dart", "btp"):
        for withdraw in (False, True):
            more = config(pruner={"name": name}, schedule__withdraw_last=withdraw)
            stages = [("llm.layer.2", 0.5), ("llm.layer.8", 0.0 if withdraw else 0.3)]
            write_run(root / f"{name}-{withdraw}", 16, overlays=0, name=name, arms=of(name), config=more, stages=stages)
    return root


def test_settings_are_said_in_words():
    assert setting("schedule.withdraw_last", "false") == "without withdrawal at the end"
    assert setting("schedule.withdraw_last", "true") == "with withdrawal at the end"
    assert setting("pruner.method.seed", "0.25") == "spatial seed 0.25"
    assert setting("model.name", "pocket") == "pocket"
    assert title("some.new_key") == "new key"
    assert column_of("schedule.kind").title == "schedule"


def test_figures_and_sentences_have_no_raw_keys(tmp_path):
    write_facets(tmp_path)
    options = {"x": "tokens_share", "y": ["macro"], "line": "pruner.name", "facet": "schedule.withdraw_last"}
    found = answer(curves, tmp_path, **options)
    shown = texts(found.draw(LIGHT))
    assert "macro, without withdrawal at the end" in shown
    assert not any("withdraw_last" in text for text in [*shown, *found.said])


def test_the_highest_of_all_may_be_a_control(tmp_path):
    """Random selection that beats the methods is named, not passed over."""
    folder = write_run(tmp_path / "btp", SAMPLES, overlays=0, config=config())
    set_scores(folder, {"btp": [0.0] * SAMPLES, "random": [1.0] * SAMPLES})
    options = {"x": "tokens_share", "y": ["macro"], "line": "pruner.name", "controls": ["random"]}
    said = answer(curves, tmp_path, **options).said[0]
    assert said.startswith("highest macro is random's, 100.0%")
    assert "methods and controls lie 100.0 to 100.0 points apart" in said


def test_distances_of_the_average_stand_beside_the_average_only(tmp_path):
    write_facets(tmp_path)
    options = {"x": "tokens_share", "line": "pruner.name"}
    with_macro, without = (answer(curves, tmp_path, **options, y=[y]) for y in ("macro", "agreement"))
    assert any(column.key.startswith("gap_") for column in with_macro.columns)
    assert not any(column.key.startswith("gap_") for column in without.columns)


def test_a_method_has_one_colour_wherever_it_is_drawn():
    """Whatever stands beside it, and in whatever order; strangers take hues that are left."""
    names = ("diversity", "btp", "oracle", "fastv", "divprune", "dart", "attention")
    alone = {name: looks_apart([(name, "method")])[name] for name in names}
    together = looks_apart([("unpruned", "baseline"), *((name, "method") for name in names), ("random", "control")])
    assert {name: together[name] for name in names} == alone
    assert len({look.light for look in alone.values()}) == len(names)
    some = looks_apart([("pdrop", "method"), ("vtw", "method"), ("btp", "method"), ("dart", "method")])
    assert (some["btp"], some["dart"]) == (alone["btp"], alone["dart"])
    assert len({look.light for look in some.values()}) == 4
    many = looks_apart([(f"m{i}", "method") for i in range(12)])
    assert len(set(many.values())) == 12


def test_studies_draw_a_method_in_its_colour(tmp_path):
    write_facets(tmp_path)
    figure = answer(curves, tmp_path, x="tokens_share", y=["macro"], line="pruner.name").draw(LIGHT)
    lines = {line.get_label(): line.get_color() for line in figure.axes[0].lines if line.get_label()[0] != "_"}
    assert {name: lines[name] for name in ("btp", "dart")} == {
        name: looks_apart([(name, "method")])[name].light for name in ("btp", "dart")
    }


def test_nothing_of_a_figure_is_cut_off(tmp_path):
    """The written picture holds every text of the figure, the caption below it too."""
    whole = {"name": "mine", "question": "Is it?", "figure": "coverage", "line": "pruner.name"}
    folder = write_run(tmp_path / "btp", SAMPLES, overlays=0, config=config())
    names = pd.read_parquet(folder / "samples.parquet")["sample"].unique()
    box = {"label": "left", "target": True, "x0": 0.0, "y0": 0.0, "x1": 0.5, "y1": 1.0}
    pd.DataFrame([{"sample": name, **box} for name in names]).to_parquet(folder / "regions.parquet")
    written = write_study(whole, [folder], tmp_path / "out")
    assert written.shown["caption"] == f"pocket, pocketvqa, n = {SAMPLES}"
    figure = answer(coverage, tmp_path, line="pruner.name").draw(LIGHT)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        box = axes.yaxis.label.get_window_extent(canvas.get_renderer())
        assert box.y0 >= 0
        assert box.y1 <= figure.bbox.height


def test_every_figure_says_what_it_is_of(tmp_path):
    """The caption is in the picture: without it, the picture is not as high."""
    found = answer(dots, write_settings(tmp_path), by=BY, metrics=["macro"], against={"pruner.method.over": 2})
    tall = [Image.open(BytesIO(_png(found, caption))).height for caption in ("", "pocket, n = 40", "pocket, " * 60)]
    assert tall[0] < tall[1] < tall[2]


def test_the_command_is_the_one_that_was_typed():
    words = ["-m", "experiment=x", "pruner.layer=range(2,28)", "budget.share=0.5,0.3", "output=/a b", "logger=none"]
    assert typed(words) == "python run.py -m experiment=x 'pruner.layer=range(2,28)' budget.share=0.5,0.3"


def test_a_study_s_page_has_its_command_once_and_first(tmp_path):
    folder = write_run(tmp_path / "btp", SAMPLES, overlays=0)
    whole = {"name": "mine", "question": "Did it happen?", "figure": "fired"}
    write_study(whole, [folder], tmp_path, command="python run.py -m experiment=mine")
    page = (tmp_path / "mine.md").read_text()
    assert page.startswith("```\npython run.py -m experiment=mine\n```\n")
    assert page.count("python run.py") == 1


@pytest.mark.long
def test_a_comparison_opens_with_the_study(tmp_path):
    """Question, sentences, figure and table, in front of everything else; without a study nothing of it."""
    folder = write_run(tmp_path / "btp", SAMPLES, overlays=0)
    whole = {"name": "mine", "question": "Did <it> happen?", "figure": "fired"}
    written = write_study(whole, [folder], tmp_path)
    _, paths = compare([folder], (), tmp_path / "with", written.shown)
    page = paths[0].read_text()
    study = page[page.index('<section id="study">') : page.index('<section id="summary">')]
    assert "<h2>Did &lt;it&gt; happen?</h2>" in study
    assert written.said[0] in study
    assert written.shown["uri"] in study
    assert study.count("llm.layer.") == 3
    _, paths = compare([folder], (), tmp_path / "without")
    assert 'id="study"' not in paths[0].read_text()


def test_differences_are_summed_up_in_one_sentence(tmp_path):
    """Not one per row of the table."""
    found = answer(dots, write_settings(tmp_path), by=BY, metrics=["macro"], against={"pruner.method.over": 2})
    assert len(found.said) == 2
    assert found.said[0].startswith("Best: candidates a token 2, spatial seed 0 with 100.0%")


def test_settings_that_score_alike_have_no_best(tmp_path):
    write_run(tmp_path / "a", SAMPLES, overlays=0, config=config(pruner__method={"seed": 0}))
    write_run(tmp_path / "b", SAMPLES, overlays=0, config=config(pruner__method={"seed": 1}))
    found = answer(dots, tmp_path, by=["pruner.method.seed"], metrics=["macro"], against={"pruner.method.seed": 0})
    assert found.said[0].startswith("All 2 settings score ")


def test_inertness_has_an_axis_for_either_quantity(tmp_path):
    write_run(tmp_path / "btp", SAMPLES, overlays=0)
    figure = answer(inertness, tmp_path).draw(LIGHT)
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "largest difference of a logit",
        "KL of the first answer token, nats",
    ]
    assert [axes.get_title() for axes in figure.axes] == ["attached, keeping everything", "pruning at the budget"]


def test_calibration_draws_the_curves_of_every_set(tmp_path):
    for size, shift in ((4, 0.0), (64, 3.0)):
        folder = tmp_path / str(size)
        write_run(folder, SAMPLES, overlays=0, config=config(calibration={"samples": size}))
        file = folder / "calibration.yaml"
        known = yaml.safe_load(file.read_text())
        known["curves"]["changed"][3] += shift
        file.write_text(yaml.safe_dump(known))
    options = {"by": ["calibration.samples"], "metrics": ["macro"], "against": {"calibration.samples": 64}}
    found = answer(calibration, tmp_path, **options)
    assert found.said[0].startswith("2 sets come to 1 choice of stages; in no layer do their curves lie further apart")
    assert "3.0 tokens and 0.0 points" in found.said[0]
    changed = found.draw(LIGHT).axes[0]
    drawn = {line.get_label(): line.get_ydata() for line in changed.lines if len(line.get_ydata()) == 12}
    assert drawn["pictures 64"][3] - drawn["pictures 4"][3] == 3
    (tmp_path / "4" / "calibration.yaml").unlink()
    with pytest.raises(ValueError, match=r"4 holds no calibration curves. Give its run schedule=calibrated."):
        answer(calibration, tmp_path, **options)
