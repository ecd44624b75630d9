"""Attaching a pruner to a model: checks the plan, registers hooks, and removes all of them again."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from btp.core.host import Host
from btp.core.pruner import Pruner
from btp.core.schedule import Schedule
from btp.core.trace import Trace
from btp.engine.checks.plan import make_plan
from btp.engine.decoder.stream import Stream
from btp.engine.hooks.torch_compile import uncompiled
from btp.engine.vision.backbone_stream import BackboneStream

_ATTACHED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@contextmanager
def attach(model: Host, pruner: Pruner | None = None, schedule: Schedule | None = None) -> Iterator[Trace]:
    """Prune whatever `model` computes inside the `with` block.

    In a vision model without a language model every forward passes the stages. In others
    every prefill (a forward with an empty cache, or with none) passes the stages of the schedule: the pruner
    decides, dropped tokens leave the hidden states and the K/V cache of every layer behind, and decoding
    goes on with the slots each layer has. Text is never touched. Without a pruner and a schedule nothing is
    scheduled, and the same path records an unpruned run. Works with generate() (greedy, sampling, beams),
    plain calls, batches of unequal rows padded on either side, SDPA, eager attention and FlashAttention-2.

    On leaving, also by an exception, no hook, attribute or registry entry stays.

    Args:
        model: a Host, such as btp.models.lvlm.LVLM(hf_model) or btp.models.backbone.Backbone(hf_model).
        pruner: the method; None where every stage keeps 0 or 1.0, or nothing is scheduled.
        schedule: its stages, with every `fit` solved.

    Yields:
        The trace; it grows by one call per prefill, or per forward of a vision model.

    Raises:
        TypeError: model is not a Host.
        ValueError: the plan asks for what cannot be, or for what has no effect; raised before anything runs.
            While running: inputs or caches that cannot be followed, selections that break the contract, NaN and inf.
        RuntimeError: the model is attached already, or the host broke a fact the engine relies on.
    """
    schedule = schedule if schedule is not None else Schedule()
    with occupy(model):
        plan = make_plan(model, pruner, schedule)
        trace = Trace("none" if pruner is None else pruner.name)
        stream = (BackboneStream if model.decoder is None else Stream)(model, pruner, plan, trace)
        with stream.open():
            yield trace
        stream.settle()


@contextmanager
def occupy(model: Host) -> Iterator[None]:
    """Hold a model for one engine at a time.

    Raises:
        TypeError: model is not a Host.
        RuntimeError: it is held already.
    """
    if not isinstance(model, Host):
        raise TypeError(
            f"attach needs a model that says where its tokens are, and got {type(model).__name__}. "
            "Wrap it: btp.models.lvlm.LVLM(model)."
        )
    if model.model in _ATTACHED:
        raise RuntimeError("This model is attached already. Leave the first attach or observe before the second.")
    _ATTACHED.add(model.model)
    try:
        with uncompiled(model.model):
            yield
    finally:
        _ATTACHED.discard(model.model)
