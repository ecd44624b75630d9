"""What MkDocs calls: adds pages from outside docs/ and generated ones, turns their links, and checks what was built."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.making.links import ROOT, in_site, pages, place
from docs.making.methods import methods, overview, page

PACKAGES = ("core", "engine", "ops", "measure", "models", "pruners", "tasks", "report", "runner")
PICTURES = ("*.png", "*.svg", "*.jpg")
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
    experiments = [path for path in pages() if path.startswith(("experiments/", "btp/"))]
    reference: dict[str, list[dict[str, str]]] = {f"btp.{package}": [] for package in PACKAGES} | {"commands": []}
    for dotted, at in modules().items():
        package = ".".join(dotted.split(".")[:2])
        reference[package if package != dotted else "commands"].append({dotted.removeprefix("btp."): at})
    parts: dict[str, list[Any]] = {
        "methods": ["methods/index.md", *({method.name: f"methods/{method.name}.md"} for method in methods())],
        "experiments": experiments,
        "reference": ["reference/index.md", *({name: inside} for name, inside in reference.items())],
    }
    config.nav = [
        {key: parts.get(value, value) if isinstance(value, str) else value for key, value in entry.items()}
        if isinstance(entry, dict)
        else entry
        for entry in config.nav or []
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages from outside docs/ with their pictures, methods, and a page a module."""
    outside = [path for path in pages() if not path.startswith("docs/")]
    folders = {Path(path).parent for path in outside} - {Path(".")}
    pictures = {
        p.relative_to(ROOT).as_posix() for folder in folders for kind in PICTURES for p in (ROOT / folder).rglob(kind)
    }
    for path in [*outside, *sorted(pictures)]:
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    found = methods()
    made = {"methods/index.md": overview(found)} | {f"methods/{m.name}.md": page(m) for m in found}
    listed = []
    for dotted, at in modules().items():
        made[at] = f"# {dotted}\n\n::: {dotted}\n"
        says = ast.get_docstring(ast.parse((ROOT / (dotted.replace(".", "/") + ".py")).read_text())) or ""
        listed.append(f"| [`{dotted}`]({at.removeprefix('reference/')}) | {says.splitlines()[0] if says else ''} |")
    made["reference/index.md"] = "# Reference\n\n| module | what |\n|---|---|\n" + "\n".join(listed) + "\n"
    for at, text in made.items():
        files.append(File.generated(config, at, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of pages that people wrote: to where things lie in the site, and from source files to their docs."""
    file = page.file
    if file.generated_by:
        return markdown
    source = f"docs/{file.src_uri}" if file.src_dir == config.docs_dir else file.src_uri
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
        for found in _FETCHED.finditer(path.read_text())
        if 'rel="canonical"' not in found[0]
    ]
    if fetched:
        raise PluginError("The site would load things from elsewhere:\n" + "\n".join(fetched))
    missing = [
        name
        for dotted, at in modules().items()
        for name in _public(dotted)
        if f'id="{name}"' not in (built / at).with_suffix(".html").read_text()
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

    visit(ast.parse((ROOT / (dotted.replace(".", "/") + ".py")).read_text()), dotted)
    return found
