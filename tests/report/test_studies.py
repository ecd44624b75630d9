"""Studies: what a figure's numbers come to on runs whose answers are known, and what is refused."""

import json
from math import isnan

import numpy as np
import pandas as pd
import pytest
import yaml
from sample_run import ABILITIES, ARMS, method, of, set_scores, write_run
from studying import ALL, NONE, SAMPLES, answer, config, write_depths, write_settings

from btp.report.comparison.groups import fields
from btp.report.studies.ablation import dots
from btp.report.studies.controls import fired, inertness
from btp.report.studies.coverage import cells_of, coverage, shares_kept
from btp.report.studies.curves import curves
from btp.report.studies.depth_sweep import depth_sweep, knee
from btp.report.studies.grid import grid
from btp.report.studies.late_questions import late
from btp.report.studies.paired_suites import suites
from btp.report.studies.reproduce import published
from btp.report.studies.write import BEGIN, END, KINDS, write_study
from btp.results.find import find_runs


@pytest.fixture
def depths(tmp_path):
    return write_depths(tmp_path)


@pytest.fixture
def settings(tmp_path):
    return write_settings(tmp_path)


def test_the_knee_lies_halfway_between_floor_and_top():
    found = knee([1, 2, 3, 4], [0.2, 0.2, 1.0, 1.0], floor=0.2, top=1.0)
    assert found.half == pytest.approx(2.5)
    assert (found.before, found.after, found.step) == (2, 3, pytest.approx(0.8))


def test_the_knee_counts_layers_that_were_not_swept():
    found = knee([0, 10, 14], [0.0, 0.0, 1.0], floor=0.0, top=1.0)
    assert found.half == pytest.approx(12)
    assert found.step == pytest.approx(0.25)


def test_a_score_that_falls_again_has_its_knee_where_it_comes_back_for_good():
    assert knee([1, 2, 3, 4], [0.0, 0.8, 0.0, 1.0], 0.0, 1.0).half == pytest.approx(3.5)


@pytest.mark.parametrize(("scores", "top"), [([0.0, 0.1], 1.0), ([0.5, 0.5], 0.5), ([0.9, 1.0], 1.0)])
def test_no_knee_where_half_is_never_crossed(scores, top):
    assert isnan(knee([1, 2], scores, scores[0] if top > 0.5 and scores[0] < 0.5 else 0.5, top).half)


def test_a_depth_sweep_locates_the_knee_of_every_ability(depths):
    found = answer(depth_sweep, depths, x="pruner.layer").frame.set_index("score")
    macro = found.loc["macro"]
    assert [macro[f"at_{layer}"] for layer in (2, 4, 6, 8)] == pytest.approx([0, 0, 0.5, 1])
    assert (macro["knee"], macro["knee_share"]) == pytest.approx((6, 0.5))
    assert set(ABILITIES) <= set(found.index)


def test_a_depth_sweep_needs_layers(settings):
    for folder in list(settings.iterdir())[1:]:
        (folder / "run.json").unlink()
    with pytest.raises(ValueError, match="a depth sweep needs the unpruned model and two layers"):
        answer(depth_sweep, settings, x="stages")


def test_settings_are_held_against_their_reference(settings):
    against = {"pruner.method.over": 2}
    by = ["pruner.method.over", "pruner.method.seed"]
    found = answer(dots, settings, by=by, metrics=["macro"], against=against)
    rows = found.frame[found.frame["role"].eq("method")].set_index(by)
    assert len(rows) == 4
    assert rows.loc[("1", "0.25"), "gap_reference"] == pytest.approx(-0.5)
    assert rows.loc[("1", "0"), "p_reference_holm"] < 0.001
    assert isnan(rows.loc[("2", "0"), "gap_reference"])
    assert found.said[1] == "Told from their reference: 2 of 2 settings, 2 below it by 50.0 points (Holm)."


def test_a_grid_has_a_cell_per_pair(settings):
    options = {"x": "pruner.method.over", "y": "pruner.method.seed", "metrics": ["macro"]}
    found = answer(grid, settings, **options, against={"pruner.method.over": 2, "pruner.method.seed": 0.25})
    table = found.frame[found.frame["role"].eq("method")]
    assert table.pivot_table(index=options["y"], columns=options["x"], values="macro").shape == (2, 2)
    with pytest.raises(ValueError, match=r"study.against asks for pruner.method.over=7, but the runs have: 1, 2"):
        answer(grid, settings, **options, against={"pruner.method.over": 7})


