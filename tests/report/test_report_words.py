"""The headline, the remarks and the table of stages say what the data says."""

import html
import io
import json
import re

import pandas as pd
import pytest
from rich.console import Console
from sample_run import ARMS, BLIND, SHRUNK, set_scores, write_run

from btp.report.pages.run_page import write_report
from btp.report.tables.run_table import run_table
from btp.report.tables.screen_table import screen_table
from btp.report.text.executed_stages import fired
from btp.report.text.real_shapes import real_shape
from btp.report.text.run_text import headline, remarks
from btp.results.reader import read_run


def said(folder):
    run = read_run(folder)
    table = run_table(run)
    return " ".join(headline(run, table)), {r.text: r.kind for r in remarks(run, table)}


def edit(folder, **keys):
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | keys))


def test_the_headline_carries_the_numbers(run_folder):
    text, _ = said(run_folder)
    rows = run_table(read_run(run_folder)).frame.set_index("arm")
    assert "btp works with 63.0 of 144 visual tokens, averaged over the decoder layers (44%)" in text
    assert f"{100 * rows.loc['btp', 'macro']:.1f}% right; the unpruned model" in text
    assert f"{100 * (rows.loc['unpruned', 'macro'] - rows.loc['btp', 'macro']):.1f} points lower" in text
    lost = 100 * (rows.loc["unpruned", "reading"] - rows.loc["btp", "reading"])
    assert lost > 0
    assert f"Reading in the picture loses {lost:.1f} points, everything else loses" in text
    assert "Random selection gets" in text
    assert "0.67 times the prefill time" in text


def test_the_speed_of_a_real_shape_stands_beside_the_embedded_models(run_folder, tmp_path):
    """What was measured at real depth, with the hardware; a run of another model has figures of its own."""
    text, _ = said(run_folder)
    known = real_shape("btp")
    assert known
    assert text.endswith(known)
    assert re.search(r"measured \d\.\d\d times as fast as the unpruned one, of \d\.\d\d that FLOPs promise", known)
    other, _ = said(write_run(tmp_path / "run", samples=4, config={"model": {"name": "llava15"}}))
    assert "random weights" not in other
    assert real_shape("nobody") == ""


def test_chance_is_called_chance(tmp_path):
    text, _ = said(write_run(tmp_path / "run", samples=4))
    assert "4 samples cannot tell from chance" in text
    assert "Random selection gets 75.0%: not told apart from the method, which is level with it (p = 1.00)." in text


def test_without_a_method_the_headline_speaks_of_the_model(tmp_path):
    text, _ = said(write_run(tmp_path / "run", samples=8, arms=ARMS[:1]))
    assert text.startswith("Unpruned answers ")
    assert "144 visual tokens in every layer. No method was run beside it." in text


def test_what_passed_is_said(run_folder):
    _, notes = said(run_folder)
    assert set(notes.values()) == {"good"}
    assert any(text.startswith("Inert: 8 samples") for text in notes)


def test_what_failed_is_said_first(tmp_path):
    folder = write_run(tmp_path / "run", samples=8, arms=(*ARMS, {**SHRUNK, "arm": "no_image"}))
    edit(
        folder,
        state="failed",
        error="out of memory",
        inert={"checked": 8, "identical": False, "max_logit_difference": 0.5},
    )
    trace = pd.read_parquet(folder / "trace.parquet")
    trace.loc[trace["site"] == "llm.layer.6", "after"] = trace["before"]
    trace.to_parquet(folder / "trace.parquet")
    _, notes = said(folder)
    bad = [text for text, kind in notes.items() if kind == "bad"]
    assert list(notes)[:3] == bad
    assert any("This run is failed, not finished (out of memory)" in text for text in bad)
    assert any("logits differ by up to 0.5" in text for text in bad)
    assert any("llm.layer.6 of btp and llm.layer.6 of random withdrew nothing" in text for text in bad)


def test_controls_at_another_budget_are_named(tmp_path):
    folder = write_run(tmp_path / "run", samples=8)
    samples = pd.read_parquet(folder / "samples.parquet")
    samples.loc[samples["arm"] == "random", "tokens_avg"] = 80.0
    samples.to_parquet(folder / "samples.parquet")
    _, notes = said(folder)
    assert notes["Not at the method's 63.0 layer-averaged visual tokens: random (80.0)."] == "note"


def test_a_stage_that_never_ran_is_seen(tmp_path):
    folder = write_run(tmp_path / "run", samples=8)
    trace = pd.read_parquet(folder / "trace.parquet")
    trace[trace["site"] != "llm.layer.9"].to_parquet(folder / "trace.parquet")
    last = [e for e in fired(read_run(folder)) if e["arm"] == "btp"][-1]
    assert (last["site"], last["planned"], last["ran"], last["fired"], last["before"]) == (
        *("llm.layer.9", True),
        *(0, False, None),
    )
    assert "llm.layer.9 of btp" in next(text for text, kind in said(folder)[1].items() if kind == "bad")


