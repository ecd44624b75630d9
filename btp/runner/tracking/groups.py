"""W&B groups of sweeps: all cells in one group, known to the sweep's own W&B run. No torch, no wandb here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from btp.results.atomic import write_json
from btp.results.shapes import TEXT, keys, read_json
from btp.runner.identity import digest

NOTE = "logger.json"


def grouped(logger: Mapping[str, Any], sweep: Path) -> dict[str, Any]:
    """A cell's logger: its group is the sweep's folder name unless one is set. The sweep's folder notes it.

    Args:
        logger: Logger of the cell's config.
        sweep: the folder.
    """
    if "group" not in logger:
        return dict(logger)
    found = {**logger, "group": logger["group"] or sweep.resolve().name, "sweep": sweep_id(sweep)}
    sweep.mkdir(parents=True, exist_ok=True)
    write_json(sweep / NOTE, found)
    return found


def logger_of(sweep: Path) -> dict[str, Any] | None:
    """How the cells of a sweep are logged; None where they are not."""
    note = sweep / NOTE
    return (
        read_json(note, keys(name=TEXT), "Delete it, or give the sweep's own command again.") if note.exists() else None
    )


def sweep_id(sweep: Path) -> str:
    """The id of the sweep's own W&B run: of its folder's name, and of when and with which words it was begun."""
    note = sweep / "sweep.json"
    return digest(sweep.resolve().name, note.read_text(encoding="utf-8") if note.exists() else str(sweep.resolve()))
