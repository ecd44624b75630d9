"""`btp.evaluate`: the main job on a model that is loaded already: answers, controls, costs and a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from btp.api.hosts import architecture, device_words, host_of, loaded_of, model_words
from btp.api.plan import Pictures, pictures_words, words_of
from btp.cli.check_config import check_config
from btp.cli.composed import composed, word
from btp.models.loading.greedy import FORWARD, make_greedy
from btp.report.tables.run_table import run_table
from btp.results.reader import read_run
from btp.runner.datasets import with_contents
from btp.runner.identity import digest
from btp.runner.run import Run
from btp.runner.run_identity import Named, run_identity

ENDS = 4  # values at either end of a tensor that stand for it


@dataclass(frozen=True)
class Evaluation:
    """A finished run.

    Attributes:
        folder: Folder of the run: report.html, samples.parquet, cost.json and the rest.
    """

    folder: Path

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    def table(self) -> pd.DataFrame:
        """A row per arm under the report's headings; shares in [0, 1], numbers unrounded."""
        table = run_table(read_run(self.folder))
        shown = table.frame[[column.key for column in table.columns if column.key in table.frame]]
        named = shown.set_axis([column.title for column in table.columns if column.key in table.frame], axis=1)
        return named.set_index(named.columns[0])

    def samples(self) -> pd.DataFrame:
        """A row per sample and arm: question, reference, prediction, score, agreement, kl."""
        return read_run(self.folder).samples


def evaluate(
    model: Any,
    processor: Any = None,
    method: str | Sequence[str] = "btp",
    schedule: str | None = None,
    *,
    task: str = "pocketvqa",
    path: str | Path | None = None,
    limit: int | None = None,
    budget: float | None = None,
    calibration: Pictures | None = None,
    output: str | Path = "outputs",
    overrides: Iterable[str] = (),
    **settings: Any,
) -> Evaluation:
    """Run a task with a method, its controls and the unpruned model, as `python run.py` does.

    The model is put back as it was; only its answers are greedy meanwhile. A run that is finished is recognised by
    model, config and code, and not computed again.

    Args:
        model, method, schedule, budget, calibration, settings: as of `attach`; a method that calibrates takes the
            calibration set of conf/config.yaml where no pictures are given.
        processor: makes inputs; None takes that of the checkpoint which the model was loaded from.
        task: name of a yaml in conf/task.
        path: Path of the task's files, task.path.
        limit: samples; None takes all of the task.
        output: Folder that run folders go to.
        overrides: further words of the command line, such as "cost.enabled=false" or "trainer.batch=4".

    Raises:
        ValueError: as the command line says.
    """
    host = host_of(model)
    loaded = loaded_of(host, processor)
    chosen, name = model_words(host)
    words = [*chosen, *device_words(host), word("task", task), word("limit", limit), word("output", str(output))]
    words += [] if path is None else [word("task.path", str(path))]
    words += words_of(method, schedule, budget, settings, overrides)
    words += [] if any(one.startswith("logger=") for one in words) else ["logger=none"]
    with pictures_words(calibration) as mine, _as_evaluated(host.model, loaded.processor.tokenizer):
        config = composed([*words, *mine], "btp.evaluate: ")
        config["model"] = {**config["model"], **_described(host), "name": name}
        check_config(config)
        run = Run(config, named=_named(config, host.model), loaded=loaded)
        run.go(table=False)
    return Evaluation(run.folder.path)


def _described(host: Any) -> dict[str, Any]:
    """What of the model group a model in memory says itself."""
    cls = type(host)
    about = {"path": None, "hub": None, "revision": None, "weights": "pretrained", "config": architecture(host)}
    attention = getattr(host.model.config, "_attn_implementation", None)
    dtype = str(host.dtype).removeprefix("torch.")
    return about | {"adapter": f"{cls.__module__}.{cls.__qualname__}", "dtype": dtype, "attention": attention}


def _named(config: dict[str, Any], model: nn.Module) -> Named:
    config = with_contents(json.loads(json.dumps(config)))
    held = digest(config["model"]["config"], _weights(model))
    return Named(config, None, held, run_identity(config, held))


def _weights(model: nn.Module) -> str:
    """A hash of a model's weights: names, shapes, and both ends of every tensor."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if not tensor.is_meta:
            ends = torch.cat([tensor.flatten()[:ENDS], tensor.flatten()[-ENDS:]])
            found.update(repr(ends.cpu().tolist()).encode())
    return found.hexdigest()


@contextmanager
def _as_evaluated(model: Any, tokenizer: Any) -> Iterator[None]:
    """Greedy answers and padding on the left meanwhile, whatever the caller has set."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    before = [(c, {key: getattr(c, key) for key in FORWARD if hasattr(c, key)}) for c in configs]
    generation, side, pad = model.generation_config, tokenizer.padding_side, tokenizer.pad_token
    special = {key: getattr(generation, key) for key in ("bos_token_id", "eos_token_id", "decoder_start_token_id")}
    tokenizer.padding_side = "left"
    if pad is None:
        tokenizer.pad_token = tokenizer.eos_token
    make_greedy(model, special, tokenizer.pad_token_id)
    try:
        yield
    finally:
        model.generation_config, tokenizer.padding_side = generation, side
        tokenizer.pad_token = pad
        for config, values in before:
            for key, value in values.items():
                setattr(config, key, value)