def test_curves_take_controls_with_the_stages_of_the_method_that_is_named(tmp_path):
    """DART's and BTP's random share a stage at 0.5, where it stands once; BTP's at 0.25 is not asked for."""
    for name, keeps in {"btp": (0.5, 0.25), "dart": (0.5, 0.75)}.items():
        for keep in keeps:
            folder, more = tmp_path / f"{name}-{keep}", config(pruner={"name": name})
            write_run(folder, 16, overlays=0, name=name, arms=of(name), config=more, stages=[("llm.layer.2", keep)])
    options = {"x": "tokens_share", "y": ["macro"], "line": "pruner.name"}
    found = answer(curves, tmp_path, **options, controls=["random"], controls_of="dart").frame
    assert sorted(found["method"]) == ["btp"] * 2 + ["dart"] * 2 + ["random"] * 2 + ["unpruned"]
    asked = {entry.arm.schedule[0]["keep"] for entry in found[found["method"].eq("random")]["entry"]}
    assert asked == {0.5, 0.75}
    assert set(answer(curves, tmp_path, **options).frame["method"]) == {"btp", "dart", "unpruned"}


def test_curves_of_a_metric_that_the_task_sums_up(tmp_path):
    for keep, ap in ((0.5, 0.4), (0.25, 0.3)):
        found = {arm["arm"]: {"all": {"AP": ap, "AP50": 2 * ap}, "by_ability": {}} for arm in of("btp")}
        write_run(
            tmp_path / str(keep),
            16,
            overlays=0,
            arms=of("btp"),
            config=config(),
            stages=[("llm.layer.2", keep)],
            run={"metrics": found},
        )
    found = answer(curves, tmp_path, x="tokens_share", y=["metric_AP", "metric_AP50"], line="pruner.name")
    rows = found.frame[found.frame["method"].eq("btp")]
    assert sorted(rows["metric_AP"]) == [0.3, 0.4]
    assert [column.title for column in found.columns if column.key.startswith("metric_")] == ["AP", "AP50"]
    assert found.said[0].startswith("highest AP is btp's, 40.0% at ")


def _regions(folder, samples):
    """Two regions a sample: the left half is needed, the lower right quarter is not."""
    rows = []
    for sample in samples:
        left = {"x0": 0.0, "y0": 0.0, "x1": 0.5, "y1": 1.0}
        rows.append({"sample": sample, "label": "left", "target": True, **left})
        rows.append({"sample": sample, "label": "other", "target": False, "x0": 0.5, "y0": 0.5, "x1": 1.0, "y1": 1.0})
    pd.DataFrame(rows).to_parquet(folder / "regions.parquet")


def test_coverage_counts_what_each_layer_saw(tmp_path):
    """Layers 0 to 2 of 12 see all, 3 to 8 the left half or a half of it, the others nothing."""
    folder = write_run(tmp_path / "btp", SAMPLES, overlays=0, config=config())
    trace = pd.read_parquet(folder / "trace.parquet")
    names = list(dict.fromkeys(trace["sample"]))
    _regions(folder, names)
    left = [i for i in range(144) if i % 12 < 6]
    half = [s in names[::2] for s in trace["sample"]]
    last = trace["site"].isin(["llm.layer.3", "llm.layer.6"]) & trace["arm"].eq("btp")
    kept = [left if full else left[:36] for full in half]
    trace["kept"] = [new if now else old for new, now, old in zip(kept, last, trace["kept"], strict=True)]
    trace.to_parquet(folder / "trace.parquet")
    set_scores(folder, {"unpruned": ALL, "btp": [1.0 if n in names[::2] else 0.0 for n in names], "random": NONE})
    runs, _ = find_runs([tmp_path])
    entry = next(e for e in fields(runs)[0].entries if e.arm.arm == "btp")
    shares = shares_kept(entry).pivot_table(index="sample", columns="target", values="share")
    assert shares[True].to_dict() == {n: 0.75 if n in names[::2] else 0.5 for n in names}
    assert shares[False].eq(0.25).all()
    row = answer(coverage, tmp_path, line="pruner.name").frame.iloc[0]
    assert row["target"] == pytest.approx(0.625)
    assert (row["much"], row["little"]) == (1.0, 0.0)


