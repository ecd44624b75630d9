"""Reference pass of the unpruned model over the calibration set, which searches compare pruned runs with.

The pictures pass the vision tower once. Later forwards are given what the projector made of them, where the family
takes that, and the pruner is shown the signals that were seen then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor

from btp.core.host import Host
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.site import Site
from btp.engine.attach import attach
from btp.engine.hooks.arguments import Binding
from btp.models.loading.load import Loaded
from btp.runner.datasets import make_dataset
from btp.runner.devices import Machine
from btp.runner.evaluation.batch_size import BatchSize, Pass
from btp.runner.evaluation.data import Batch, Batches, by_length
from btp.runner.evaluation.model_inputs import model_inputs

Module = TypeVar("Module", bound=Pass)
FEATURES = "mm_encoder_outputs"  # argument of a model's forward that takes what the projector made of the pictures


@dataclass
class Kept:
    """One batch of prompts, and what the unpruned model made of it.

    Attributes:
        inputs: Inputs of a forward that gives the same again, without the vision tower where the family allows it.
        hidden: [B, D] state of the last prompt token behind the final norm.
        logprobs: [B, V] log-probabilities of the first answer token, float32.
        signals: what the watched pruner declared.
        coord: [B, N, 3] of the visual tokens; empty where no pruner watched.
    """

    inputs: dict[str, Any]
    hidden: Tensor
    logprobs: Tensor
    signals: dict[Signal, Tensor] = field(default_factory=dict)
    coord: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 3, dtype=torch.long))


class Watch(Pruner):
    """Pruner that keeps all tokens and records what another pruner would have been shown.

    Args:
        pruner: says what to look at.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner
        self.signals: dict[Signal, Tensor] = {}
        self.coord = torch.zeros(0, 0, 3, dtype=torch.long)

    @property
    def name(self) -> str:
        """The other's, for messages."""
        return self.pruner.name

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """The other's."""
        return self.pruner.needs(stage)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """All of them."""
        self.signals, self.coord = dict(signals), tokens.coord
        every = torch.arange(tokens.valid.shape[1], device=tokens.valid.device).expand_as(tokens.valid)
        return Selection(every.masked_fill(~tokens.valid, -1))


