"""Status of a run, read from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from btp.results.shapes import NAMED, TEXT, keys, mapped, number, optional, read_json

UNPRUNED = "unpruned"  # the arm that all others are compared with
REPORT = "report.html"
ANSWERED = ("config.yaml", "samples.parquet", "trace.parquet", "layers.json", REPORT)  # what a run leaves behind
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

    What somebody deleted, or a kill or a full disk cut off, is written again from the answers in the store.
    """
    return not _lacking(folder, read_state(folder))


def lacks_report_alone(folder: Path) -> bool:
    """True where a run is finished but for its report, which is missing or cut off: it can be drawn from the rest."""
    return _lacking(folder, read_state(folder)) == [REPORT]


def read_state(folder: Path) -> dict[str, Any]:
    """What run.json says; nothing where it is missing or broken."""
    try:
        return read_json(folder / "run.json", STATE, "")
    except ValueError:
        return {}


def _lacking(folder: Path, state: dict[str, Any]) -> list[str]:
    """Files that a finished run would have, and this one has not whole."""
    phases = state.get("phases")
    needed = ANSWERED if isinstance(phases, dict) and "samples" in phases else COSTED
    lost = [name for name in needed if not _is_whole(folder / name)]
    return lost if state.get("state") == "finished" else ["run.json", *lost]


def _is_whole(file: Path) -> bool:
    """False for a file that is not there or lacks its end."""
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            opened.seek(max(0, size - 64))
            end = opened.read()
    except OSError:
        return False
    ends = {".html": b"</html>", ".parquet": b"PAR1", ".json": b"}"}
    return bool(size) and end.rstrip().endswith(ends.get(file.suffix, b""))
