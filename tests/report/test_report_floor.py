"""A model that answers nothing right, in a run's report and in a comparison."""

import json

import pytest
from sample_run import ARMS, BLIND, SHRUNK, of, set_scores, write_run

from btp.report.comparison.groups import fields
from btp.report.comparison.table import ranking
from btp.report.pages.run_page import write_report
from btp.report.tables.run_table import run_table
from btp.report.text.comparison_text import notes, verdict
from btp.report.text.floor_effect import example, nothing_right
from btp.report.text.run_text import headline, remarks
from btp.results.reader import read_run

ADVICE = "look at prompt and processor"


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0] * 8, "The unpruned model answers nothing right (0 of 8 samples score above 0)"),
        ([1] + [0] * 99, "The unpruned model answers next to nothing right (1 of 100 samples score above 0)"),
        ([1] * 2 + [0] * 98, ""),
        ([0.5] * 8, ""),
        ([], ""),
    ],
)
def test_next_to_nothing_is_below_two_percent(scores, said):
    assert nothing_right(scores) == (f"{said}: {ADVICE}." if said else "")


def test_an_example_is_cut_where_nobody_reads_on():
    text = example("s1", "a" * 500, "b\nc", "d")
    assert text.startswith(f'For example, sample s1: prompt "{"a" * 159}…", prediction "b c", reference "d"')


@pytest.fixture
def broken(tmp_path):
    """A run whose model answers nothing right, like its method."""
    folder = write_run(tmp_path / "run", samples=8, overlays=0, arms=of("btp", SHRUNK, BLIND))
    set_scores(folder, {arm: [0] * 8 for arm in ("unpruned", "btp", "random", "downsampled", "no_image")})
    state = json.loads((folder / "run.json").read_text())
    prompt = {"sample": "test-0-000003", "text": "USER: <image> x 144 what ? ASSISTANT:"}
    (folder / "run.json").write_text(json.dumps(state | {"prompt": prompt}))
    return folder


@pytest.mark.long
def test_a_model_that_answers_nothing_is_called_that(broken):
    """In place of how many points the method is off it, with prompt, prediction and reference of a sample."""
    run = read_run(broken)
    table = run_table(run)
    text = " ".join(headline(run, table))
    assert "points" not in text
    assert "level with" not in text
    assert "Where the unpruned model answers nothing, no difference tells anything of pruning." in text
    worst = remarks(run, table)[0]
    assert worst.kind == "bad"
    assert f"answers nothing right (0 of 8 samples score above 0): {ADVICE}." in worst.text
    row = run.rows("unpruned").loc["test-0-000003"]
    assert f'prompt "USER: <image> x 144 what ? ASSISTANT:", prediction "answer 0", reference "{row["reference"]}"' in (
        worst.text
    )
    page = write_report(broken).read_text()
    assert ADVICE in page
    assert "0.0 points" not in page


def test_without_a_prompt_on_record_the_question_is_shown(broken):
    state = json.loads((broken / "run.json").read_text())
    (broken / "run.json").write_text(json.dumps({k: v for k, v in state.items() if k != "prompt"}))
    run = read_run(broken)
    question = run.rows("unpruned")["question"].iloc[0]
    assert f'sample test-0-000000: prompt "{question}"' in remarks(run, run_table(run))[0].text


def test_a_comparison_says_it_too(broken):
    run = read_run(broken)
    (field,) = fields([run])
    frame = ranking([field]).frame
    said = " ".join(verdict(field, frame))
    assert "leads" not in said
    assert "points" not in said
    worst = notes([field], frame, [])[0]
    assert worst.kind == "bad"
    assert f"pocket, pocketvqa: the unpruned model answers nothing right (0 of 8 samples score above 0): {ADVICE}" in (
        worst.text
    )


def test_a_model_that_answers_is_compared(tmp_path):
    run = read_run(write_run(tmp_path / "run", samples=8, overlays=0, arms=ARMS))
    assert not [r for r in remarks(run, run_table(run)) if ADVICE in r.text]
