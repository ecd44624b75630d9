"""Catalogue of methods and models by name, with the papers of the methods. No torch here."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from btp.results.shipped import CONF, DOCS

_PAPER = re.compile(r"^# (?P<title>.+?) \((?P<author>[^()]+?) (?P<year>\d{4}), arXiv:(?P<id>[\d.]+(?:v\d+)?)")


def methods() -> dict[str, str]:
    """What each pruner does, by the name that `attach`, `evaluate` and pruner=NAME take."""
    return _described("pruner")


def models() -> dict[str, str]:
    """What each model yaml is for, by the name that model=NAME takes; `attach` finds a model's by its family."""
    return _described("model")


def citation(method: str) -> str:
    """BibTeX of the paper of a method.

    Args:
        method: name of its yaml.

    Raises:
        ValueError: there is no such method, or it is nobody's: a control or a composition.
    """
    known = methods()
    if not isinstance(method, str) or method not in known:
        raise ValueError(f"there is no method {method!r}. Methods are: {', '.join(known)}.")
    found = _PAPER.match(f"# {known[method]}")
    if found is None:
        raise ValueError(f"{method} is no published method: {known[method]}")
    paper = {"author": found["author"].replace(" et al.", " and others"), "title": found["title"]}
    paper |= _papers().get(found["id"], {})
    fields = {
        "title": f"{{{paper['title']}}}",
        "author": paper["author"],
        **({"booktitle": paper["venue"]} if "venue" in paper else {}),
        "year": str(paper.get("year", found["year"])),
        "eprint": found["id"],
        "archivePrefix": "arXiv",
        "url": f"https://arxiv.org/abs/{found['id']}",
    }
    kind = "inproceedings" if "venue" in paper else "misc"
    lines = [f"  {key:<13} = {{{value}}}," for key, value in fields.items()]
    return "\n".join([f"@{kind}{{{method}{found['year']},", *lines, "}"])


@cache
def _papers() -> dict[str, dict[str, Any]]:
    """Titles, authors and venues by arXiv number."""
    return yaml.safe_load((DOCS / "papers.yaml").read_text(encoding="utf-8"))


def _described(group: str) -> dict[str, str]:
    return {path.stem: _first(path) for path in sorted((CONF / group).glob("*.yaml"))}


def _first(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").rstrip()
