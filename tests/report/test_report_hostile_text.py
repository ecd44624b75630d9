"""Names of data that look like markup of rich, TeX or HTML, terminals that are not UTF-8, and figures that fail."""

import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path

import matplotlib
import pytest
from PIL import Image
from rich.console import Console
from sample_run import method, write_run

from btp.report.comparison.compare import compare
from btp.report.figures import run_figures as plots
from btp.report.figures.style import LIGHT
from btp.report.figures.token_overlays import StageView, overlay_png
from btp.report.pages.run_page import write_report
from btp.report.tables.export import to_latex, to_markdown
from btp.report.tables.run_table import run_table
from btp.report.tables.screen_table import screen_table
from btp.report.terminal import literal
from btp.results.reader import View, read_run

pytestmark = pytest.mark.long

NAMES = ("[/bold]", "[red]signs", "$\\frac{a$", "$5 to $9", "x^_2%", "<b>bold</b>", "_hidden", "字 é")
NAMES += ("a\x1b[31mb", "long " * 200)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run whose abilities and method have such names."""
    arms = ({**method("unpruned", "baseline"), "pruner": "none"}, {**method("btp"), "title": "[bold]btp $x^$"})
    return write_run(tmp_path_factory.mktemp("hostile") / "run", samples=40, abilities=NAMES, arms=arms, overlays=10)


def shown(renderable, width=300):
    """What a terminal shows, with rich's markup on."""
    console = Console(width=width, record=True, file=open("/dev/null", "w"), force_terminal=False)  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def test_the_screen_shows_names_as_they_are(hostile):
    said = shown(screen_table(hostile))
    for name in (*NAMES[:8], "[bold]btp $x^$", r"a\x1b[31mb"):
        assert all(word in said for word in name.split()), name


def test_every_figure_and_overlay_is_drawn(hostile):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=r".*[Gg]lyph.*")  # of letters that the font does not have
        written = write_report(hostile)
    text = written.read_text(encoding="utf-8")
    assert "is missing" not in text
    assert "<b>bold</b>" not in text
    assert "&lt;b&gt;bold&lt;/b&gt;" in text
    assert len(list((hostile / "overlays").glob("*.png"))) == 10
    assert {f.stem for f in (hostile / "figures").glob("*.png")} >= {"accuracy_by_ability", "accuracy_by_tokens"}


def test_dollar_signs_are_no_formulas(hostile):
    """Price $5 to $9 is not set in italics."""
    run = read_run(hostile)
    with matplotlib.rc_context(LIGHT.style()):
        figure = plots.accuracy_by_ability(run, run_table(run), LIGHT)
    named = [label for label in figure.axes[0].get_yticklabels() if "$5" in label.get_text()]
    assert [label.get_parse_math() for label in named] == [False]


def test_tables_in_files_escape_names(hostile):
    table = run_table(read_run(hostile))
    latex, markdown = to_latex(table), to_markdown(table)
    assert r"\$\textbackslash{}frac\{a\$" in latex
    assert "{[}red]signs" in latex
    assert "<b>" not in markdown
    assert "&lt;b>bold" in markdown


def test_a_comparison_takes_them_too(hostile, tmp_path):
    said, paths = compare([hostile], [], tmp_path / "out")
    assert "[bold]btp" in shown(said)
    assert "is missing" not in paths[0].read_text(encoding="utf-8")


def test_a_figure_that_fails_costs_that_figure(tmp_path, monkeypatch):
    """The others are there, and the page and a warning say which one is not, and why."""
    run = write_run(tmp_path / "run", samples=16)

    def fails(*_):
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setitem(plots.PLOTS, "tokens_per_layer", fails)
    (run / "pictures" / "test-0-000001.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="is missing") as said:
        text = write_report(run).read_text(encoding="utf-8")
    assert "the figure tokens_per_layer is missing: ZeroDivisionError: nothing to divide by" in text
    assert "the overlay of sample test-0-000001 is missing" in text
    assert len(said) == 3  # the sample's overlay, and its card
    assert not (run / "figures" / "tokens_per_layer.png").exists()
    assert (run / "figures" / "accuracy_by_ability.png").exists()
    assert (run / "overlays" / "test-0-000000.png").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_terminal_of_any_encoding_shows_the_table(hostile, encoding):
    environment = {"PYTHONIOENCODING": encoding, "COLUMNS": "120", "MPLCONFIGDIR": str(hostile), "PATH": "/usr/bin"}
    run = [sys.executable, "-W", "ignore", "-m", "btp.report", str(hostile)]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode(encoding)
    assert "[red]signs" in said
    if encoding == "ascii":
        assert r"\u5b57" in said  # of the data: escaped
        assert "51-100" in said  # of ours: the nearest sign
    else:
        assert "é" in said


def test_literal_escapes_what_moves_a_cursor():
    assert literal("a\tb\x1b[2J[/x]").plain == r"a\tb\x1b[2J[/x]"


@pytest.mark.parametrize("size", [(300, 1), (1, 300), (1, 1)])
def test_thin_pictures_have_overlays(size):
    """More cells than pixels: the panels are drawn all the same."""
    stages = [StageView("llm.layer.1", 9, 2, (0, 8))]
    png = overlay_png(Image.new("RGB", size), [View((3, 3))], [("btp", stages)])
    assert Image.open(BytesIO(png)).size[0] > 100
