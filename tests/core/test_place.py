"""Stages of a yaml keep their relations where they fall together, and move towards the input together."""

import pytest

from btp.core.schedule import Schedule, Stage
from btp.schedules.place import move_stages, place_stages


def sites(stages):
    return [str(stage["site"] if isinstance(stage, dict) else stage.site) for stage in stages]


def test_the_first_multiple_takes_the_place_of_a_lost_fit():
    """Two of TransPrune's stages fall on one layer of eight; the third still keeps its share of what is left."""
    yaml = [
        {"site": "llm.layer.7/32", "keep": "fit"},
        {"site": "llm.layer.9/32", "keep": "fit*0.714"},
        {"site": "llm.layer.12/32", "keep": "fit*0.143"},
    ]
    placed = place_stages(yaml, 8)
    assert sites(placed) == ["llm.layer.2", "llm.layer.3"]
    assert [stage["keep"] for stage in placed] == ["fit", "fit*0.20028"]
    assert [stage["keep"] for stage in place_stages(yaml, 32)] == ["fit", "fit*0.714", "fit*0.143"]


def test_a_missing_fit_is_not_made_up():
    """A yaml without any plain fit stays wrong."""
    placed = place_stages([{"site": "llm.layer.7/32", "keep": "fit*0.5"}], 8)
    assert placed[0]["keep"] == "fit*0.5"


PLAN = Schedule(
    (
        Stage("vision.output", "fit", settings={"by": "a"}),
        Stage("llm.layer.2", "fit", settings={"by": "b"}),
        Stage("llm.layer.4", "fit*0.5", settings={"by": "b"}),
        Stage("llm.layer.6", 0, settings={"by": "b"}),
    )
)


def test_stages_move_together_and_not_past_the_input():
    """Those between layers go, a stage that keeps nothing too; what falls together becomes one."""
    assert sites(move_stages(PLAN, 1)) == ["vision.output", "llm.layer.1", "llm.layer.3", "llm.layer.5"]
    far = move_stages(PLAN, 4)
    assert sites(far) == ["vision.output", "llm.layer.0", "llm.layer.2"]
    assert [stage.keep for stage in far] == ["fit", "fit", 0]
    assert [stage.keep for stage in move_stages(Schedule(PLAN[1:]), 4)] == ["fit", 0]


def test_some_stages_stay():
    """Nobody moves past or onto a stage that stays, or that is another method's."""
    moved = move_stages(PLAN, 1, lambda stage: stage.site.layer > 2)
    assert sites(moved)[1:] == ["llm.layer.2", "llm.layer.3", "llm.layer.5"]
    with pytest.raises(ValueError, match=r"would both lie at llm\.layer\.2"):
        move_stages(PLAN, 2, lambda stage: stage.site.layer > 2)
    with pytest.raises(ValueError, match="Sites must strictly increase"):
        move_stages(PLAN, 3, lambda stage: stage.site.layer > 2)
    two = Schedule((PLAN[1], Stage("llm.layer.3", "fit", settings={"by": "c"})))
    with pytest.raises(ValueError, match=r"would both lie at llm\.layer\.0"):
        move_stages(two, 3)


def test_a_span_of_the_cache_is_a_stage_for_each_of_its_layers():
    """Up to the layer in front of its end, sorted among the stages between layers; nothing is left of an empty one."""
    stages = [
        {"site": "llm.layer.3/28", "keep": 0.5},
        {"site": "llm.layer.10/28", "keep": 0.25},
        {"site": "llm.layer.19/28", "keep": 0},
        {"site": "llm.cache.3/28-19/28", "keep": 0, "scope": "visual"},
    ]
    found = [stage["site"] for stage in place_stages(stages, 8)]
    assert found == [
        *("llm.layer.1", "llm.cache.1", "llm.cache.2", "llm.layer.3", "llm.cache.3", "llm.cache.4", "llm.layer.5"),
    ]
    whole = [stage["site"] for stage in place_stages(stages, 28)]
    assert [site for site in whole if "cache" in site] == [f"llm.cache.{i}" for i in range(3, 19)]
    assert [site for site in whole if "layer" in site] == ["llm.layer.3", "llm.layer.10", "llm.layer.19"]
    assert place_stages([{"site": "llm.cache.5/28-6/28", "keep": 0, "scope": "visual"}], 2) == []
