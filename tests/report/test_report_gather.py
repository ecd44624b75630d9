"""What a comparison writes beside its page, and what it says in words."""

import base64
import csv
import io
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sample_run import BLIND, SHRUNK, of, set_scores, write_run

from btp.report.comparison.compare import compare
from btp.report.comparison.groups import fields
from btp.report.comparison.table import ranking
from btp.report.figures.pareto_figures import joined, series_looks
from btp.report.pages.kept_cards import kept_cards, kept_data
from btp.report.text.comparison_text import notes, verdict
from btp.results.find import LeftOut, find_runs

pytestmark = pytest.mark.long

ONE = ("presence",)


def gathered(root):
    runs, left = find_runs([root])
    found = fields(runs)
    return found, ranking(found), left


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two methods at two budgets, one failed run."""
    root = tmp_path_factory.mktemp("sweep")
    for name in ("btp", "dart"):
        for keep in (0.5, 0.25):
            command = f"python run.py pruner={name} budget.share={keep}"
            folder = root / f"{name}-{keep}"
            arms = of(name, SHRUNK, BLIND)
            stages = [("llm.layer.2", keep)]
            write_run(folder, samples=16, overlays=2, name=name, arms=arms, stages=stages, run={"command": command})
    write_run(root / "broken", samples=8, overlays=0, run={"state": "failed", "error": "no & such 50% layer_9"})
    return root


@pytest.fixture(scope="module")
def written(sweep, tmp_path_factory):
    failed = [("pruner=x", "a budget that cannot be"), ("stages=3 budget.share=0.43", "named already")]
    shown, paths = compare([sweep], failed, tmp_path_factory.mktemp("out"))
    return shown, {path.suffix: path for path in paths}, paths


def test_all_files_are_named(written):
    _, _, paths = written
    assert [p.name for p in paths[:4]] == [f"comparison.{end}" for end in ("html", "csv", "md", "tex")]
    assert len(paths) == 4 + 6
    assert all(p.is_file() for p in paths)
    assert {p.parent.name for p in paths[4:]} == {"figures"}


def test_csv_has_a_row_per_arm_with_its_command(sweep, written):
    rows = list(csv.DictReader(written[1][".csv"].open()))
    assert len(rows) == 1 + 2 * 2 + 2 + 2
    assert {r["command"] for r in rows if r["method"] == "dart"} == {
        f"python run.py pruner=dart budget.share={keep}" for keep in (0.5, 0.25)
    }
    assert float(rows[1]["gap_random"]) == gathered(sweep)[1].frame["gap_random"].iloc[1]
    assert {r["front_tokens_avg"] for r in rows} == {"True", "False"}
    assert {r["hardware"] for r in rows} == {"2-core CPU, float32"}


def test_markdown_has_commands_and_what_was_left_out(written):
    text = written[1][".md"].read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + 9
    assert "`python run.py pruner=dart budget.share=0.25`" in text
    assert "broken`: failed: no & such 50% layer_9" in text
    assert "- `pruner=x`: a budget that cannot be" in text
    assert "named already" not in text  # its folder is listed with the same command


def test_latex_balances_and_escapes(written):
    text = written[1][".tex"].read_text()
    for opened in ("begin{tabular}", "toprule"):
        assert text.count(f"\\{opened}") == 2
    assert text.count("\\end{tabular}") == text.count("\\bottomrule") == 2
    plain = re.sub(r"\\[{}&%$#_]", "", text)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    for tabular in text.split("\\begin{tabular}")[1:]:
        kinds = re.match(r"\{([lr]+)\}", tabular).group(1)
        rows = [line for line in tabular.splitlines() if line.endswith(r"\\")][1:]
        assert {line.count("&") for line in rows} == {len(kinds) - 1}
        spans = sum(int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", tabular))
        assert spans == len(kinds)
        assert len(kinds) <= 12
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert not re.search(r"(?<!\\)[%#_^~−–×<>]", body.replace("\\\\", ""))
    assert text.count("\\midrule") == 2 * (1 + 4)  # under the heading and between five budgets


@pytest.mark.parametrize("width", [70, 120])
def test_the_screen_shows_rows_and_what_was_left_out(written, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(written[0])
    text = console.export_text()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    for words in ("dart @ 54.0", "btp @ 84.0", "to random", "p,", "prefill", "Left out", "pruner=x: a budget"):
        assert words in text
    distances = [line for line in text.splitlines() if "to unpruned" in line or "to random" in line]
    assert distances
    assert all("p," in line for line in distances)  # a distance and its test are never torn apart


def test_a_sweep_that_failed_whole_says_why(tmp_path):
    folder = write_run(tmp_path / "a", samples=4, overlays=0, run={"state": "failed", "error": "out of memory"})
    with pytest.raises(ValueError, match=r"No finished run to compare(.|\n)*out of memory(.|\n)*pruner=x: no such"):
        compare([folder], [("pruner=x", "no such pruner")], tmp_path / "out")
    with pytest.raises(ValueError, match="Looked at no folder"):
        compare([], [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_words_name_the_leader_and_controls_ahead_of_it(tmp_path):
    scores = {"unpruned": [1] * 20, "random": [1] * 5 + [0] * 15, "downsampled": [1] * 18 + [0] * 2}
    for name, right in (("btp", 10), ("dart", 16)):
        folder = write_run(
            tmp_path / name,
            samples=20,
            overlays=0,
            abilities=ONE,
            name=name,
            arms=of(name, SHRUNK),
            stages=[("llm.layer.0", 0.444)],
        )
        set_scores(folder, {**scores, name: [1] * right + [0] * (20 - right)})
    (field,), table, left = gathered(tmp_path)
    what, at, told = verdict(field, table.frame)
    assert what == (
        "pocket, pocketvqa, 20 samples: 2 methods (dart and btp). "
        "The unpruned model answers 100.0% right with 144 visual tokens."
    )
    assert at == (
        "At 64.0 visual tokens (44%) dart leads with 80.0%, 55.0 points higher than random selection (p = 0.002), "
        "10.0 points lower than the down-sampled picture (p = 0.50), 30.0 points higher than BTP (p = 0.031); the "
        "control downsampled (90.0%) scores higher."
    )
    assert told == (
        "After Holm's correction 1 of 2 rows of methods differ from random selection (dart at 64.0), 1 of 2 rows of "
        "methods differ from the down-sampled picture (btp at 64.0) and 1 of 1 rows of methods differ from BTP (p "
        "below 0.05)."
    )
    assert {n.kind for n in notes([field], table.frame, left)} == {"good"}


def withdrawals(root, layers, **more):
    """Runs that withdraw in front of a layer each, as a sweep makes them."""
    for layer in layers:
        site = f"llm.layer.{layer}"
        pruner = {"name": "withdraw", "layer": layer, "schedule": [{"site": site, "keep": 0}]}
        folder = write_run(
            root / str(layer),
            samples=8,
            overlays=1,
            abilities=ONE,
            name="withdraw",
            arms=of("withdraw")[:2],
            stages=[(site, 0)],
            config={"pruner": pruner, "budget": {"tokens": None, "share": None}, **more},
            run={"command": f"python run.py pruner=withdraw pruner.layer={layer} controls=null"},
        )
        right = layer if layer != 4 else 0
        set_scores(folder, {"unpruned": [1] * 8, "withdraw": [1] * right + [0] * (8 - right)})
    return root


def test_a_depth_sweep_is_one_method(tmp_path):
    """One name, one line, one sentence; each row says its layer; nobody misses controls that nobody asked for."""
    (field,), table, left = gathered(withdrawals(tmp_path, range(1, 8), controls=None))
    rows = table.frame[table.frame["role"] == "method"]
    assert rows["series"].unique().tolist() == ["withdraw"]
    assert rows["method"].tolist() == [f"withdraw, layer={layer}" for layer in range(7, 0, -1)]
    (line,) = joined(table.frame)
    assert table.frame["method"].iloc[line].tolist() == rows["method"].tolist()
    what, through, *told = verdict(field, table.frame)
    assert "1 method (withdraw with 7 settings)" in what
    assert through == (
        "withdraw goes from 87.5% right at 84.0 visual tokens (layer=7) to 12.5% right at 12.0 visual tokens "
        "(layer=1); lowest 0.0% right at 48.0 visual tokens (layer=4)."
    )
    assert told == []
    assert {n.kind for n in notes([field], table.frame, left)} == {"good"}


def test_controls_are_missed_where_they_were_asked_for(tmp_path):
    (field,), table, left = gathered(withdrawals(tmp_path, (6, 3), controls={"random": {}}))
    (missed,) = [n.text for n in notes([field], table.frame, left) if n.kind == "note"]
    assert missed == (
        "Nothing of random selection at the budget of withdraw, layer=6 at 72.0 and withdraw, layer=3 at 36.0: "
        "no test against it."
    )


def test_the_browser_opens_where_most_methods_stand(tmp_path):
    """dart is alone at fewer tokens; where every budget has one arm, all are shown."""
    for name, keep in (("btp", 0.5), ("dart", 0.5), ("dart", 0.25)):
        stages = [("llm.layer.0", keep)]
        write_run(tmp_path / f"a/{name}{keep}", samples=8, overlays=1, name=name, arms=of(name)[:2], stages=stages)
    for root, opens in ((tmp_path / "a", 72.0), (withdrawals(tmp_path / "b", (6, 3)), None)):
        (field,), table, _ = gathered(root)
        found = kept_data(field, table.frame, series_looks(table.frame))
        tokens = {one["budget"]: float(one["tokens"]) for one in found["budgets"]}
        assert tokens.get(found["opens"]) == opens


def test_a_control_is_joined_through_the_runs_of_one_method(tmp_path):
    """Random of btp's runs and of dart's, which cut elsewhere: two lines, each through rows of one method's runs."""
    for name, site in (("btp", 0), ("dart", 1)):
        for keep in (0.5, 0.25):
            share = keep if name == "btp" else (12 * keep - 1) / 11  # the same tokens, averaged over layers
            stages = [(f"llm.layer.{site}", share)]
            write_run(tmp_path / f"{name}{keep}", samples=8, overlays=0, name=name, arms=of(name), stages=stages)
    frame = gathered(tmp_path)[1].frame
    lines = [frame.iloc[line] for line in joined(frame)]
    assert sorted(tuple(rows["method"]) for rows in lines) == [
        *(("btp", "btp"), ("dart", "dart")),
        *(("random, at llm.layer.0 as btp",) * 2, ("random, at llm.layer.1 as dart",) * 2),
    ]
    assert all(rows["budget"].nunique() == 2 for rows in lines)