class Replay(Pruner):
    """Pruner that replays recorded signals to another pruner.

    Args:
        pruner: decides.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner, self.adaptive, self.signals = pruner, pruner.adaptive, Signals()

    @property
    def name(self) -> str:
        """The other's, for messages."""
        return self.pruner.name

    def check(self, schedule: Schedule) -> None:
        """The other's."""
        self.pruner.check(schedule)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Selection of the other pruner, from recorded signals."""
        return self.pruner.select(tokens, self.signals, stage)


class Reference(Pass):
    """Runs the unpruned model and keeps its last states.

    Args:
        loaded: model and processor.
        batches: Batches of the calibration set.
        size: Size of the batches.
        watched: a pruner whose signals at `llm.input` are kept; None keeps none.
    """

    def __init__(self, loaded: Loaded, batches: Batches, size: BatchSize, watched: Pruner | None = None) -> None:
        super().__init__(batches, size)
        self.loaded, self.host = loaded, loaded.host
        self.watch = None if watched is None else Watch(watched)
        self.kept: list[Kept] = []

    def step(self, batch: Batch) -> None:
        """One prefill."""
        self.kept.append(reference(self.host, lambda: model_inputs(self.loaded, batch), self.watch))


def reference(
    host: Host, inputs: Mapping[str, Any] | Callable[[], Mapping[str, Any]], watch: Watch | None = None
) -> Kept:
    """Run the unpruned model on one batch.

    Args:
        inputs: Inputs of a forward, on the model's device, padded on the left; or what makes them, where that encodes
            videos, which the watch would not see otherwise.
        watch: sees signals on the way; None looks at nothing.
    """
    schedule = Schedule() if watch is None else Schedule((Stage(Site.parse("llm.input"), 1.0),))
    with attach(host, watch, schedule):
        inputs = inputs() if callable(inputs) else inputs
        hidden, out = forward(host, inputs)
    kept = Kept(ready(host, inputs, out), hidden, out.logits[:, -1].float().log_softmax(-1))
    if watch is not None:
        kept.signals, kept.coord = watch.signals, watch.coord
    return kept


def forward(host: Host, inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
    """One prefill without a cache: [B, D] state of the last token behind the final norm, and the model's output.

    Raises:
        ValueError: the decoder has no final norm.
    """
    if host.norm is None:
        raise ValueError(
            f"{type(host.decoder).__name__} has no final norm, behind which a search looks at the last token. "
            "Use pruner.strategy=given."
        )
    seen: list[Tensor] = []
    hook = host.norm.register_forward_hook(lambda module, args, output: seen.append(output[:, -1]))
    short = {"logits_to_keep": 1} if "logits_to_keep" in Binding(host.model) else {}
    try:
        out = host.model(**inputs, use_cache=False, **short)
    finally:
        hook.remove()
    return seen[-1], out


def ready(host: Host, inputs: Mapping[str, Any], out: Any) -> dict[str, Any]:
    """Inputs with what the projector made of the pictures in their place; the same inputs where that is not possible.

    Args:
        out: what the model returned for these inputs.
    """
    features = getattr(out, "image_hidden_states", None)
    if not isinstance(features, Tensor) or inputs.get("pixel_values") is None or FEATURES not in Binding(host.model):
        return dict(inputs)
    rest = {k: v for k, v in inputs.items() if k != "pixel_values"}
    rest[FEATURES] = {"image": SimpleNamespace(pooler_output=_by_picture(features, inputs["pixel_values"]))}
    before, after = host.layout(inputs), host.layout(rest)
    same = all(torch.equal(getattr(before, k), getattr(after, k)) for k in ("visual", "coord", "image"))
    return rest if same else dict(inputs)


def _by_picture(features: Tensor, pixels: Tensor) -> list[Tensor]:
    """[P * N, D] features of all pictures as P entries; as one where pictures are cut into tiles, or differ."""
    pictures = len(pixels)
    alike = features.dim() == 2 and pixels.dim() == 4 and len(features) % pictures == 0
    return list(features.split(len(features) // pictures)) if alike else [features]


def run_reference(
    config: Mapping[str, Any],
    loaded: Loaded,
    samples: int,
    machine: Machine,
    make: Callable[[Batches, BatchSize], Module],
    phase: str,
) -> Module:
    """Show a module the first samples of the calibration set, and return it.

    Args:
        config: Config of the run, resolved.
        samples: Number of samples.
        make: makes the module, of the batches that it will see and their size.
        phase: what the progress bar says.

    Raises:
        ValueError: the model has no weights, or the calibration set is too small.
    """
    if config["model"]["weights"] == "random":
        raise ValueError(
            "A search needs a model with weights, but model.weights is random. Name a search.yaml of another run in "
            "pruner.search.artifact, or do without a search."
        )
    task = make_dataset(config["calibration"]["dataset"], "calibration.dataset")
    if not 1 <= samples <= len(task):
        raise ValueError(
            f"pruner.search.samples is {samples}, but the calibration set has {len(task)}. Set pruner.search.samples "
            f"to 1 to {len(task)}, or raise calibration.samples."
        )
    shown = [task[i] for i in range(samples)]
    size = BatchSize(config["calibration"]["batch"], "calibration.batch")
    with machine.feed(shown, loaded.processor) as feed:
        batches = feed.batches(by_length(shown, loaded.processor), size.asked)
        module = make(batches, size)
        machine.trainer(phase, batches.total).predict(module, batches, return_predictions=False)
    return module


def similarity(host: Host, kept: Sequence[Kept], pruner: Pruner, schedule: Schedule) -> float:
    """Mean cosine of the last prompt token's state behind the final norm, unpruned and pruned; NaN counts as 0.

    Args:
        kept: Reference of the unpruned model, with the signals that `pruner` asks for.
        schedule: Schedule with every `fit` solved.
    """
    replay, total, rows = Replay(pruner), 0.0, 0
    with attach(host, replay, schedule):
        for batch in kept:
            replay.signals = Signals(batch.signals)
            hidden, _ = forward(host, batch.inputs)
            alike = torch.cosine_similarity(hidden.float(), batch.hidden.float(), dim=-1)
            total += float(alike.nan_to_num(0.0).double().sum())
            rows += len(alike)
    return total / rows
