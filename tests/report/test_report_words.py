"""The headline, the remarks and the table of stages say what the data says."""

import json

import pandas as pd
from sample_run import ARMS, SHRUNK, write_run

from btp.report.fired import fired
from btp.report.load import read_run
from btp.report.summary import headline, remarks
from btp.report.table import run_table


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
