"""What the table holds and how each format writes it."""

import csv
import io

import pytest
from rich.console import Console
from sample_run import ARMS, BLIND, SHRUNK, write_run

from btp.report.tables.export import to_csv, to_latex, to_markdown
from btp.report.tables.run_table import run_table
from btp.report.tables.screen_table import screen_table
from btp.results.reader import read_run


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Nine abilities, five arms."""
    nine = (*"abcdef", "digit", "number", "describe")
    return write_run(
        tmp_path_factory.mktemp("wide") / "run",
        samples=90,
        abilities=nine,
        arms=(*ARMS, SHRUNK, BLIND),
        overlays=0,
    )


def test_rows_are_what_the_samples_say(run_folder):
    run = read_run(run_folder)
    rows = run_table(run).frame.set_index("arm")
    mine = run.rows("btp")
    by_ability = mine.groupby("ability")["score"].mean()
    assert rows.loc["btp", "macro"] == pytest.approx(by_ability.mean())
    assert rows.loc["btp", "reading"] == pytest.approx(by_ability["digit"])
    assert rows.loc["btp", "rest"] == pytest.approx(by_ability.drop("digit").mean())
    assert rows.loc["btp", "accuracy_counting"] == pytest.approx(by_ability["counting"])
    assert rows.loc["btp", "agreement"] == pytest.approx(mine["agreement"].mean())
    assert rows.loc["btp", "tokens_avg"] == pytest.approx(63.0)
    assert rows.loc["unpruned", "agreement"] == 1
    assert rows.loc["unpruned", "kl"] == 0
    assert rows.loc["btp", "flops_visual_pdrop"] == pytest.approx(3.1e8 * 63 / 144)
    assert rows.loc["btp", "prefill_ratio_low"] < rows.loc["btp", "prefill_ratio"]


def test_what_is_retained_and_what_needs_the_picture(tmp_path):
    """Retained is a share of the unpruned macro; hard samples are those that the down-sampled picture breaks."""
    run = read_run(write_run(tmp_path / "run", samples=60, arms=(*ARMS, SHRUNK, BLIND), overlays=0))
    rows = run_table(run).frame.set_index("arm")
    scores = {arm: run.rows(arm)["score"] for arm in rows.index}
    hard = scores["unpruned"] > scores["downsampled"]
    assert 5 < hard.sum() < 55
    assert rows.loc["btp", "hard"] == pytest.approx(scores["btp"][hard].mean())
    assert rows.loc["random", "easy"] == pytest.approx(scores["random"][~hard].mean())
    assert rows.loc[["unpruned", "downsampled"], ["hard", "easy"]].isna().all(axis=None)
    assert rows.loc["unpruned", "retained"] == 1
    assert rows.loc["btp", "retained"] == pytest.approx(rows.loc["btp", "macro"] / rows.loc["unpruned", "macro"])
    assert [c.key for c in run_table(run).columns][2:6] == ["macro", "retained", "hard", "easy"]


def test_without_the_down_sampled_picture_nothing_is_hard(run_folder):
    """The filter is that control."""
    table = run_table(read_run(run_folder))
    assert "hard" not in [column.key for column in table.columns]


def test_nothing_is_tested_against_itself(run_folder):
    rows = run_table(read_run(run_folder)).frame.set_index("arm")
    assert rows["p_unpruned"].isna().tolist() == [True, False, False]
    assert rows["p_random"].isna().tolist() == [True, False, True]
    assert rows.loc["btp", "p_unpruned"] < 0.05


def test_columns_without_a_number_are_left_out(tmp_path):
    run = read_run(write_run(tmp_path / "run", samples=8, arms=ARMS[:2], drop=["cost.json"]))
    keys = [c.key for c in run_table(run).columns]
    assert "p_random" not in keys
    assert "kv_mib" not in keys
    assert "macro" in keys


def test_csv_is_whole_and_unrounded(run_folder):
    table = run_table(read_run(run_folder))
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [r["method"] for r in rows] == ["unpruned", "btp", "random"]
    assert float(rows[1]["accuracy_digit_low"]) == table.frame["accuracy_digit_low"][1]
    assert rows[0]["p_unpruned"] == ""


def test_markdown_has_a_row_per_arm(run_folder):
    lines = to_markdown(run_table(read_run(run_folder))).splitlines()
    assert len(lines) == 2 + 3
    assert len({line.count("|") for line in lines}) == 1
    assert "| btp | 63.0 |" in lines[3]
    assert "agreement, %" in lines[0]


def test_latex_escapes_and_balances(tmp_path):
    arms = (ARMS[0], {**ARMS[1], "title": "btp_50% & more"})
    table = run_table(read_run(write_run(tmp_path / "run", samples=8, arms=arms)))
    latex = to_latex(table)
    assert r"btp\_50\% \& more" in latex
    body = [line for line in latex.splitlines() if line.endswith(r"\\")][1:]
    assert {line.replace(r"\&", "").count("&") for line in body} == {len(table.columns) - 1}
    spans = sum(int(part.split("}")[0]) for part in latex.split(r"\multicolumn{")[1:])
    assert spans == len(table.columns)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_screen_table_fits_and_says_what_is_left_out(wide, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(screen_table(wide))
    text = console.export_text()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "downsampled" in text
    assert "…" not in text
    for heading in ("macro", "reading", "number", "describe", "agreement", "KL", "FLOPs", "prefill"):
        assert heading in text
    blocks = text.count("downsampled")
    assert blocks == 3 if width == 120 else blocks > 3
    titles = [line.strip() for line in text.splitlines() if line.startswith("Answers")]
    left = {60: "; without retained, hard,", 80: "; without retained, hard, easy, rest, KL", 120: ""}[
        width
    ]  # the first line of it
    assert titles == [f"Answers, 95% intervals below{left}"]  # one piece, however narrow
    answers = text.split("Accuracy by ability")[0]
    assert [answers.count(word) for word in ("macro", "p,", "random")] == [1, 3, 2]