def test_cells_of_a_box_are_those_that_it_touches():
    rng = np.random.default_rng(0)
    for _ in range(50):
        (x0, x1), (y0, y1) = np.sort(rng.random((2, 2)))
        pixels = np.zeros((600, 600), bool)
        pixels[int(y0 * 600) : int(np.ceil(y1 * 600)), int(x0 * 600) : int(np.ceil(x1 * 600))] = True
        touched = pixels.reshape(6, 100, 5, 120).any((1, 3))
        assert cells_of((x0, y0, x1, y1), (6, 5)) == set(np.flatnonzero(touched))


def test_coverage_without_regions_is_refused(run_folder):
    with pytest.raises(ValueError, match=r"has no regions.parquet: task pocketvqa labels no regions"):
        answer(coverage, run_folder)


def test_suites_tell_reading_from_the_rest(settings):
    for folder in settings.iterdir():
        samples = pd.read_parquet(folder / "samples.parquet")
        of_arm = samples[samples["arm"] == "btp"]
        set_scores(folder, {"btp": of_arm["ability"].ne("digit").astype(float)})
    row = answer(suites, settings, by=["pruner.method.over"]).frame.iloc[0]
    assert (row["usual"], row["reading"], row["gap"]) == (1, 0, -1)
    config_file = settings / "1-0" / "config.yaml"
    changed = yaml.safe_load(config_file.read_text())
    for folder in settings.iterdir():
        changed["task"]["reading"] = []
        (folder / "config.yaml").write_text(yaml.safe_dump(changed))
    with pytest.raises(ValueError, match="no question of the reading suite"):
        answer(suites, settings, by=["pruner.method.over"])


def test_published_scores_stand_beside_ours(settings):
    paper = {"unpruned": {"tokens": 576, "tflops": 4.0, "scores": [50, 100]}}
    options = {"source": "table 1", "benchmarks": ["A", "B"]}
    with pytest.raises(ValueError, match=r"study.published says nothing of 'btp'. Methods there: unpruned"):
        answer(published, settings, **options, published=paper)
    paper["btp"] = {"tokens": 144, "tflops": 1.0, "scores": [40, 100]}
    rows = answer(published, settings, **options, published=paper).frame
    assert set(rows["paper"].round(3)) == {0.9}
    assert set(rows["paper_tokens"]) == set(rows["paper_flops"]) == {0.25}
    assert sorted(rows["usual"]) == pytest.approx([0.5, 0.5, 1, 1])


def test_a_stage_that_missed_samples_is_named(tmp_path):
    folder = write_run(tmp_path / "btp", SAMPLES, overlays=0)
    trace = pd.read_parquet(folder / "trace.parquet")
    first = trace.index[trace["arm"].eq("btp") & trace["site"].eq("llm.layer.6")][:3]
    trace.loc[first, "after"] = trace.loc[first, "before"]
    trace.to_parquet(folder / "trace.parquet")
    found = answer(fired, tmp_path)
    states = dict(zip(found.frame["site"], found.frame["state"], strict=True))
    assert states == {"llm.layer.3": "yes", "llm.layer.6": "in some samples", "llm.layer.9": "yes"}
    assert f"lost tokens in {SAMPLES - 3} of {SAMPLES} samples" in found.said[1]


def test_what_is_not_inert_is_named(tmp_path):
    inert = {"inert": {"checked": 8, "identical": False, "max_logit_difference": 0.25}}
    write_run(tmp_path / "btp", SAMPLES, overlays=0, run=inert)
    found = answer(inertness, tmp_path)
    assert found.frame["identical"].tolist() == ["NO"]
    assert "btp differs by up to 0.25." in found.said
    run = json.loads((tmp_path / "btp" / "run.json").read_text())
    (tmp_path / "btp" / "run.json").write_text(json.dumps(run | {"inert": None}))
    with pytest.raises(ValueError, match="no run has an inertness check"):
        answer(inertness, tmp_path)


