"""Sites read, print and order as a token meets them."""

import pickle
import random

import pytest

from btp.core.site import Site

ORDER = [
    "vision.layer.0",
    "vision.layer.22",
    "llm.input",
    "llm.layer.0",
    "llm.cache.0",
    "llm.layer.1",
    "llm.cache.10",
]


@pytest.mark.parametrize("text", ORDER)
def test_round_trip(text):
    """Parsing and printing give the text back; sites hash and pickle."""
    site = Site.parse(text)
    assert str(site) == text
    assert {site: 1}[Site.parse(text)] == 1
    assert pickle.loads(pickle.dumps(site)) == site
    assert Site.parse(site) is site


def test_order():
    """Shuffled sites sort into the order of the walk."""
    sites = [Site.parse(text) for text in ORDER]
    mixed = random.Random(0).sample(sites, len(sites))
    assert sorted(mixed) == sites


@pytest.mark.parametrize("text", ["", "llm", "llm.layer", "llm.layer.-1", "vision.input", "llm.head.2", "LLM.input", 3])
def test_bad_text(text):
    """What is not a site is refused, with the forms there are."""
    with pytest.raises(ValueError, match=r"is not a site. Write vision\.layer\.N, vision\.mlp\.N, vision\.output, llm"):
        Site.parse(text)


def test_previous_layer():
    """The layer before a site; there is none before the first."""
    assert str(Site.parse("llm.layer.2").previous_layer) == "llm.layer.1"
    assert str(Site.parse("llm.cache.2").previous_layer) == "llm.layer.2"
    with pytest.raises(ValueError, match=r"Choose a site at llm\.layer\.1 or later"):
        _ = Site.parse("llm.layer.0").previous_layer


def test_first_layer():
    """The first decoder layer that sees a change at the site."""
    firsts = [Site.parse(text).first_layer for text in ORDER]
    assert firsts == [0, 0, 0, 0, 1, 1, 11]
