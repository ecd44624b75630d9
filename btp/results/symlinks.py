"""Refuses symbolic links in run folders, so that what is written into one stays in it."""

from __future__ import annotations

from pathlib import Path

WRITTEN = ("figures", "overlays", "pictures")  # folders of a run that get files of their own


def refuse_links(folder: Path) -> None:
    """Refuse to write into a run folder that is a symbolic link, or in which one stands where a file would go.

    Raises:
        ValueError: names the link and where it leads.
    """
    inside = [
        path for part in (folder, *(folder / name for name in WRITTEN)) if part.is_dir() for path in part.iterdir()
    ]
    for path in (folder, *inside):
        if path.is_symlink():
            raise ValueError(
                f"{path} is a symbolic link to {path.readlink()}, and a run is not written through one. Name the "
                "folder itself, or replace the link by what it leads to."
            )