def test_the_notes_say_what_to_mind(tmp_path):
    stages = {"btp": [("llm.layer.0", 0.5)], "dart": [("llm.layer.0", 0.25)]}
    for name, at in stages.items():
        arms = [dict(arm) for arm in of(name)]
        arms[1]["budget"] = {"asked": 72.0}
        run = {"inert": {"checked": 8, "identical": name == "btp", "max_logit_difference": 0.5}}
        folder = write_run(tmp_path / name, samples=8, overlays=0, name=name, arms=arms, stages=at, run=run)
    trace = pd.read_parquet(folder / "trace.parquet")
    trace.loc[trace["arm"] == "dart", "after"] = trace["before"]
    trace.to_parquet(folder / "trace.parquet")
    cost = (folder / "cost.json").read_text().replace("2-core CPU", "another CPU")
    (folder / "cost.json").write_text(cost)
    found, table, _ = gathered(tmp_path)
    left = [LeftOut("x", "no"), LeftOut("y", "not yet", "unfinished"), LeftOut("z", "same", "twice")]
    said = {n.text: n.kind for n in notes(found, table.frame, left)}
    bad = [text for text, kind in said.items() if kind == "bad"]
    assert bad == [
        "Not in here: 1 failed and 1 unfinished runs, listed below with the reason.",
        "llm.layer.0 of dart (dart) withdrew nothing.",
        "Not inert with hooks attached and nothing pruned: dart.",
    ]
    for text in (
        "Not at the budget asked for: dart (36.0 for 72.0).",
        "Nothing of BTP at the budget of dart at 36.0: no test against it.",
        "pocket, pocketvqa: times come from 2 kinds of machine, each beside its own unpruned model's.",
    ):
        assert said[text] == "note"


