"""Pages of the methods, made from conf/pruner, the methods' docstrings, docs/fidelity.md and docs/support.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from docs.making.links import ROOT, in_site, place

_PAPER = re.compile(r" \((?P<authors>[^()]+), arXiv:(?P<number>[\d.]+(?:v\d+)?)(?P<more>, [^()]+)?\)$")
_LINE = re.compile(r"^(?P<blank> *)(?P<key>\w+): *(?P<value>[^#]*?) *(?:# *(?P<comment>.*))?$")
PRUNERS = "btp.pruners."
NO_SIGNAL = "None but the tokens in front of the stage."
_APART = ("name", "defaults", "schedule", "published", "method._target_")


@dataclass(frozen=True)
class Method:
    """One yaml of conf/pruner."""

    path: Path

    @cached_property
    def text(self) -> str:
        """The yaml as it stands."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The yaml as Hydra reads it, before anything is resolved."""
        return yaml.safe_load(self.text)

    @property
    def name(self) -> str:
        """What `pruner=` takes."""
        return self.path.stem

    @cached_property
    def head(self) -> tuple[str, str, str]:
        """Title, paper ("" for a control) and what it does, of the first comment."""
        who, _, what = self.text.splitlines()[0].removeprefix("# ").partition(": ")
        paper = _PAPER.search(who)
        title = who[: paper.start()] if paper else {"Control": self.name, "Baseline": self.name}.get(who, who)
        link = ""
        if paper:
            number = paper["number"]
            link = f"{paper['authors']}, [arXiv:{number}](https://arxiv.org/abs/{number}){paper['more'] or ''}"
        return title, link, what[:1].upper() + what[1:]

    @property
    def command(self) -> str:
        """A command that runs it, of the second comment."""
        return self.text.splitlines()[1].removeprefix("# ")

    @property
    def target(self) -> str | None:
        """The dotted class; None for compositions and what decides nothing."""
        return (self.config.get("method") or {}).get("_target_")

    @property
    def sites(self) -> str:
        """Where it stands by default, each once."""
        stages = self.config.get("schedule")
        if stages is None:
            return "those of its parts" if "defaults" in self.config else "the run's schedule"
        named = [f"`{stage['site']}`".replace("${...layer}", "N") for stage in stages]
        many = [name for name in named if name.startswith("`llm.layer.")]
        if len(many) > 3:  # by and by
            named = [*(name for name in named if name not in many), f"{len(many)} from {many[0]} to {many[-1]}"]
        return ", ".join(named) or "none"

    @property
    def signals(self) -> str:
        """What it asks to see: what its class says of `needs`."""
        if "defaults" in self.config:
            return "Those of its parts."
        return (self.target and _needs(self.target)) or NO_SIGNAL

    def settings(self) -> Iterator[tuple[str, str, str]]:
        """Dotted key, value and what it means of each line, but for the schedule and what was published."""
        above: list[str] = []
        for line in self.text.splitlines():
            found = _LINE.match(line)
            if found is None:
                continue
            above[len(found["blank"]) // 2 :] = [found["key"]]
            key = ".".join(above)
            if above[0] not in _APART and key not in _APART and (found["value"] or found["comment"]):
                said = self.target and _arguments(self.target).get(key.removeprefix("method."))
                yield f"pruner.{key}", found["value"], found["comment"] or said or ""

    def block(self, key: str) -> str:
        """The lines of a key of the yaml, comments and all; "" where it is not there or has nothing in it."""
        found = re.search(rf"^{key}:.*\n(?:[ #].*\n?)+", self.text, re.M)
        return found[0].rstrip() if found else ""


def methods(root: Path = ROOT) -> list[Method]:
    """All of conf/pruner: methods of papers first, then controls and compositions, each by name."""
    found = [Method(path) for path in (root / "conf" / "pruner").glob("*.yaml")]
    return sorted(found, key=lambda method: (not method.head[1], method.name))


def overview(found: list[Method]) -> str:
    """The page that lists them."""
    lines = ["# Methods", "", "Made from `conf/pruner` and the docstrings of `btp/pruners`. *Signals* is what a method"]
    lines += ["asks the engine to see; [concepts](../concepts.md) says what the words mean.", ""]
    for heading, of_papers in (("From papers", True), ("Controls and compositions", False)):
        lines += [f"## {heading}", "", "| pruner | what it does | sites | signals |", "|---|---|---|---|"]
        for method in found:
            if bool(method.head[1]) == of_papers:
                cells = (f"[`{method.name}`]({method.name}.md)", method.head[2], method.sites, method.signals)
                lines.append(_row(*cells))
        lines.append("")
    return "\n".join(lines)


def page(method: Method, root: Path = ROOT) -> str:
    """One method's page, in Markdown, for mkdocstrings to fill in the docstring of its class."""
    title, paper, what = method.head
    lines = [f"# {title}", "", *([paper, ""] if paper else []), what, "", "```", method.command, "```", ""]
    lines += [f"- *Sites*: {method.sites}", f"- *Signals*: {method.signals}"]
    fidelity = _fidelity(method.name, root)
    if held := re.search(r"- \*Held against\*: (.*?)(?=\n- |\Z)", fidelity, re.S):
        lines.append(f"- *Parity, held against*: {' '.join(held[1].split())}")
    settings = list(method.settings())
    if settings:
        lines += ["", "## Settings", "", "| key | value | |", "|---|---|---|"]
        lines += [_row(f"`{key}`", f"`{value}`" if value else "", comment) for key, value, comment in settings]
    if block := method.block("schedule"):
        lines += ["", "## Stages", "", "```yaml", block, "```"]
    lines += _published(method)
    if method.target:
        shown = ("members: false", "skip_local_inventory: true", "show_root_heading: true", "show_root_full_path: true")
        shown += ("show_signature: false", "show_docstring_parameters: false")  # the settings above
        lines += ["", "## In words", "", f"::: {method.target}", "    options:"]
        lines += [f"      {option}" for option in (*shown, "heading_level: 3")]
    if fidelity:
        lines += ["", "## Fidelity", "", fidelity, "", "[All methods](../fidelity.md)"]
    lines += _support(method.name, root)
    return "\n".join(lines) + "\n"


def _published(method: Method) -> Iterator[str]:
    if not method.config.get("published"):
        return
    yield from ("", "## As published", "", "The words in the first column belong behind", "")
    yield from ("```", f"python run.py pruner={method.name} schedule=paper", "```", "")
    yield from ("| model and setting | stages | settings of its own |", "|---|---|---|")
    for model, settings in method.config["published"].items():
        for i, (name, setting) in enumerate(settings.items()):
            stages = "<br>".join(_stage(stage) for stage in setting["stages"])
            own = "<br>".join(f"`{key}: {value}`" for key, value in setting.get("method", {}).items())
            yield _row(f"`model={model}`<br>" + (f"`schedule.setting={name}`" if i else f"({name})"), stages, own)


def _stage(stage: Mapping[str, Any]) -> str:
    more = "".join(f", {key} {value}" for key, value in stage.items() if key not in ("site", "keep"))
    return f"`{stage['site']}` keeps {stage['keep']}{more}"


def _fidelity(name: str, root: Path) -> str:
    """The section of docs/fidelity.md whose heading names the method, links as its own page needs them; "" without."""
    for section in re.split(r"^## ", (root / "docs" / "fidelity.md").read_text(encoding="utf-8"), flags=re.M)[1:]:
        heading, _, text = section.partition("\n")
        if f"`{name}`" in heading:
            return in_site(text.strip(), "docs/fidelity.md", f"methods/{name}.md", place).strip()
    return ""


def _support(name: str, root: Path) -> Iterator[str]:
    """What the table of docs/support.md says of the method."""
    rows = [
        line.strip("| ").split(" | ")
        for line in (root / "docs" / "support.md").read_text(encoding="utf-8").splitlines()
    ]
    head = next(row for row in rows if row[0] == "model")
    if name not in head:
        return
    says: dict[str, list[str]] = {"+": [], "=": [], "-": []}
    for row in rows:
        if len(row) == len(head) and row[0].startswith("["):
            model = re.sub(r"\[(.*)\]\(#.*\)", r"\1", row[0])
            says[row[head.index(name)]].append(f"[{model}](../support.md#{model})")
    yield from ("", "## Where it works", "")
    for mark, words in (("+", "works"), ("=", "works with another setting"), ("-", "is refused")):
        if says[mark]:
            yield f"- {words}: {', '.join(says[mark])}"


@cache
def _needs(target: str) -> str:
    """First paragraph of the docstring of a class's `needs`, its own or a base's among the pruners; "" without one."""
    module, name = target.rsplit(".", 1)
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    own = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    for node in own.body:
        if isinstance(node, ast.FunctionDef) and node.name == "needs":
            return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    taken = [node for node in tree.body if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PRUNERS)]
    bases = {alias.name: f"{node.module}.{alias.name}" for node in taken for alias in node.names}
    known = [bases[base.id] for base in own.bases if isinstance(base, ast.Name) and base.id in bases]
    return next((found for base in known if (found := _needs(base))), "")


@cache
def _arguments(target: str) -> dict[str, str]:
    """What the docstring of a class says of each argument; nothing of those that it inherits."""
    module, name = target.rsplit(".", 1)
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    own = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    part = re.search(r"^Args:\n((?:    .*\n?|\n(?=    ))+)", ast.get_docstring(own) or "", re.M)
    found = re.findall(r"^    (\w+): (.*(?:\n      .*)*)", part[1] if part else "", re.M)
    return {argument: " ".join(words.split()) for argument, words in found}


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
