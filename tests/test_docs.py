"""The pages hold: links lead somewhere, quoted messages exist, methods' pages can be made, the nav is whole."""

import ast
import importlib
import re
import shutil
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import yaml

from btp.core.pruner import Tokens
from docs.making.links import anchors, broken, in_site, is_table, links, pages, place, prose, resolved, slug
from docs.making.methods import NO_SIGNAL, Method, methods, overview, page

ROOT = Path(__file__).resolve().parents[1]
QUOTED = re.compile(r"^\| `([^`]+)` \|", re.M)


@cache
def said() -> tuple[str, ...]:
    """Every text in the sources; what is filled in became …."""
    found = []
    for path in sorted((ROOT / "btp").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(dict.fromkeys(text.replace("\n", " ") for text in found))


def is_said(message: str) -> bool:
    """True where one text in the sources holds the message, … standing for anything."""
    parts = message.split("…")
    whole, longest = re.compile(".*".join(map(re.escape, parts))), max(parts, key=len)
    return any(whole.search(text) for text in said() if longest in text)


def test_links_lead_somewhere():
    """Every relative link and picture of every page is a file, and every anchor a heading."""
    assert broken() == []


def test_a_broken_link_is_seen(tmp_path):
    """A page that is gone, a heading that is gone; not what stands in code, and not other sites."""
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        (tmp_path / name).write_text(
            "# Top `x`\n\n[a](docs/a.md#here-it-is) [up](#top-x) [b](https://example.org/b.md)\n"
        )
    line = "[gone](gone.md) [no heading](../README.md#no) `[code](code.md)`"
    text = f"# A\n\n## Here it is\n\n{line}\n\n```\n[c](c.md)\n```\n"
    (tmp_path / "docs" / "a.md").write_text(text)
    assert broken(tmp_path) == ["docs/a.md:5: gone.md", "docs/a.md:5: ../README.md#no"]


def test_links_of_raw_html_and_pictures_count():
    """As a README's picture for light and dark has them."""
    text = '<img src="docs/a.svg"> <source srcset="b.svg">\n![c](c.png) [![d](d.png)](e.md)'
    assert [target for _, target in links(text)] == ["docs/a.svg", "b.svg", "c.png", "e.md"]


def test_anchors_are_those_of_code_hosts():
    """Code signs and punctuation go, blanks become dashes, a second heading of the same name gets a number."""
    assert slug("Your own questions: `task=vqa_folder`") == "your-own-questions-taskvqa_folder"
    assert anchors("# A b\n## A b\n```\n# no\n```\n") == {"a-b", "a-b-1"}


def test_links_in_the_site():
    """Pages move up from docs/, sources become their reference, and what the site lacks becomes text."""
    known = {"docs/a.md": "a.md", "btp/core/site.py": "reference/core/site.md"}.get
    text = "[a](docs/a.md#x) [s](btp/core/site.py) [y](conf/config.yaml) [h](https://x.org)\n```\n[a](docs/a.md)\n```\n"
    assert in_site(text, "README.md", "README.md", known) == (
        "[a](a.md#x) [s](reference/core/site.md) y [h](https://x.org)\n```\n[a](docs/a.md)\n```\n"
    )
    raw = '<a href="docs/a.md#x"><img src="docs/p.png"></a> <a href="README.md">'
    everything = {"docs/a.md": "a.md", "docs/p.png": "p.png", "README.md": "README.md"}.get
    turned = '<a href="a.html#x"><img src="p.png"></a> <a href="index.html">\n'
    assert in_site(raw, "README.md", "README.md", everything) == turned
    assert in_site("[a](../docs/a.md)", "experiments/R.md", "experiments/R.md", known) == "[a](../a.md)\n"


def test_every_page_is_in_the_nav():
    """A page of docs/ that mkdocs.yml does not name is found by nobody; the hook adds those of other folders."""
    nav = str(re.search(r"^nav:.*", (ROOT / "mkdocs.yml").read_text(), re.M | re.S)[0])
    own = [place(path) for path in pages() if not path.startswith(("experiments/", "notebooks/", "btp/"))]
    assert [path for path in own if not re.search(rf"[:-] {re.escape(path)}$", nav, re.M)] == []


def test_tables_are_parts_of_pages():
    """The site leaves out NAME.md of a study, since another page has all of it and leads to NAME.csv."""
    tables = [path for path in pages() if is_table(path)]
    assert {"experiments/depth_sweep/depth_sweep.md", "experiments/cost/results/pocket-cpu.md"} <= set(tables)
    others = {path: (ROOT / path).read_text() for path in pages() if not is_table(path)}
    for path in tables:
        text = (ROOT / path).read_text().strip()
        assert any(text in other for other in others.values()), f"{path} is a part of no page"


def test_the_drawing_of_sites_can_be_read_on_a_phone():
    """Letters of ten pixels where the page leaves 358 of 390; the last layer is called the same in both halves."""
    drawing = (ROOT / "docs" / "images" / "sites.svg").read_text()
    width = float(re.search(r'viewBox="0 0 (\d+) ', drawing)[1])
    sizes = [float(size) for size in re.findall(r'font-size(?:="|: )(\d+)', drawing)]
    assert min(sizes) * 358 / width >= 10
    named = re.findall(r'class="name">([^<]*)<', drawing)
    assert {"vision.layer.L−1", "vision.mlp.L−1", "llm.layer.L−1", "vision.output", "llm.input"} <= set(named)
    assert not [name for name in named if name.endswith(".N")]


@pytest.mark.parametrize("path", pages())
def test_lists_stand_apart(path):
    """The site's Markdown, unlike that of code hosts, sees a list only behind a blank line."""
    lines = dict(prose((ROOT / path).read_text()))
    item = re.compile(r"^\s*([-*]|\d+\.) ")
    wrong = []
    for number, line in lines.items():
        above = lines.get(number - 1, "")
        inside = above.strip() and (item.match(above) or above.startswith("  "))
        if item.match(line) and above.strip() and not inside:
            wrong.append(f"{path}:{number}: {line[:60]}")
    assert wrong == []


@pytest.mark.parametrize("message", QUOTED.findall((ROOT / "docs" / "errors.md").read_text()))
def test_messages_are_those_of_the_sources(message):
    """docs/errors.md quotes what the code says."""
    assert len(message.replace("…", "").strip()) >= 12
    assert is_said(message)


def test_other_messages_are_seen():
    """The check above can fail."""
    assert not is_said("A budget of … visual tokens cannot be had")
    assert not is_said("Set the one that you do not mean to null … A budget of")


def test_errors_page_has_its_tables():
    """Every row of it is a quoted message, so that none escapes the check."""
    rows = re.findall(r"^\| (?!message)(.*)", (ROOT / "docs" / "errors.md").read_text(), re.M)
    assert len(rows) == len(QUOTED.findall((ROOT / "docs" / "errors.md").read_text())) >= 30


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
def test_a_methods_page_has_everything(method):
    """Title, paper, command, sites, signals, and every key of the yaml's method with its value and comment."""
    text = page(method)
    title, paper, what = method.head
    assert text.startswith(f"# {title}\n")
    assert what.endswith(".")
    assert method.command.startswith("python run.py")
    assert bool(paper) == ("arXiv" in method.text.splitlines()[0]), (
        f"conf/pruner/{method.name}.yaml names its paper in a form that is not read. Write its first line as "
        "`# Longest (You et al. 2025, arXiv:0000.00000): keeps ...`."
    )
    rows = {key: value for key, value, _ in method.settings()}
    assert all(text.count(f"| `{key}` |") == 1 for key in rows)
    assert "show_docstring_parameters: false" in text or not method.target  # they are the settings
    for key, value in (method.config.get("method") or {}).items():
        if key != "_target_" and not isinstance(value, dict):
            written = rows[f"pruner.method.{key}"]
            assert written == "${seed}" or yaml.safe_load(written) == value
    for line in method.text.split("schedule:")[0].splitlines()[2:]:
        if "#" in line and "_target_" not in line:
            assert line.split("# ", 1)[1].replace("|", "\\|") in text
    assert ("## Stages" in text) == isinstance(method.config["schedule"], list) == bool(method.config["schedule"]) or (
        method.config["schedule"] == []
    )
    for settings in (method.config.get("published") or {}).values():
        assert all(f"schedule.setting={name}`" in text for name in list(settings)[1:])
    if paper:
        where = f"{method.name} names a paper (CONTRIBUTING.md, A published method)"
        assert "## Fidelity" in text, f"{where}: write a section `## {title} (`{method.name}`)` into docs/fidelity.md."
        assert "- *Parity, held against*: " in text, (
            f"{where}: its section of docs/fidelity.md lacks the line `- *Held against*: ...`."
        )
        assert "## Where it works" in text or method.config.get("tower") == "vision", (
            f'{where}: docs/support.md has no column for it. Run `make support ARGS="--pruner {method.name}"`.'
        )
        assert method.signals != NO_SIGNAL or "needs" not in vars(class_of(method)), (
            f"{where}: give {method.target}.needs a docstring, whose first paragraph says which signals it asks for."
        )


def test_a_methods_page_links_to_what_there_is():
    """Its sections are quoted from pages of another folder."""
    led = [(method.name, target.partition("#")[0]) for method in methods() for _, target in links(page(method))]
    assert ("lvpruning", "../training.md") in led
    assert [(name, to) for name, to in led if not (ROOT / resolved(f"docs/methods/{name}.md", to)).exists()] == []


def test_the_overview_leads_to_every_method():
    text = overview(methods())
    assert [method.name for method in methods() if f"]({method.name}.md)" not in text] == []


def class_of(method):
    module, _, name = method.target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_what_a_published_method_lacks_is_said(tmp_path):
    """A copy of FastV under another name: its page wants a section, a line in it and a column, and has them then."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("images", "making"))
    folder = tmp_path / "conf" / "pruner"
    folder.mkdir(parents=True)
    yaml_text = (ROOT / "conf" / "pruner" / "fastv.yaml").read_text()
    (folder / "longest.yaml").write_text(yaml_text.replace("name: fastv", "name: longest"))
    (made,) = methods(tmp_path)
    parts = ("## Fidelity", "*Parity", "## Where it works")

    def lacking():
        return [part for part in parts if part not in page(made, tmp_path)]

    assert lacking() == list(parts)
    fidelity, support = (tmp_path / "docs" / f"{name}.md" for name in ("fidelity", "support"))
    section = "\n## Longest (`longest`)\n\n- *Held against*: worked examples by hand.\n"
    fidelity.write_text(fidelity.read_text() + section)
    assert lacking() == ["## Where it works"]
    support.write_text(support.read_text().replace("| fastv |", "| longest |"))
    assert lacking() == []


def test_contributing_names_every_place_of_a_published_method():
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## A published method")[2].partition("\n# ")[0]
    for place_ in ("btp/pruners/longest.py", "conf/pruner/longest.yaml", "docs/fidelity.md", "docs/support.md"):
        assert f"`{place_}`" in text
    assert 'make support ARGS="--pruner longest"' in text
    assert "*Held against*" in text


def test_every_field_of_tokens_is_on_a_page():
    """docs/concepts.md has them all, but for those that the engine keeps for itself."""
    part = (ROOT / "docs" / "concepts.md").read_text().partition("### What a pruner is shown")[2].partition("###")[0]
    listed = re.findall(
        r"`(\w+)`", " ".join(line.split("|")[1] for line in part.splitlines() if line.startswith("| `"))
    )
    assert sorted(listed) == sorted(f.name for f in fields(Tokens) if not f.name.startswith("host_"))


def test_a_setting_without_a_comment_takes_its_words_from_the_class():
    """What the yaml says comes first."""
    of = {method.name: {key: said for key, _, said in method.settings()} for method in methods()}
    assert of["aim"]["pruner.method.tau"] == "temperature of the walk's attention, above 0."
    assert of["btp"]["pruner.method.over"].startswith("candidates per token chosen by attention; released code")


def test_a_yaml_of_ones_own_gets_a_page(tmp_path):
    """What CONTRIBUTING.md shows needs no section in docs/fidelity.md and no row in docs/support.md."""
    folder = tmp_path / "conf" / "pruner"
    folder.mkdir(parents=True)
    for name in ("fidelity", "support"):
        (tmp_path / "docs").mkdir(exist_ok=True)
        shutil.copy(ROOT / "docs" / f"{name}.md", tmp_path / "docs")
    text = re.search(r"```yaml\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)[1]
    (folder / "longest.yaml").write_text(text.replace("longest.Longest", "fastv.FastV"))
    (made,) = methods(tmp_path)
    assert isinstance(made, Method)
    assert "keep: fit" in page(made, tmp_path)


def test_nothing_generated_is_kept():
    """Pages of methods and reference are made at each build; the site's folder is ignored."""
    assert not (ROOT / "docs" / "methods").exists()
    assert not (ROOT / "docs" / "reference").exists()
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"site/", ".venv-docs/"} <= set(ignored)


def test_make_docs_is_strict():
    """A link that leads nowhere ends the build; --quiet would hide it from --strict."""
    (build,) = re.findall(r"^\t.*mkdocs build.*", (ROOT / "Makefile").read_text(), re.M)
    assert "--strict" in build
    assert "quiet" not in build
    assert "{not_found: warn, anchors: warn" in (ROOT / "mkdocs.yml").read_text()
