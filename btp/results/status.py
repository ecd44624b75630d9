"""How far a run came, as its folder tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from btp.results.shapes import NAMED, TEXT, keys, mapped, number, optional, read_json

UNPRUNED = "unpruned"  # the arm that all others are compared with
ANSWERED = ("config.yaml", "samples.parquet", "trace.parquet", "layers.json", "report.html")  # what a run leaves behind
COSTED = ("config.yaml", "cost.json")  # without weights
# run.json of a run that may not have come far
STATE = keys(
    state=optional(TEXT),
    command=optional(TEXT),
    error=optional(TEXT),
    phases=optional(mapped(number(0))),
    wandb=optional(NAMED),
)


def is_finished(folder: Path) -> bool:
    """True where an earlier start brought the run in this folder to its end and all that a reader needs is there.

    What somebody deleted is written again from the answers in the store.
    """
    state = read_state(folder)
    needed = ANSWERED if "samples" in (state.get("phases") or {}) else COSTED
    return state.get("state") == "finished" and all((folder / name).exists() for name in needed)


def read_state(folder: Path) -> dict[str, Any]:
    """What run.json says; nothing where it is missing or broken."""
    try:
        return read_json(folder / "run.json", STATE, "")
    except ValueError:
        return {}
