"""A tracker without a service: one table on disk, a row for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from btp.results.atomic import write_text
from btp.results.status import read_state
from btp.runner.sweeps.cells import Cell
from btp.runner.sweeps.outcomes import outcomes

FACTS = ("run", "identity", "model", "pruner", "task", "group", "command", "started", "seconds")


class CsvTracker:
    """Keeps the numbers that W&B's summary holds in a CSV file, which any number of runs may share.

    Args:
        logger: The logger group: `file`, the table; `group`, a word for its column.
    """

    names = ("csv",)

    def __init__(self, logger: Mapping[str, Any]) -> None:
        self.logger, self.file = logger, Path(logger["file"])

    def check(self) -> None:
        """Refuse a table that is none.

        Raises:
            ValueError: The file is there and holds no table of runs.
        """
        if self.file.is_dir() or (self.file.exists() and "identity" not in self._read().columns):
            raise ValueError(
                f"logger.file is {self.file}, which is no table of runs: it has no column identity. Name another file."
            )

    def is_logged(self, run: Path, identity: str) -> bool:
        """Whether the table has a row of the run."""
        table = self._read() if self.file.is_file() else pd.DataFrame()
        return "identity" in table and identity in set(table["identity"])

    def log_run(self, config: Mapping[str, Any], run: Path) -> None:
        """Put the run's row into the table, in place of an older one of the same identity."""
        state = read_state(run)
        names = {group: config[group]["name"] for group in ("model", "pruner", "task")}
        facts = {"run": str(run), "group": self.logger["group"] or "", **names}
        facts |= {key: state.get(key) for key in ("identity", "command", "started", "seconds")}
        row = {key: facts[key] for key in FACTS} | outcomes(run)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.file}.lock"):
            table = self._read() if self.file.exists() else pd.DataFrame({"identity": []})
            others = [other for other in table.to_dict("records") if other["identity"] != row["identity"]]
            whole = pd.DataFrame([*others, row])
            write_text(self.file, whole.to_csv(index=False))

    def log_sweep(self, sweep: Path, cells: Sequence[Cell]) -> None:
        """Nothing: the cells have their rows, and the sweep's folder has comparison.csv."""

    def log_training(self, config: Mapping[str, Any], folder: Path) -> None:
        """Nothing: the folder of the modules has curve.jsonl."""

    def _read(self) -> pd.DataFrame:
        try:
            return pd.read_csv(self.file, dtype={"identity": str})
        except (ValueError, UnicodeDecodeError):  # pandas' own errors are ValueErrors
            return pd.DataFrame()
