"""What MkDocs calls: adds pages from outside docs/ and generated ones, turns their links, and checks what was built."""

from __future__ import annotations

import ast
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.making.links import ROOT, in_site, is_table, links, pages, place
from docs.making.methods import methods, overview, page
from docs.making.notebook_pages import notebooks, written

PACKAGES = {
    "core": "the words of all others: sites, stages, schedules, signals, selections",
    "engine": "moves tokens: hooks, masks, positions, caches",
    "ops": "algorithms on tensors",
    "schedules": "where stages lie and how many tokens stay: a budget becomes a schedule",
    "measure": "operations, memory and time",
    "models": "where things are in a model",
    "pruners": "the methods",
    "tasks": "questions, pictures and how answers are scored",
    "results": "the run folder: its files, their reader and writer, statistics",
    "report": "tables, figures and pages from run folders",
    "runner": "runs, sweeps, stores, logging",
    "cli": "what is typed: overrides, experiments, checks of a config",
    "lmms_eval": "lmms-eval's own command line",
}
SHIPPED = ("*.png", "*.svg", "*.jpg", "*.csv")
STUDIES, ABLATIONS = "experiments/README.md", "experiments/ablations/README.md"
_FETCHED = re.compile(
    r"<(?:script|img|iframe|source|link)\b[^>]*?(?:src|srcset|href)=[\"']?(?:https?:)?//[^>]*>|url\([\"']?(?:https?:)?//"
)


@cache
def modules() -> dict[str, str]:
    """Every module with something to say: its dotted name -> where its page lies among the site's sources."""
    inside = [path for package in PACKAGES for path in sorted((ROOT / "btp" / package).rglob("*.py"))]
    found = {}
    for path in [*inside, *sorted((ROOT / "btp").glob("*.py"))]:
        if not path.name.startswith("_"):
            dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[dotted] = f"reference/{dotted.removeprefix('btp.').replace('.', '/')}.md"
    return found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the parts of the nav that follow from what is there."""
    reference: dict[str, list[Any]] = {f"btp.{package}": [f"reference/{package}/index.md"] for package in PACKAGES}
    reference["commands"] = ["reference/commands/index.md"]
    for dotted, at in modules().items():
        reference[_package(dotted)].append({dotted.removeprefix("btp."): at})
    parts: dict[str, list[Any]] = {
        "methods": ["methods/index.md", *({method.name: f"methods/{method.name}.md"} for method in methods())],
        "notebooks": ["notebooks/README.md", *(place(f"notebooks/{path.name}") for path in notebooks())],
        "experiments": _experiments(),
        "reference": ["reference/index.md", *({name: inside} for name, inside in reference.items())],
    }
    config.nav = [
        {key: parts.get(value, value) if isinstance(value, str) else value for key, value in entry.items()}
        if isinstance(entry, dict)
        else entry
        for entry in config.nav or []
    ]
    return config


def _experiments() -> list[Any]:
    """Pages of results: the studies in the order of their table, the ablations, and what is no study."""
    rest = [path for path in pages() if path.startswith(("experiments/", "btp/")) and not is_table(path)]
    listed = [f"experiments/{target}" for _, target in links((ROOT / STUDIES).read_text(encoding="utf-8"))]
    studies = [path for path in dict.fromkeys(listed) if path in rest and _is_study(path)]
    other = [path for path in rest if path not in (STUDIES, ABLATIONS, *studies)]
    # A README among its like would be taken for the page of the section that they are in, so each is its own section's.
    alone = [{(ROOT / path).read_text(encoding="utf-8").splitlines()[0].removeprefix("# "): [path]} for path in other]
    return [{"Studies": [STUDIES, *studies]}, {"Ablations": [ABLATIONS]}, {"Other": alone}]


def _is_study(page: str) -> bool:
    """True of experiments/NAME/README.md with NAME.md beside it."""
    return is_table(f"{Path(page).parent}/{Path(page).parent.name}.md")


def _package(dotted: str) -> str:
    """The part of the reference that a module belongs to."""
    package = ".".join(dotted.split(".")[:2])
    return package if package != dotted else "commands"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages from outside docs/ with their pictures and tables, methods, notebooks, and a page a module."""
    outside = [path for path in pages() if not path.startswith("docs/") and not is_table(path)]
    folders = {Path(path).parent for path in outside} - {Path(".")}
    shipped = {
        p.relative_to(ROOT).as_posix() for folder in folders for kind in SHIPPED for p in (ROOT / folder).rglob(kind)
    }
    for path in [*outside, *sorted(shipped)]:
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    found = methods()
    made: dict[str, str | bytes] = {"methods/index.md": overview(found)}
    made |= {f"methods/{method.name}.md": page(method) for method in found}
    made |= _reference()
    for path in notebooks():
        made |= written(path)
    for at, content in made.items():
        files.append(File.generated(config, at, content=content))
    return files


