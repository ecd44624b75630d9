"""Logs a run to W&B from its folder: config, numbers, tables with pictures, and what it used and made."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import wandb

from btp.results.atomic import write_json
from btp.runner.evaluation.answer_store import held
from btp.runner.sweeps.outcomes import method_arm, outcomes
from btp.runner.tracking.wandb_artifacts import log_result, settle, sources
from btp.runner.tracking.wandb_session import NONE, ONLINE, described, mode, opened, run_id

TEXTS = ("arm", "sample", "ability", "question", "reference", "prediction")
NUMBERS = ("score", "unpruned", "agreement", "tokens_avg")
ROWS = 10_000  # that W&B shows of a table


def track(config: Mapping[str, Any], run: Path) -> None:
    """Log a finished run, unless an earlier start did; nothing where the logger is none.

    The W&B run's id is the identity's, so that a second start of the same run is the same W&B run. What goes wrong here
    is said and does not touch the run: its next start tries again.

    Args:
        config: resolved.
        run: the run folder, with its report or its costs.
    """
    if mode(config["logger"]) == NONE or _logged(run):
        return
    with held(run / ".wandb.lock", "the W&B record of this run"):
        if not _logged(run):
            attempt(lambda: _log(config, run), run, "this run", config["debug"])


def attempt(log: Callable[[], None], folder: Path, what: str, debug: bool = False) -> None:
    """Log, or say why that did not work; the traceback goes to wandb-error.log."""
    try:
        log()
    except Exception as error:
        if debug:
            raise
        with suppress(OSError):  # the disk may be full
            (folder / "wandb-error.log").write_text(traceback.format_exc(), encoding="utf-8")
        reason = " ".join(str(error).split()) or type(error).__name__
        print(
            f"W&B: {what} could not be logged: {reason}. Its results are complete; {folder / 'wandb-error.log'} has "
            "more, the same command tries again, and logger=none does without.",
            file=sys.stderr,
        )


def _logged(run: Path) -> bool:
    """True where this run is in W&B, under the id that it would get now."""
    state = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return state.get("wandb", {}).get("id") == run_id(state["identity"])


def _log(config: Mapping[str, Any], run: Path) -> None:
    logger, state = config["logger"], json.loads((run / "run.json").read_text(encoding="utf-8"))
    budget, found = budget_tag(config), sources(config, run, state)
    names = [config[group]["name"] for group in ("model", "pruner", "task")]
    facts = {
        "name": run.name,
        "group": logger["group"] or f"{names[0]}/{names[2]}",
        "job_type": names[1],
        "tags": _tags([*names, budget, f"schedule={config['schedule']['kind']}", *logger["tags"]]),
        "config": {
            **config,
            "identity": state["identity"],
            "budget_tag": budget,
            "hardware": state["hardware"],
            "versions": state["versions"],
            "artifacts": {source.kind: source.describe() for source in found},
        },
    }
    with opened(logger, run, state["identity"], **facts) as tracked:
        numbers = outcomes(run)
        arms = tuple(f"{arm['arm']}/" for arm in state["arms"])
        short = {key: value for key, value in numbers.items() if not key.removeprefix("cost/").startswith(arms)}
        tracked.log(short)
        tracked.summary.update(numbers)
        if (run / "samples.parquet").exists():
            _log_samples(tracked, run, state)
        figures = {f"figures/{p.stem}": wandb.Image(str(p)) for p in sorted((run / "figures").glob("*.png"))}
        if figures:
            tracked.log(figures)
        if (run / "report.html").exists():
            tracked.log({"report": wandb.Html((run / "report.html").read_text(encoding="utf-8"), inject=False)})
        for source in found:
            settle(tracked, source)
        log_result(tracked, run, state)
        where = described(tracked)
    if where["mode"] == ONLINE:
        print(f"W&B: {where['url']}", flush=True)
    write_json(run / "run.json", json.loads((run / "run.json").read_text(encoding="utf-8")) | {"wandb": where})


def _log_samples(tracked: wandb.Run, run: Path, state: Mapping[str, Any]) -> None:
    frame = pd.read_parquet(run / "samples.parquet")
    tracked.log({"samples": sample_table(frame, run)})
    means = frame.groupby(["arm", "ability"])["score"].mean().reset_index()
    tracked.log({"accuracy_by_ability": wandb.Table(dataframe=means)})
    mine = means[means["arm"] == method_arm(state)]
    tracked.log({"by_ability": wandb.Table(dataframe=mine[["ability", "score"]])})
    overlays = [wandb.Image(str(p), caption=p.stem) for p in sorted((run / "overlays").glob("*.png"))]
    if overlays:
        tracked.log({"overlays": overlays})


def sample_table(frame: pd.DataFrame, run: Path) -> wandb.Table:
    """One row per sample and arm, those that the report shows first, with their picture and the kept tokens.

    Beyond ROWS rows the others are left to samples.parquet, which the result artifact holds.
    """
    shown = {path.stem for path in (run / "pictures").glob("*.png")}
    order = (~frame["sample"].isin(shown)).sort_values(kind="stable").index
    frame = frame.loc[order].head(ROWS)
    pictures = {name: [_image(run / kind / f"{name}.png") for kind in ("pictures", "overlays")] for name in shown}
    texts = [[str(value) for value in frame[key]] for key in TEXTS]
    numbers = [frame[key].tolist() for key in NUMBERS]
    rows = zip(*texts, *numbers, strict=True)
    data = [[*row, *pictures.get(row[1], (None, None))] for row in rows]
    return wandb.Table(columns=[*TEXTS, *NUMBERS, "picture", "kept"], data=data)


def _image(path: Path) -> wandb.Image | None:
    return wandb.Image(str(path)) if path.exists() else None


def _tags(words: list[str]) -> list[str]:
    """W&B takes tags of up to 64 characters, each once."""
    return list(dict.fromkeys(word[:64] for word in words))


def budget_tag(config: Mapping[str, Any]) -> str:
    """The budget as a tag that sorts and groups."""
    tokens, share, slots = (config["budget"].get(key) for key in ("tokens", "share", "slots"))
    if slots is not None:
        return f"slots={slots:g}"
    if tokens is not None:
        return f"tokens={tokens:g}"
    return f"share={share:g}" if share is not None else "budget=schedule"
