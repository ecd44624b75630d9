"""Notebooks as pages of the site: prose, code and what the cells showed, as they are committed."""

from __future__ import annotations

from pathlib import Path

from nbconvert import MarkdownExporter

HERE = Path(__file__).resolve().parents[2] / "notebooks"


def notebooks() -> list[Path]:
    """All of them, in order."""
    return sorted(HERE.glob("*.ipynb"))


def written(path: Path) -> dict[str, str | bytes]:
    """A notebook's page in Markdown and the pictures in it, by their places among the site's sources."""
    options = {"unique_key": path.stem, "output_files_dir": path.stem}
    text, more = MarkdownExporter().from_filename(str(path), resources=options)
    return {f"notebooks/{path.stem}.md": text} | {f"notebooks/{at}": shown for at, shown in more["outputs"].items()}