def _reference() -> dict[str, str]:
    """A page a module, a table a package, and the table of the packages."""
    made: dict[str, str] = {}
    listed: dict[str, list[str]] = {}
    for dotted, at in modules().items():
        made[at] = f"# {dotted}\n\n::: {dotted}\n"
        module = (ROOT / (dotted.replace(".", "/") + ".py")).read_text(encoding="utf-8")
        says = ast.get_docstring(ast.parse(module)) or ""
        name = _package(dotted)
        up = os.path.relpath(at, f"reference/{name.removeprefix('btp.')}")
        listed.setdefault(name, []).append(f"| [`{dotted}`]({up}) | {says.splitlines()[0] if says else ''} |")
    about = {f"btp.{package}": says for package, says in PACKAGES.items()}
    about["commands"] = "what `python -m btp.NAME` runs"
    rows = []
    for name, says in about.items():
        at = f"{name.removeprefix('btp.')}/index.md"
        made[f"reference/{at}"] = "\n".join([f"# {name}", "", "| module | what |", "|---|---|", *listed[name], ""])
        rows.append(f"| [`{name}`]({at}) | {says} | {len(listed[name])} |")
    head = ["# Reference", "", "Every public docstring.", "", "| package | what | modules |", "|---|---|--:|"]
    return made | {"reference/index.md": "\n".join([*head, *rows, ""])}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of pages that people wrote: to where things lie in the site, and from source files to their docs."""
    file = page.file
    if file.src_uri == "README.md":
        page.meta["hide"] = ["navigation"]  # there is nothing beside it
    if file.generated_by and not file.src_uri.startswith("notebooks/"):
        return markdown
    source = file.src_uri if file.generated_by or file.src_dir != config.docs_dir else f"docs/{file.src_uri}"
    documented = {dotted.replace(".", "/") + ".py": at for dotted, at in modules().items()}

    def known(path: str) -> str | None:
        at = documented.get(path, place(path))
        return at if files.get_file_from_path(at) or not (ROOT / path).exists() else None  # what is gone, MkDocs says

    return in_site(markdown, source, file.src_uri, known)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that fetches anything from elsewhere, or that leaves out a public docstring."""
    built = Path(config.site_dir)
    fetched = [
        f"{path.relative_to(built)}: {found[0]}"
        for path in sorted(built.rglob("*"))
        if path.suffix in (".html", ".css")
        for found in _FETCHED.finditer(path.read_text(encoding="utf-8"))
        if 'rel="canonical"' not in found[0]
    ]
    if fetched:
        raise PluginError("The site would load things from elsewhere:\n" + "\n".join(fetched))
    missing = [
        name
        for dotted, at in modules().items()
        for name in _public(dotted)
        if f'id="{name}"' not in (built / at).with_suffix(".html").read_text(encoding="utf-8")
    ]
    if missing:
        raise PluginError("These have a docstring, but no place in the reference:\n" + "\n".join(missing))


def _public(dotted: str) -> list[str]:
    """Dotted names of a module's public classes, functions and methods that have a docstring."""
    found = []

    def visit(node: ast.AST, above: str) -> None:
        for inner in ast.iter_child_nodes(node):
            if isinstance(inner, ast.ClassDef | ast.FunctionDef) and not inner.name.startswith("_"):
                if ast.get_docstring(inner):
                    found.append(f"{above}.{inner.name}")
                if isinstance(inner, ast.ClassDef):
                    visit(inner, f"{above}.{inner.name}")

    visit(ast.parse((ROOT / (dotted.replace(".", "/") + ".py")).read_text(encoding="utf-8")), dotted)
    return found
