"""An error names the page that helps."""

import re
import subprocess
import sys

import pytest
from jobs import command, typed
from tqdm import tqdm

from btp.results.shipped import DOCS
from btp.runner.messages import PAGE, page_of, say

EXAMPLES = {
    "A budget of 3 visual tokens on average cannot be met: 21 is the least.": "docs/concepts.md#budgets",
    "the checkpoint in /a/b lacks 3 of the model's weights: lm_head": "docs/models.md#messages",
    "sample 7: its picture /p/7.png is missing. Put it there.": "docs/benchmarks.md",
    "This model is attached already": "btp/engine/attach.py",
    "The disk is full": None,
}


@pytest.mark.parametrize(("message", "page"), EXAMPLES.items())
def test_page_of_a_message(message, page):
    assert page_of(message) == page


def test_every_message_of_the_page_that_has_a_link_finds_a_file():
    """None of the table is lost on the way, whatever stands in for what differs."""
    rows = re.findall(r"^\| `([^`]+)` \|.*\]\(", PAGE.read_text(), re.MULTILINE)
    assert len(rows) >= 30
    for said in rows:
        page = page_of(said.replace("…", "x"))
        assert page is not None, said
        assert (DOCS.parent / page.partition("#")[0]).is_file(), page


def test_an_error_starts_on_a_line_of_its_own_behind_a_bar(capsys):
    bar = tqdm(total=5, file=sys.stderr)
    bar.update(2)
    say("sample 7 is broken")
    said = capsys.readouterr().err
    assert said.endswith("\nerror: sample 7 is broken\n")
    assert "2/5" in said
    bar.update(1)  # of whoever still holds it
    assert capsys.readouterr().err == ""


def test_say(capsys):
    say(ValueError("A budget of 3 visual tokens on average cannot be met"), "a file has more")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "error: A budget of 3 visual tokens on average cannot be met",
        "  a file has more",
        "  see docs/concepts.md#budgets",
    ]


def test_of_a_run(tmp_path):
    """At the command line, from the process that composes."""
    started = command("budget.tokens=20", "budget.share=0.2", f"output={tmp_path}")
    printed, _ = started.communicate(timeout=120)
    assert started.returncode == 1
    assert "  see docs/concepts.md#budgets" in printed.splitlines()


@pytest.mark.long
def test_a_wrong_setting_of_a_method_is_said_before_weights_are_read(tmp_path):
    code, printed = typed("pruner.method.score=softmax", "logger=none", "trainer=cpu", f"output={tmp_path}")
    assert code == 1
    assert "pruner.method.score is 'softmax'. Choose from: logits, probs. Correct pruner.method.\n" in printed
    assert "Loading weights" not in printed
    assert not list(tmp_path.glob("pocket-*"))


def test_without_the_environment():
    """An interpreter that has none of the packages."""
    bare = [sys.executable, "-E", "-S", "run.py"]
    ended = subprocess.run(bare, cwd=DOCS.parent, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "Activate the environment: source .venv/bin/activate" in ended.stderr
