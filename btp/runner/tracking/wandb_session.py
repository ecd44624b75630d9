"""W&B runs with bounded waits, and offline where no server answers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import wandb

PROBE_S = 5
NONE, OFFLINE, ONLINE = "none", "offline", "online"


def mode(logger: Mapping[str, Any]) -> str:
    """Whether and how to log: none | offline | online. W&B's own switch, WANDB_MODE, goes before the config."""
    if logger["name"] == NONE:
        return NONE
    switched = {"disabled": NONE, "dryrun": OFFLINE, "offline": OFFLINE}.get(os.environ.get("WANDB_MODE", ""))
    return switched or logger["mode"]


def check_login(logger: Mapping[str, Any]) -> None:
    """Refuse an online logger without a login, before anything is computed.

    Raises:
        ValueError: says how to log in, or how to do without.
    """
    if mode(logger) == ONLINE and not logged_in():
        raise ValueError(
            "logger=wandb logs online, but no login is found. Run `wandb login` or set WANDB_API_KEY; "
            "logger=offline keeps the log on disk for `wandb sync`, logger=none does without."
        )


def logged_in() -> bool:
    """True where W&B's settings or the user's netrc hold a key; nothing is asked of a server."""
    settings = wandb.setup().settings
    known = settings.api_key or settings.identity_token_file
    return bool(known or requests.utils.get_netrc_auth(settings.base_url))


def run_id(own: str) -> str:
    """The id that a W&B run gets: `own`, or the one that a W&B sweep's agent gave to this process."""
    return os.environ.get("WANDB_RUN_ID", own) if os.environ.get("WANDB_SWEEP_ID") else own


@contextmanager
def opened(logger: Mapping[str, Any], folder: Path, own: str, **facts: Any) -> Iterator[wandb.Run]:
    """A W&B run from its start to its end.

    An id that comes again is the same W&B run: online it is continued, offline an earlier record that was not sent
    gives way. What is logged waits below `folder`, artifacts' bytes included, until a server has it.

    Args:
        logger: Logger of the config; its mode is offline or online.
        folder: gets `wandb/` and `wandb-data/`.
        own: the run's id.
        facts: Facts of the run, as wandb.init takes them.
    """
    with _data_below(folder):
        run = _start(logger, folder, id=run_id(own), **facts)
        code = 1
        try:
            yield run
            code = 0
        finally:
            _finish(run, code)


def described(run: wandb.Run) -> dict[str, Any]:
    """Where a W&B run is found: id, mode, project, entity, group, its URL, and its record on disk."""
    offline = run.offline
    facts = {"id": run.id, "mode": OFFLINE if offline else ONLINE, "project": run.project, "group": run.group}
    return facts | {
        "entity": None if offline else run.entity,
        "url": None if offline else run.url,
        "record": str(Path(run.dir).parent),
    }


def _start(logger: Mapping[str, Any], folder: Path, **facts: Any) -> wandb.Run:
    facts |= {"project": logger["project"], "entity": logger["entity"], "dir": str(folder)}
    if mode(logger) == ONLINE:
        reason = silence()
        if reason is None:
            try:
                return wandb.init(mode=ONLINE, resume="allow", settings=_settings(logger), **facts)
            except wandb.Error as error:
                reason = str(error).splitlines()[0]
        print(f"W&B: logged to disk, since the server does not take it: {reason}", flush=True)
        print(f"W&B: to send it later: wandb sync {folder}/wandb/offline-run-*-{facts['id']}", flush=True)
    _drop_unsent(folder, facts["id"])
    return wandb.init(mode=OFFLINE, settings=_settings(logger), **facts)


def _finish(run: wandb.Run, code: int) -> None:
    record = Path(run.dir).parent
    try:
        run.finish(exit_code=code)
    except TimeoutError:
        print(f"W&B: not all was sent in time (logger.upload_s). To send the rest: wandb sync {record}", flush=True)


def _settings(logger: Mapping[str, Any]) -> wandb.Settings:
    waits = {"init_timeout": logger["wait_s"], "finish_timeout": logger["upload_s"], "finish_timeout_raises": True}
    known = {key: value for key, value in waits.items() if key in wandb.Settings.model_fields}  # older ones wait
    return wandb.Settings(silent=True, console="off", **known)


def silence() -> str | None:
    """Why W&B's server cannot be reached; None where it can. Any answer counts, and so does a doubtful certificate."""
    address = wandb.setup().settings.base_url
    try:
        requests.head(address, timeout=PROBE_S)
    except requests.exceptions.SSLError:
        return None
    except requests.RequestException as error:
        return f"{address} cannot be reached ({type(error).__name__})"
    return None


def _drop_unsent(folder: Path, ident: str) -> None:
    """Remove records of the same run that no server has: the one that is made now holds all of it."""
    for record in folder.glob(f"wandb/*run-*-{ident}"):
        if not (record / f"run-{ident}.wandb.synced").exists():
            shutil.rmtree(record, ignore_errors=True)


@contextmanager
def _data_below(folder: Path) -> Iterator[None]:
    """Let artifacts wait beside the run, unless the user has another place for them."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.resolve() / "wandb-data")
    Path(os.environ["WANDB_DATA_DIR"]).mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
