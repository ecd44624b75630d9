"""Methods of the K/V cache in tables and comparisons: an axis and a front of their own, and words for their tokens."""

import re

import matplotlib
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sample_run import ARMS, method, write_run

from btp.report.comparison.compare import compare
from btp.report.comparison.groups import fields
from btp.report.comparison.table import comparable, ranking
from btp.report.figures.needles import needles
from btp.report.figures.style import LIGHT
from btp.report.pages.run_page import _tiles
from btp.report.studies.curves import curves
from btp.report.studies.study import Study
from btp.report.tables.run_table import run_table
from btp.report.text.executed_stages import fired
from btp.report.text.run_text import headline, remarks
from btp.report.text.token_names import common, in_unit
from btp.results.reader import read_run

pytestmark = pytest.mark.long

CACHE = [("llm.cache.*", 0.5)]
UNPRUNED = ARMS[0] | {"slots": 200.0}


def cached(folder, name, slots, unit="prompt tokens"):
    """A run of a cache method beside random slots."""
    arms = [UNPRUNED, method(name) | {"slots": slots}, ARMS[2] | {"pruner": "randomslots", "slots": slots}]
    for arm in arms[1:]:
        arm["schedule"] = [{"site": site, "keep": keep} for site, keep in CACHE]
    return write_run(folder, arms=arms, name=name, stages=CACHE, run={"unit": unit})


def pruned(folder, name="fastv"):
    arms = [UNPRUNED, method(name) | {"slots": 90.0}, ARMS[2] | {"slots": 90.0}]
    return write_run(folder, arms=arms, name=name, run={"unit": "prompt tokens"})


def test_a_cache_method_is_told_by_its_slots(tmp_path):
    run = read_run(cached(tmp_path / "a", "snapkv", 100.0))
    table = run_table(run)
    titles = [column.title for column in table.columns]
    assert titles[:3] == ["method", "prompt tokens", "KV slots"]
    assert table.frame["slots"].tolist() == [200, 100, 100]
    said = headline(run, table)[0]
    assert "holds 100.0 of 200 slots per key head in the K/V cache, averaged over the decoder layers (50%)" in said


def test_slots_stand_beside_tokens_only_where_somebody_evicts(tmp_path):
    run = read_run(pruned(tmp_path / "a"))
    table = run_table(run)
    assert "slots" not in [column.key for column in table.columns]
    assert "prompt tokens, averaged over the decoder layers" in headline(run, table)[0]


@pytest.mark.parametrize(("evicted", "said"), [(40, "Every stage took something out."), (0, "withdrew nothing")])
def test_what_left_the_cache_is_what_fired(tmp_path, evicted, said):
    """Traces of tokens know nothing of it; the samples say how many slots went."""
    folder = cached(tmp_path / "a", "snapkv", 100.0)
    frame = pd.read_parquet(folder / "samples.parquet")
    frame["evicted"] = evicted * frame["arm"].ne("unpruned")
    frame.to_parquet(folder / "samples.parquet")
    pd.read_parquet(folder / "trace.parquet").iloc[:0].to_parquet(folder / "trace.parquet")
    run = read_run(folder)
    assert [entry["hits"] for entry in fired(run)] == [40 if evicted else 0] * 2
    assert any(said in remark.text for remark in remarks(run, run_table(run)))


def test_two_fronts_never_one(tmp_path):
    """Neither is on the other's front, grouped with its budget, or held against its random selection."""
    runs = [read_run(cached(tmp_path / n, n, s)) for n, s in (("snapkv", 100.0), ("tova", 50.0))]
    table = ranking(fields([*runs, read_run(pruned(tmp_path / "fastv"))]))
    frame = table.frame.set_index("method")
    evicts = frame["evicts"]
    assert sorted(frame.index[evicts]) == sorted(["snapkv", "tova", *frame.index[evicts & frame["role"].eq("control")]])
    assert not frame.loc[evicts, "front_tokens_avg"].any()
    others = ~evicts & frame["role"].ne("baseline")
    assert not frame.loc[others, "front_slots"].any()
    assert frame.loc[evicts, "front_slots"].any()
    assert not {*frame.loc[evicts, "budget"]} & {*frame.loc[~evicts, "budget"]}
    assert frame.loc["snapkv", "budget"] != frame.loc["tova", "budget"]
    assert frame.loc["snapkv", "pairs_random"] > 0
    assert frame.loc["fastv", "pairs_random"] > 0
    keys = [column.key for column in table.columns]
    assert keys.index("slots") == keys.index("tokens_avg") + 1
    assert comparable(table.frame, "slots").sum() == 5  # unpruned, two methods, two controls


BOTH = [("llm.layer.3", 0.5), ("llm.cache.*", 0.4)]
CUTS_ALL = [("llm.layer.3", 0.5), ("llm.cache.1", 0)]


def composed(folder, name, slots, stages=BOTH):
    """A run of one method between layers and one in the cache, beside random choices at both."""
    arms = [UNPRUNED, method(name) | {"slots": slots}, ARMS[2] | {"slots": slots}]
    return write_run(folder, arms=arms, name=name, stages=stages)


def test_a_composition_that_evicts_stands_with_the_cache(tmp_path):
    """Its budget counts slots; tokens stand beside them, in the table, in words and on top of the page."""
    folder = composed(tmp_path / "a", "fastv snapkv", 60.0)
    run = read_run(folder)
    arm = run.methods[0]
    assert (arm.evicts, arm.cuts) == (True, True)
    table = run_table(run)
    assert [column.key for column in table.columns][1:3] == ["tokens_avg", "slots"]
    said = headline(run, table)[0]
    assert "visual tokens, averaged over the decoder layers (" in said
    assert "and holds 60.0 of 200 slots per key head in the K/V cache" in said
    assert [tile["title"] for tile in _tiles(run, table)][:2] == [
        "visual tokens, layer average",
        "KV slots, layer average",
    ]