def test_cards_hold_every_method_on_the_same_picture(sweep):
    (field,), table, _ = gathered(sweep)
    (one, two), answered = kept_cards(field, table.frame)
    assert answered == 2
    assert [arm["method"] for arm in one["arms"]] == [m for m in table.frame["method"] if m != "unpruned"]
    dart = next(arm for arm in one["arms"] if arm["series"] == "dart")
    assert [(s["site"], s["before"], s["after"]) for s in dart["stages"]] == [("llm.layer.2", 144, 72)]
    assert (one["id"], two["id"]) == ("test-0-000000", "test-0-000001")
    assert one["unpruned"]["mark"] in ("right", "wrong")
    rows = next(e for e in field.entries if e.series == "dart").rows
    assert dart["text"] == rows.loc[one["id"], "prediction"]


def patches(text):
    """Patches of a packed set."""
    return np.flatnonzero(np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))).tolist()


def test_merged_tokens_are_drawn_apart_and_strangers_counted(tmp_path):
    """Traces with and without `merged` lie side by side; an index that is no patch is counted, not drawn."""
    write_run(tmp_path / "btp", samples=8, overlays=1)
    folder = write_run(tmp_path / "tome", samples=8, overlays=1, name="tome", arms=of("tome"), merges=("tome",))
    trace = pd.read_parquet(folder / "trace.parquet")
    first = trace.index[(trace["arm"] == "tome") & (trace["sample"] == "test-0-000000")][0]
    trace.at[first, "kept"] = [0, 1, 13, 144]
    trace.at[first, "merged"] = [1, 144]
    trace.to_parquet(folder / "trace.parquet")
    (field,), table, _ = gathered(tmp_path)
    (card,), _ = kept_cards(field, table.frame)
    arms = {arm["series"]: arm for arm in card["arms"]}
    stage = arms["tome"]["stages"][0]
    assert (patches(stage["kept"]), patches(stage["merged"])) == ([0, 1, 13], [1])
    assert (stage["outside"], stage["gathered"]) == (1, 1)
    assert all(s["merged"] == "" for s in arms["btp"]["stages"])


def test_many_stages_are_thinned_out(tmp_path):
    stages = [(f"vision.mlp.{i}", 1 - 0.03 * (i + 1)) for i in range(20)]
    write_run(tmp_path / "one", samples=4, overlays=1, name="tome", arms=of("tome"), stages=stages)
    (field,), table, _ = gathered(tmp_path)
    arm = next(a for a in kept_cards(field, table.frame)[0][0]["arms"] if a["series"] == "tome")
    assert [s["site"] for s in (arm["stages"][0], arm["stages"][-1])] == ["vision.mlp.0", "vision.mlp.19"]
    assert (len(arm["stages"]), arm["skipped"]) == (8, 12)


def test_pictures_of_tiles_are_not_drawn_on(tmp_path):
    folder = write_run(tmp_path / "one", samples=4, overlays=1)
    samples = pd.read_parquet(folder / "samples.parquet")
    samples["total"] = 150
    samples.to_parquet(folder / "samples.parquet")
    (field,), table, _ = gathered(tmp_path)
    arms = kept_cards(field, table.frame)[0][0]["arms"]
    assert all(not arm["drawable"] and arm["stages"] == [] for arm in arms)
