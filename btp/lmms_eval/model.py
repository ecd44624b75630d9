"""The pruned model as lmms-eval's command line sees it: `--model btp --model_args path=...,pruner=btp,budget=0.22`.

Config, schedule and engine are those of run.py. Answers go straight to lmms-eval, which has a cache of its own; what
compares arms, resumes and reports is `python run.py task=lmms_eval`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.model import lmms  # type: ignore[import-not-found]
from tqdm import tqdm

from btp.engine.attach import attach
from btp.lmms_eval.arguments import composed
from btp.models.loading.checkpoint import find_checkpoint
from btp.models.loading.checks import check_library
from btp.models.loading.load import load
from btp.runner.arms import Arm
from btp.runner.devices import Machine
from btp.runner.evaluation.data import by_length, visual_tokens
from btp.runner.evaluation.visual_totals import visual_totals
from btp.runner.harness.document import Document
from btp.runner.harness.respond import Prompts, respond
from btp.runner.identity import checkpoint
from btp.runner.lmms_eval.judge import wrapped
from btp.runner.lmms_eval.requests import as_documents, key_of, refuse_rounds
from btp.runner.model_yamls import check_family
from btp.runner.plan_arms import plan_arms


class Pruned(lmms):
    """A model and a method, for tasks that show pictures and a text, and for likelihoods.

    Args:
        path: Path of a checkpoint; None takes the one of the model group.
        pruner: name of a pruner, or several joined by a plus; none leaves the model as it is.
        budget: visual tokens averaged over the decoder layers: a share up to 1, a number above.
        batch_size: samples a forward.
        device: cpu, cuda or cuda:N.
        max_batch_size: lmms-eval passes it; there is no search for a batch size here.
        more: any other key or group of the config, such as model=llava15, stages=2 or model.dtype=float32.

    Raises:
        ValueError: as a run would; or lmms-eval was started as several processes.
    """

    is_simple = True

    def __init__(
        self,
        path: str | None = None,
        pruner: str = "btp",
        budget: float | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        **more: Any,
    ) -> None:
        super().__init__()
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise ValueError(
                "lmms-eval was started as several processes, and its model btp is one. Start it alone, or let run.py "
                "share the samples: python run.py task=lmms_eval tasks=[...] trainer.devices=N."
            )
        if not str(batch_size).isdigit():
            raise ValueError(f"--batch_size is {batch_size}. Set it to a number; no size is searched for.")
        check_library()
        self.config = composed(path, pruner, budget, int(batch_size), device, more)
        folder = find_checkpoint(self.config["model"])
        check_family(self.config["model"], folder)
        self._checkpoint = checkpoint(folder, [self.config["model"]["config"]])
        store = Path(self.config["output"]) / ".store"
        self._place = (store, store / "harness")
        self._place[1].mkdir(parents=True, exist_ok=True)
        self._machine = Machine(self.config["trainer"], self._place[1])
        self._loaded = load(self.config["model"], folder, self._machine.device)
        for note in self._loaded.notes:
            print(f"btp: {note}")
        self._arm: Arm | None = None

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        return self._loaded.host.device

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """One text per request."""
        found = self._respond(requests)
        return [found[key_of(request)][0] for request in requests]

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """Mean negative log-likelihood of a token, and whether greedy decoding says the same, per request."""
        found = self._respond(requests)
        return [wrapped(found[key_of(request)][request.idx]) for request in requests]

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        """Refused: a pruned prompt has one round."""
        refuse_rounds(key_of(requests[0])[0], "generate_until_multi_round")
        raise AssertionError

    def _respond(self, requests: Sequence[Any]) -> dict[tuple[str, int], list[Any]]:
        documents = as_documents(requests, self.task_dict)
        host, processor = self._loaded.host, self._loaded.processor
        prompts, size = Prompts(processor), self._machine.batch.asked
        pictured = visual_tokens(documents, processor)
        arm = self._planned(documents, pictured)
        order = by_length(documents, processor, pictured)
        found: dict[tuple[str, int], list[Any]] = {}
        kept: list[float] = []
        with torch.inference_mode(), attach(host, arm.build(), arm.schedule) as trace:
            for at in tqdm(range(0, len(order), size), desc=f"btp: {arm.name}"):
                mine = [documents[i] for i in order[at : at + size]]
                batch = prompts(mine).to(host.device, host.dtype)
                said = respond(host, processor.tokenizer, batch.inputs, batch.samples, batch.targets)  # type: ignore[arg-type]
                found |= {(d.task, d.number): r for d, r in zip(mine, said.responses, strict=True)}
                kept += trace[0].tokens_avg
                trace.calls.clear()
        print(
            f"btp: {arm.name} answered {len(kept)} documents with {sum(kept) / len(kept):.2f} visual tokens on average"
        )
        return found

    def _planned(self, documents: Sequence[Document], pictured: Sequence[int]) -> Arm:
        """The method's arm, solved for each document alone; the unpruned one where there is no method."""
        if self._arm is None:
            host = self._loaded.host
            totals, pictures = visual_totals(documents, pictured, host, Prompts(self._loaded.processor))
            place = (self._checkpoint, *self._place, self._machine)
            arms = plan_arms(self.config, self._loaded, *place, totals, pictures, unequal=True)
            self._arm = next((arm for arm in arms if arm.role == "method"), arms[0])
            stages = ", ".join(f"{s['site']} keeps {s['keep']}" for s in self._arm.describe()["schedule"])
            total = max(1, sum(totals)) / max(1, sum(map(bool, totals)))
            print(f"btp: {self._arm.name}, {self._arm.reached:.2f} of {total:g} visual tokens: {stages or 'no stage'}")
        return self._arm


class PrunedChat(Pruned):
    """The same for tasks that build chat turns."""

    is_simple = False