def test_fronts_of_a_composition(tmp_path):
    """On the front of slots and on no other; grouped by them; held against the random choice at its own tokens."""
    names = {"fastv snapkv": 60.0, "btp snapkv": 61.0}
    runs = [read_run(composed(tmp_path / name, name, slots)) for name, slots in names.items()]
    runs += [read_run(pruned(tmp_path / "fastv")), read_run(cached(tmp_path / "tova", "tova", 60.0, "visual tokens"))]
    frame = ranking(fields(runs)).frame.set_index("method")
    both = frame.loc[list(names)]
    assert both["evicts"].all()
    assert not both["front_tokens_avg"].any()
    assert both["level"].tolist() == list(names.values())
    assert set(both["budget"]) == {frame.loc["tova", "budget"]}
    assert frame.loc["fastv", "budget"] not in set(both["budget"])
    assert not set(both["reference_random"]) & {frame.loc["tova", "reference_random"], ""}
    assert comparable(frame, "slots").loc[list(names)].all()


def test_cuts_that_empty_the_cache_too_stay_cuts(tmp_path):
    """A stage in the cache that keeps nothing chooses nothing: what was withdrawn between layers leaves there too."""
    run = read_run(composed(tmp_path / "a", "metok", 60.0, CUTS_ALL))
    assert not run.methods[0].evicts
    alone = read_run(cached(tmp_path / "b", "snapkv", 0.0))
    assert (alone.methods[0].evicts, alone.methods[0].cuts) == (True, False)
    assert not any(arm.evicts or arm.cuts for arm in run.arms if arm.role == "baseline")


def test_a_comparison_of_compositions_draws_slots(tmp_path):
    for name, slots in (("fastv snapkv", 60.0), ("btp snapkv", 40.0)):
        composed(tmp_path / name, name, slots)
    _, written = compare([tmp_path / "fastv snapkv", tmp_path / "btp snapkv"], (), tmp_path / "out")
    names = [path.name for path in written]
    assert any(name.endswith("accuracy_over_slots.png") for name in names)
    assert not any(name.endswith("accuracy_over_tokens_avg.png") for name in names)
    assert "slots of the K/V cache and " in written[0].read_text()


def test_a_comparison_draws_both(tmp_path):
    for name, slots in (("snapkv", 100.0), ("tova", 50.0)):
        cached(tmp_path / name, name, slots)
    pruned(tmp_path / "fastv")
    _, written = compare([tmp_path / n for n in ("snapkv", "tova", "fastv")], (), tmp_path / "out")
    names = [path.name for path in written]
    assert any(name.endswith("accuracy_over_slots.png") for name in names)
    assert any(name.endswith("accuracy_over_tokens_avg.png") for name in names)
    page = written[0].read_text()
    assert "At 100.0 slots of the K/V cache snapkv" in page
    assert "prompt tokens" in page


def test_cache_methods_alone_have_no_front_of_tokens(tmp_path):
    cached(tmp_path / "snapkv", "snapkv", 100.0)
    _, written = compare([tmp_path / "snapkv"], (), tmp_path / "out")
    names = [path.name for path in written]
    assert any(name.endswith("accuracy_over_slots.png") for name in names)
    assert any(name.endswith("by_ability.png") for name in names)
    assert not any(name.endswith("accuracy_over_tokens_avg.png") for name in names)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Visual tokens per layer", "Prompt tokens per layer"),
        ("5 visual tokens", "5 prompt tokens"),
        ("visual FLOPs", "FLOPs of prompt tokens"),
    ],
)
def test_words(text, said):
    assert in_unit(text, "prompt tokens") == said
    assert in_unit(text, "visual tokens") == text
    assert common(["visual tokens", "prompt tokens"]) == "tokens"


def test_needles_are_a_map_of_lengths_and_depths(tmp_path):
    """A panel per arm, a cell per place; no other task has one."""
    places = tuple(f"{length} words, {depth}%" for length in (100, 2000) for depth in (0, 50, 100))
    run = read_run(write_run(tmp_path / "niah", abilities=places, overlays=0))
    with matplotlib.rc_context(LIGHT.style()):
        figure = needles(run, run_table(run), LIGHT)
        FigureCanvasAgg(figure).draw()
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == [arm.title for arm in run.arms]
    cells = shown[0].images[0].get_array()
    row = run_table(run).frame.iloc[0]
    assert cells.shape == (3, 2)
    assert cells[1, 1] == pytest.approx(100 * row["accuracy_2000 words, 50%"])
    other = read_run(write_run(tmp_path / "other", overlays=0))
    assert needles(other, run_table(other), LIGHT) is None


def test_curves_over_slots_speak_of_slots(tmp_path):
    runs = [read_run(cached(tmp_path / name, name, slots)) for name, slots in (("snapkv", 100.0), ("tova", 50.0))]
    options = {"x": "slots_share", "y": ["macro"], "line": "pruner.name", "controls": ["random"]}
    found = curves(fields(runs), Study("cache", "What?", "curves", options))
    assert [column.title for column in found.columns][:3] == ["method", "KV slots, %", "KV slots"]
    shares = found.frame.groupby("method")["slots_share"].agg(list)
    assert shares.to_dict() == {"unpruned": [1.0], "snapkv": [0.5], "tova": [0.25], "random": [0.5, 0.25]}
    assert re.search(r"% at (100|50)\.0 slots", found.said[0])
    assert found.draw(LIGHT).axes[0].get_xlabel() == "KV slots, %"
