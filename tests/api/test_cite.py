"""`btp cite`: the papers of methods."""

import re
from pathlib import Path

import pytest
import yaml

from btp.api.catalogue import citation, methods
from btp.cite import main

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = [name for name, line in methods().items() if "arXiv:" in line]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_method_has_its_paper(name):
    """A title of its own and the number of its yaml's first line; docs/papers.yaml is where a new one goes."""
    said = citation(name)
    number = re.search(r"arXiv:([\w.]+)", methods()[name])[1]
    papers = yaml.safe_load((ROOT / "docs/papers.yaml").read_text())
    assert f"{{{number}}}," in said
    assert number in papers, f"add {number} to docs/papers.yaml"
    assert papers[number]["title"] in said
    assert said.startswith("@")
    assert said.count("{") == said.count("}")


def test_the_command(capsys):
    """Several at once, and the framework behind them; a control has no paper."""
    assert main(["fastv", "divprune"]) == 0
    said = capsys.readouterr().out
    assert (
        said.index("@inproceedings{fastv2024,") < said.index("@inproceedings{divprune2025,") < said.index("@software")
    )
    assert main(["random"]) == 2
    assert "random is no published method" in capsys.readouterr().err
    assert main(["fastvv"]) == 2
    assert "there is no method 'fastvv'" in capsys.readouterr().err


def test_the_year_is_the_venues():
    """Of proceedings where they are known, of the preprint otherwise."""
    assert "year          = {2026}," in citation("transprune")
    assert "year          = {2024}," in citation("lazyllm")
