"""Finds runs: in run folders, in a sweep's folder, or anywhere below a folder."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from btp.results.reader import ANEW, RunFolder, read_costs, read_run
from btp.results.shapes import read_json
from btp.results.status import STATE

_PASSED = ("wandb", "wandb-data", "figures", "overlays", "pictures")


@dataclass(frozen=True)
class LeftOut:
    """Something that was named or found, but is not in the comparison.

    Attributes:
        what: a folder, or the command of a run that never got one.
        why: the reason, and what to do about it.
        kind: "failed", "unfinished", "twice" (the same run is in) or "nothing" (no run was there).
        command: Command that makes it, where known.
    """

    what: str
    why: str
    kind: str = "failed"
    command: str = ""


def run_folders(folder: Path) -> list[Path]:
    """Folders at or below `folder` that hold a run.json, sorted; hidden ones and those inside a run are passed by."""
    return sorted(_walk(folder))


def find_runs(folders: Sequence[Path]) -> tuple[list[RunFolder], list[LeftOut]]:
    """Read every finished run at or below the folders, each once.

    A run that lies there twice (one identity) counts once, the latest; the others are left out by name. So are runs
    that failed, did not finish or cannot be read.

    Returns:
        Runs in the order of the folders, and what was left out.

    Raises:
        ValueError: one of the folders does not exist.
    """
    found: dict[Path, Path] = {}
    left: list[LeftOut] = []
    for folder in folders:
        if not folder.exists():
            raise ValueError(f"{folder} does not exist. Name folders that run.py wrote, or one above them.")
        inside = run_folders(folder) if folder.is_dir() else []
        if not inside and not (folder / "comparison.html").is_file():  # what this command wrote, met by a wildcard
            why = "holds no run.json, at no depth" if folder.is_dir() else "is a file, not a folder of runs"
            left.append(LeftOut(str(folder), why, "nothing"))
        for path in inside:
            found.setdefault(path.resolve(), path)
    runs: list[RunFolder] = []
    for path in found.values():
        run = _read(path)
        if isinstance(run, LeftOut):
            left.append(run)
        else:
            runs.append(run)
    kept, doubles = _each_once(runs)
    return kept, left + doubles


def nothing_found(folders: Sequence[Path], left: Sequence[LeftOut]) -> str:
    """The message where there is nothing to compare: what was looked at, and what became of it."""
    looked = ", ".join(str(folder) for folder in folders) or "no folder"
    said = "".join(f"\n  {x.what}: {x.why}" for x in left)
    return f"No finished run to compare. Looked at {looked}.{said}\nName folders that run.py wrote, or one above them."


def _walk(folder: Path) -> Iterator[Path]:
    if (folder / "run.json").is_file():
        yield folder
        return
    try:
        inside = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
    except PermissionError:
        return
    for path in inside:
        if path.name.startswith(".") or path.name in _PASSED:
            continue
        if not path.is_symlink() or (path / "run.json").is_file():  # following links could go round in circles
            yield from _walk(path)


def _read(path: Path) -> RunFolder | LeftOut:
    try:
        state = read_json(path / "run.json", STATE, ANEW)
    except ValueError as error:
        return LeftOut(str(path), str(error))
    command = str(state.get("command") or "")
    if state.get("state") == "failed":
        return LeftOut(str(path), f"failed: {state.get('error') or 'it does not say why'}", "failed", command)
    if state.get("state") != "finished":
        why = "not finished: it still runs, or was stopped; its command again goes on from there"
        return LeftOut(str(path), why, "unfinished", command)
    try:
        bare = not (path / "samples.parquet").exists() and (path / "cost.json").exists()
        return read_costs(path) if bare else read_run(path)
    except ValueError as error:
        return LeftOut(str(path), str(error), "failed", command)


def _each_once(runs: Sequence[RunFolder]) -> tuple[list[RunFolder], list[LeftOut]]:
    latest: dict[str, RunFolder] = {}
    for run in runs:
        mark = str(run.run.get("identity") or run.path.resolve())
        if mark not in latest or _started(run) > _started(latest[mark]):
            latest[mark] = run
    kept = [run for run in runs if any(run is other for other in latest.values())]
    doubles = [
        LeftOut(str(run.path), f"the same run as {latest[str(run.run['identity'])].path}, which is in", "twice")
        for run in runs
        if not any(run is other for other in kept)
    ]
    return kept, doubles


def _started(run: RunFolder) -> str:
    return str(run.run.get("started") or "")
