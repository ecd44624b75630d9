"""Sites that are written for models of any depth."""

import pytest

from btp.schedules.place import place_stages


def sites(*written, layers=32, vision=0):
    """The sites of one model."""
    return [stage["site"] for stage in place_stages([{"site": site, "keep": 0.5} for site in written], layers, vision)]


@pytest.mark.parametrize(
    ("site", "layers", "placed"),
    [
        ("llm.layer.8/32", 32, "llm.layer.8"),
        ("llm.layer.8/32", 28, "llm.layer.7"),
        ("llm.layer.2/32", 28, "llm.layer.2"),  # 1.75
        ("llm.layer.2/32", 40, "llm.layer.3"),  # 2.5 is rounded up
        ("llm.layer.8/32", 4, "llm.layer.1"),
        ("llm.layer.2/32", 4, "llm.layer.1"),  # 0.25, but not 0
        ("llm.layer.0/32", 4, "llm.layer.0"),
        ("llm.layer.31/32", 4, "llm.layer.3"),  # the last layer stays inside
        ("llm.layer.29/32", 8, "llm.layer.7"),
        ("llm.layer.2", 4, "llm.layer.2"),
        ("llm.input", 4, "llm.input"),
        ("vision.output", 4, "vision.output"),
    ],
)
def test_depth(site, layers, placed):
    """The layer at the same share of the depth, never outside the model, never layer 0 unless it says so."""
    assert sites(site, layers=layers) == [placed]


@pytest.mark.parametrize("kind", ["layer", "mlp"])
@pytest.mark.parametrize(
    ("share", "layers", "placed"),
    [
        ("1/2", 24, 12),
        ("1/2", 23, 12),
        ("1/2", 2, 1),
        ("0/24", 23, 0),
        ("1/24", 4, 1),
        ("23/24", 12, 11),
        ("8/24", 27, 9),
    ],
)
def test_depth_of_the_tower(kind, share, layers, placed):
    """The same share of the way to the layer that the projector reads, whatever the decoder's depth."""
    assert sites(f"vision.{kind}.{share}", layers=4, vision=layers) == [f"vision.{kind}.{placed}"]


def test_shares_of_tower_and_decoder_stand_together():
    """In the order in which tokens meet them; those that fall together become one, in their own tower."""
    written = ("vision.layer.1/24", "vision.layer.2/24", "vision.output", "llm.layer.1/32", "llm.layer.2/32")
    placed = ["vision.layer.1", "vision.output", "llm.layer.1"]
    assert sites(*written, layers=4, vision=6) == placed


@pytest.mark.parametrize("kind", ["layer", "mlp"])
def test_every_layer_of_the_tower(kind):
    """One stage each, with all that was written for them, in front of what comes behind."""
    placed = place_stages(
        [{"site": f"vision.{kind}.*", "keep": "fit", "a": 1}, {"site": "vision.output", "keep": 4}], 4, 3
    )
    assert placed == [{"site": f"vision.{kind}.{i}", "keep": "fit", "a": 1} for i in range(3)] + [
        {"site": "vision.output", "keep": 4}
    ]


def test_stages_that_fall_together():
    """Of relative stages on one layer the last is kept, and order is that of the list."""
    stages = [{"site": f"llm.layer.{n}/32", "keep": n} for n in (8, 9, 16)]
    assert place_stages(stages, 4) == [{"site": "llm.layer.1", "keep": 9}, {"site": "llm.layer.2", "keep": 16}]


def test_stages_written_twice():
    """The same plain site twice is left for the schedule to refuse, and so is a stage without site."""
    twice = [{"site": "llm.layer.2", "keep": 4}, {"site": "llm.layer.2", "keep": 2}]
    assert place_stages(twice, 4) == twice
    nowhere = [{"keep": 4}, {"keep": 2}]
    assert place_stages(nowhere, 4) == nowhere


def test_messages():
    """A layer beyond its own depth, and a tower that is not there."""
    with pytest.raises(ValueError, match=r"schedule\.1\.site is llm\.layer\.32/32, beyond its own 32 layers"):
        sites("llm.layer.2/32", "llm.layer.32/32")
    for kind in ("layer", "mlp"):
        with pytest.raises(ValueError, match=rf"schedule\.0\.site is vision\.{kind}\.\*, but this model has no vision"):
            sites(f"vision.{kind}.*")
        with pytest.raises(
            ValueError, match=rf"schedule\.0\.site is vision\.{kind}\.1/2, but this model has no vision"
        ):
            sites(f"vision.{kind}.1/2")
        with pytest.raises(ValueError, match=rf"schedule\.0\.site is vision\.{kind}\.24/24, beyond its own 24 layers"):
            sites(f"vision.{kind}.24/24", vision=4)
