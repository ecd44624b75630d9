"""Runs the notebooks and keeps what they show: `python -m docs.making.notebooks [NAME ...]`.

They are committed with their outputs, so that code hosts and the site show them without running anything.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parents[2] / "notebooks"
CELL_S = 200  # longest that a cell may take where others use the machine too
KEPT = ("text/plain", "text/html", "image/png")


def executed(path: Path) -> NotebookNode:
    """The notebook after a run in a folder of its own, in which there are no runs yet.

    Raises:
        ValueError: a cell printed a warning or an error; a reader would see it.
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    book = nbformat.read(path, as_version=4)
    about = dict(book.metadata)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "outputs").mkdir()
        resources = {"metadata": {"path": folder}}
        options = {"timeout": CELL_S, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
        NotebookClient(book, resources=resources, **options).execute()
    book.metadata = NotebookNode(about)
    for cell in book.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise ValueError(f"{path.name} prints to stderr:\n{output.text}\nSilence it, or mend what it warns of.")
            if "data" in output:
                output.data = NotebookNode({kind: output.data[kind] for kind in KEPT if kind in output.data})
    return book


def main() -> None:
    """Run some notebooks, or all, and write them back."""
    parser = argparse.ArgumentParser(prog="python -m docs.making.notebooks", description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="file names; all if none is given")
    given = parser.parse_args()
    for path in [HERE / name for name in given.names] or sorted(HERE.glob("*.ipynb")):
        nbformat.write(executed(path), path)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
