"""Writer of run folders."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from PIL.Image import Image

from btp.results.atomic import clear_parts, whole, write_json, write_parquet, write_text
from btp.results.disk import make_folder
from btp.results.shipped import versions
from btp.results.status import UNPRUNED, is_finished
from btp.results.symlinks import refuse_links
from btp.tasks.files.local import file_name
from btp.tasks.sample import Sample
from btp.tasks.scoring import normalise

PACKAGES = ("torch", "transformers", "lightning", "hydra-core", "omegaconf", "wandb", "optuna")

Agrees = Callable[[Mapping[str, Any], Mapping[str, Any]], bool | float]


def same_text(row: Mapping[str, Any], unpruned: Mapping[str, Any]) -> bool:
    """Whether two answers say the same."""
    return normalise(row["prediction"]) == normalise(unpruned["prediction"])


class RunFolder:
    """One run on disk. `run.json` says how far it came; everything is written whole or not at all."""

    def __init__(self, path: Path):
        self.path, self.fresh = path, False
        self.state: dict[str, Any] = {}

    @property
    def finished(self) -> bool:
        """As `is_finished` says."""
        return is_finished(self.path)

    def check(self) -> None:
        """See that what is written stays in the folder.

        Raises:
            ValueError: it is a symbolic link, or one stands in it.
        """
        refuse_links(self.path)

    def begin(self, config: Mapping[str, Any], identity: str, hardware: str) -> None:
        """Write the config and mark the run as running."""
        self.fresh = not (self.path / "run.json").exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        make_folder(self.path)
        clear_parts(self.path)
        write_text(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
        self.state = {
            "state": "running",
            "identity": identity,
            "name": self.path.name,
            "command": config["command"],
            "pid": os.getpid(),
            "versions": versions(PACKAGES) | {"python": platform.python_version()},
            "hardware": hardware,
            "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "phases": {},
        }
        self.update()

    def update(self, **facts: Any) -> None:
        """Add facts to run.json."""
        self.state |= facts
        write_json(self.path / "run.json", self.state)

    def fail(self, message: str, details: str, rank: int = 0) -> Path:
        """Say in run.json why the run ended, and with all details in the log that is returned."""
        log = self.path / f"error{f'-{rank}' if rank else ''}.log"
        with suppress(OSError):  # a full disk, or the leading process has withdrawn the run meanwhile
            if self.state and self.state["state"] != "finished":  # what came behind its end does not undo it
                self.update(state="failed", error=message)
            write_text(log, details)
        return log

    def withdraw(self) -> None:
        """Leave nothing of a run that was refused; what an earlier start left stays."""
        if self.fresh:
            shutil.rmtree(self.path, ignore_errors=True)
            self.state = {}

    def write_samples(
        self,
        samples: Sequence[Sample],
        rows: Mapping[str, Mapping[str, Mapping[str, Any]]],
        scores: Mapping[str, Sequence[float]],
        agrees: Agrees = same_text,
    ) -> pd.DataFrame:
        """Join answers and scores with their samples, and write samples.parquet, trace.parquet and layers.json.

        Args:
            samples: Samples of the run.
            rows: Arm -> sample id -> row of the answers' store.
            scores: Arm -> score of each sample, in [0, 1].
            agrees: How far a row's answer is the unpruned row's.

        Returns:
            One row per arm and sample.
        """
        table, trace, layers = [], [], {}
        for arm, mine in rows.items():
            for sample, score in zip(samples, scores[arm], strict=True):
                row, unpruned = mine[sample.id], rows[UNPRUNED][sample.id]
                table.append(
                    {
                        "arm": arm,
                        "sample": sample.id,
                        "ability": sample.ability,
                        "question": sample.question,
                        "reference": sample.reference,
                        "prediction": row["prediction"],
                        "score": score,
                        "unpruned": unpruned["prediction"],
                        "agreement": agrees(row, unpruned),
                        "kl": row["kl"],
                        "tokens_avg": sum(row["visual"]) / len(row["visual"]),
                        "total": row["total"],
                        **{key: row[key] for key in ("slots", "slots_avg", "evicted", "kl_steps") if key in row},
                    }
                )
                for order, stage in enumerate(row["stages"]):
                    trace.append({"arm": arm, "sample": sample.id, "order": order, **stage})
            layers[arm] = {
                key: [sum(layer) / len(mine) for layer in zip(*(r[key] for r in mine.values()), strict=True)]
                for key in ("visual", "tokens")
            }
        frame = pd.DataFrame(table)
        write_parquet(self.path / "samples.parquet", frame)
        columns = pd.Index(["arm", "sample", "site", "order", "before", "after", "kept", "merged"])
        write_parquet(self.path / "trace.parquet", pd.DataFrame(trace, columns=columns))
        write_json(self.path / "layers.json", layers)
        self._write_regions(samples)
        self._write_steps(rows)
        self._write_events(rows)
        return frame

    def write_words(self, words: Mapping[str, Mapping[str, Any]]) -> None:
        """Write words.json: of some prompts of a text model, what some layers hold of each piece; nothing without."""
        if words:
            write_json(self.path / "words.json", words)

    def _write_steps(self, rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """Write steps.parquet: what stages of phase both did in each forward; nothing where there is none."""
        steps = [
            {"arm": arm, "sample": sample, **step}
            for arm, mine in rows.items()
            for sample, row in mine.items()
            for step in row.get("steps", ())
        ]
        if steps:
            write_parquet(self.path / "steps.parquet", pd.DataFrame(steps))

    def _write_events(self, rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """Write events.parquet: the events that methods found in videos; nothing where there is none."""
        found = [
            {"arm": arm, "sample": sample, "event": number, **event}
            for arm, mine in rows.items()
            for sample, row in mine.items()
            for number, event in enumerate(row.get("events", ()))
        ]
        if found:
            write_parquet(self.path / "events.parquet", pd.DataFrame(found))

    def _write_regions(self, samples: Sequence[Sample]) -> None:
        """Write regions.parquet: the labelled regions of every sample's first picture, where the task knows them."""
        rows = []
        for sample in samples:
            labels = sample.labels or ("",) * len(sample.boxes)
            boxes = dict.fromkeys(zip(labels, sample.boxes, strict=True))
            known = {box for _, box in boxes}
            boxes |= dict.fromkeys(("", box) for box in sample.targets if box not in known)
            for label, box in boxes:
                corners = dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))
                rows.append({"sample": sample.id, "label": label, "target": box in sample.targets, **corners})
        if rows:
            write_parquet(self.path / "regions.parquet", pd.DataFrame(rows))

    def write_marks(self, marks: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Write marks.parquet: the boxes in the answers of each arm; nothing where no answer has any."""
        rows = [{"arm": arm, **mark} for arm, mine in marks.items() for mark in mine]
        if rows:
            write_parquet(self.path / "marks.parquet", pd.DataFrame(rows))

    def write_pictures(
        self, samples: Sequence[Sample], shown: Mapping[str, tuple[Image, Mapping[str, Any]] | None]
    ) -> None:
        """Keep the pictures of the samples that the report shows, with their boxes.

        Args:
            shown: of a sample, the picture, and where its visual tokens lie on it, as
                `btp.models.token_layout.describe_views` says; None where there is nothing to show.
        """
        folder = self.path / "pictures"
        make_folder(folder)
        index = {}
        for sample in samples:
            if (mine := shown[sample.id]) is not None:
                picture, places = mine
                with whole(folder / f"{file_name(sample.id)}.png") as file:
                    picture.save(file, "PNG")
                index[sample.id] = {"boxes": sample.boxes, "labels": sample.labels, **places}
        write_json(folder / "index.json", index)


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """The first samples of every ability in turn, up to `count`."""
    by_ability: dict[str, list[Sample]] = {}
    for sample in samples:
        by_ability.setdefault(sample.ability, []).append(sample)
    turns = max((len(v) for v in by_ability.values()), default=0)
    picked = [group[i] for i in range(turns) for group in by_ability.values() if i < len(group)]
    return picked[:count]
