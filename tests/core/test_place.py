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