def test_options_without_effect_and_unknown_figures_are_refused(run_folder, tmp_path):
    whole = {"name": "mine", "question": "What?", "figure": "fired"}
    with pytest.raises(ValueError, match=r"study.x has no effect: figure 'fired' takes no options"):
        write_study(whole | {"x": 1}, [run_folder], tmp_path)
    with pytest.raises(ValueError, match=f"study.figure is 'pie'. Choose from: {', '.join(sorted(KINDS))}"):
        write_study(whole | {"figure": "pie"}, [run_folder], tmp_path)
    with pytest.raises(ValueError, match=r"study.question is missing"):
        write_study({"name": "mine", "figure": "fired"}, [run_folder], tmp_path)
    with pytest.raises(ValueError, match="No finished run to compare"):
        write_study(whole, [tmp_path], tmp_path)


def test_a_study_is_written_into_its_page_and_can_be_written_again(run_folder, tmp_path):
    whole = {"name": "mine", "question": "Did it happen?", "figure": "fired"}
    marks = [mark.format(name="mine") for mark in (BEGIN, END)]
    (tmp_path / "README.md").write_text("\n".join(["# Mine", *marks, "by hand", ""]))
    for _ in range(2):
        written = write_study(whole, [run_folder], tmp_path, [("pruner=x", "out of reach")], "python run.py -m")
        assert [path.name for path in written.paths] == ["mine.png", "mine.csv", "mine.md", "README.md"]
    page = (tmp_path / "README.md").read_text()
    assert page.endswith(f"{marks[1]}\nby hand\n")
    assert page.count("![Did it happen?](mine.png)") == 1
    for said in (
        "2-core CPU, float32",
        "python run.py -m\n",
        "- `pruner=x`: out of reach",
        "| btp | llm.layer.3 | yes |",
    ):
        assert said in page
    assert len(pd.read_csv(tmp_path / "mine.csv")) == 3
    assert ARMS[1]["arm"] in pd.read_csv(tmp_path / "mine.csv")["arm"].tolist()


def test_settings_of_a_stage_are_found_in_its_list(tmp_path):
    """A number in a key counts the stages of a schedule."""
    for scratch, scores in ((0, NONE), (0.3, ALL)):
        stages = [{"site": "llm.layer.2", "scratch": scratch}, {"site": "llm.layer.4", "scratch": 0}]
        folder = tmp_path / f"{scratch}"
        write_run(folder, SAMPLES, overlays=0, config=config(pruner__schedule=stages))
        set_scores(folder, {"unpruned": ALL, "btp": scores})
    key = "pruner.schedule.0.scratch"
    frame = answer(dots, tmp_path, by=[key], metrics=["macro"], against={key: 0}).frame
    found = frame[frame["role"].eq("method")].set_index(key)
    assert found.loc["0.3", "gap_reference"] == pytest.approx(1)
    assert found["macro"].to_dict() == {"0": 0, "0.3": 1}


def test_late_questions_are_held_against_the_same_ones_asked_themselves(tmp_path):
    """FastV is right on all and on half of them, by other tokens; DivPrune on half both ways, by the same ones."""
    half = [1.0, 0.0] * (SAMPLES // 2)
    for name, own, other in (("fastv", ALL, half), ("divprune", half, half)):
        arms = (*of(name)[:2], method("late", "control"))
        write_run(tmp_path / name, SAMPLES, arms=arms, name=name, overlays=0, config=config(pruner__name=name))
        set_scores(tmp_path / name, {"unpruned": ALL, name: own, "late": other})
        file = tmp_path / name / "trace.parquet"
        trace = pd.read_parquet(file)
        other = trace[trace["arm"].eq(name)].assign(arm="late")
        if name == "fastv":
            other["kept"] = other["kept"].map(lambda kept: kept[: len(kept) // 2])
        pd.concat([trace, other]).to_parquet(file)
    found = answer(late, tmp_path)
    rows = found.frame.set_index("method")
    assert list(rows.index) == ["fastv", "divprune"]
    assert rows.loc["fastv", ["own", "late", "lost"]].tolist() == pytest.approx([1.0, 0.5, 0.5])
    assert rows.loc["fastv", "p_holm"] < 0.001
    assert 0 < rows.loc["fastv", "same"] < 1
    assert rows.loc["divprune", ["lost", "same"]].tolist() == [0.0, 1.0]
    assert found.said[0] == "divprune: the same tokens for every question, so that none is late."
    assert found.said[1].startswith("fastv loses 50.0 points when asked late; ")


def test_late_questions_need_their_arm(settings):
    with pytest.raises(ValueError, match=r"none of the runs has an arm late\. Make them with experiment=multi_turn"):
        answer(late, settings)