def test_stages_are_counted(run_folder):
    first = next(e for e in fired(read_run(run_folder)) if e["arm"] == "btp")
    assert (first["site"], first["keep"], first["planned"]) == ("llm.layer.3", 0.5, True)
    assert (first["ran"], first["hits"], first["before"], first["after"]) == (40, 40, 144.0, 72.0)


def scored(folder, **right):
    """A run of one ability, 20 samples, with so many right answers per arm."""
    write_run(folder, samples=20, overlays=0, abilities=("presence",), arms=(*ARMS, SHRUNK, BLIND))
    return set_scores(folder, {arm: [1] * n + [0] * (20 - n) for arm, n in right.items()})


def test_the_control_that_hurts_most_is_named(tmp_path):
    """The highest of those with no more tokens, with its own test; random selection besides."""
    right = {"unpruned": 20, "btp": 12, "random": 4, "downsampled": 11, "no_image": 2}
    text, _ = said(scored(tmp_path / "level", **right))
    assert "Random selection gets 20.0%: the method is 40.0 points higher (p = 0.008)." in text
    hurts = "The control that hurts most, downsampled, gets 55.0%"
    assert f"{hurts}: not told apart from the method, which is 5.0 points higher (p = 1.00)." in text
    text, _ = said(scored(tmp_path / "ahead", **right | {"downsampled": 20}))
    assert "hurts most, downsampled, gets 100.0%: the method is 40.0 points lower (p = 0.008)." in text
    text, _ = said(scored(tmp_path / "random", **right | {"random": 11, "downsampled": 3}))
    assert "The control that hurts most, random selection, gets 55.0%" in text
    assert text.count("gets 55.0%") == 1
    text, _ = said(scored(tmp_path / "blind", **right | {"no_image": 12}))
    assert "The control that hurts most, no image, gets 60.0%: not told apart from the method, which is level" in text


def test_a_control_with_more_tokens_does_not_hurt(tmp_path):
    folder = scored(tmp_path / "run", unpruned=20, btp=12, random=4, downsampled=18, no_image=2)
    samples = pd.read_parquet(folder / "samples.parquet")
    samples.loc[samples["arm"] == "downsampled", "tokens_avg"] = 100.0
    samples.to_parquet(folder / "samples.parquet")
    assert "hurts most, random selection, gets 20.0%" in said(folder)[0]


def test_no_gap_is_level(tmp_path):
    text, _ = said(scored(tmp_path / "run", unpruned=12, btp=12, random=12, downsampled=2, no_image=2))
    assert "That is level with unpruned" in text
    assert "0.0 points" not in text


@pytest.mark.parametrize(
    ("ratio", "says", "tile"),
    [
        (
            {"median": 0.8, "low": 0.7, "high": 1.1},
            "not told from the unpruned model's: the ratio lies in 0.70–1.10",
            "0",
        ),
        ({"median": 0.8, "low": None, "high": None}, "not told from the unpruned model's: too few rounds", "open"),
        ({"median": 0.8, "low": 0.7, "high": 0.9}, "and 0.80 times the prefill time of the unpruned model.", "0.80"),
        ({"median": 1.3, "low": 1.1, "high": 1.4}, "and 1.30 times the prefill time of the unpruned model.", "1.30"),
    ],
)
def test_a_ratio_whose_range_spans_one_is_no_fact(tmp_path, ratio, says, tile):
    folder = write_run(tmp_path / "run", samples=8, overlays=0)
    cost = json.loads((folder / "cost.json").read_text())
    cost["btp"] |= {"prefill_ratio": ratio}
    (folder / "cost.json").write_text(json.dumps(cost))
    text, _ = said(folder)
    assert says in text
    assert ("times the prefill time" in text) == ("not told" not in says)
    page = write_report(folder).read_text()
    (value,) = re.findall(r"prefill time, × unpruned</span><b>([^<]*)</b>", page)
    assert value == ("0.70–1.10" if tile == "0" else tile)
    table = page.split('id="results"')[1].split("</table>")[0]
    assert ("unsure" in table.split('data-arm="btp"')[1].split("</tr>")[0]) == ("not told" in says)


def test_pictures_of_another_set_are_said(tmp_path):
    folder = write_run(tmp_path / "run", samples=8, overlays=0)
    text = "Stages were calibrated on 64 samples of pocketvqa, not on mine's own pictures."
    edit(folder, calibration={"name": "pocketvqa", "samples": 64, "own": False, "said": text})
    assert said(folder)[1][text] == "note"
    assert text in html.unescape(write_report(folder).read_text())
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(screen_table(folder))
    assert text in console.export_text()
    edit(folder, calibration={"name": "pocketvqa", "samples": 64, "own": True, "said": text})
    assert text not in said(folder)[1]
