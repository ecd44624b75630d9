"""Pruning in a vision model without a language model, with a record of each forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from btp.core.host import Host
from btp.core.pruner import Pruner
from btp.core.trace import Call, StageRecord, Trace
from btp.engine.checks.plan import PlannedStage
from btp.engine.decide import Decider
from btp.engine.hooks.attention_rows import gather_rows
from btp.engine.hooks.deferred_checks import Doubts
from btp.engine.hooks.forward_lock import Turn
from btp.engine.hooks.root_forward import stand_around
from btp.engine.vision.state import Pictures
from btp.engine.vision.tower_pass import TowerPass


class BackboneStream(TowerPass):
    """The hooks of one attach on a vision model, and the forward under way.

    Args:
        host: the model.
        pruner: decides; None where no stage asks.
        plan: stages in order.
        trace: receives one call per forward.
    """

    uneven = True

    def __init__(self, host: Host, pruner: Pruner | None, plan: tuple[PlannedStage, ...], trace: Trace) -> None:
        self._doubts = Doubts()
        signals = [signal for planned in plan for signal in planned.needs]
        super().__init__(host, Decider(pruner, self._doubts), plan, signals)
        self._trace, self._turn = trace, Turn()

    def open(self) -> ExitStack:
        """Register every hook; closing the stack removes them."""
        with ExitStack() as undo:
            stand_around(self._host.model, self._turn, self._follow, undo)
            self.open_layers(undo)
            layers = self._host.towers["vision"].layers
            hooks = []
            if self._plan:
                if self._host.towers["vision"].exit == "restore":
                    hooks.append(layers[-1].register_forward_hook(self._restored))
                averaged = getattr(self._host, "averaged", None)
                if averaged is not None:
                    hooks.append(averaged.register_forward_hook(self._weighed))
                for tables in getattr(self._host, "tables", ()):
                    hooks.append(tables.register_forward_hook(self._later))
            for hook in hooks:
                undo.callback(hook.remove)
            return undo.pop_all()

    def settle(self) -> None:
        """Read what was left open on the device: doubts and the last call's indices."""
        for call in self._trace.calls[-1:]:
            call.settle()
        self._doubts.settle()

    def _follow(self, inputs: Mapping[str, Any], proceed: Callable[[], Any]) -> Any:
        """One forward of the model."""
        self.settle()
        pixels = inputs.get("pixel_values")
        if not isinstance(pixels, Tensor):
            raise ValueError("The inputs hold no pixel_values, without which a vision model has nothing to look at.")
        fixed = self._host.towers["vision"].fixed
        self._pictures = pictures = Pictures.open(len(pixels), self._host.picture_grid(pixels), fixed, pixels.device)
        pictures.seen |= {s: pixels for s in self._signals if s.kind == "pixels"}
        try:
            output = proceed()
            self._record(pictures)
        finally:
            self._pictures = self._inside = None
        return output

    def _record(self, pictures: Pictures) -> None:
        """Enter a forward into the trace.

        Raises:
            RuntimeError: a stage or a layer was passed over.
        """
        totals = (pictures.total,) * len(pictures.slots)
        if len(pictures.layers) != len(self._host.towers["vision"].layers) or len(pictures.passed) != len(self._plan):
            raise RuntimeError(
                f"A layer or a stage was passed over in a forward of {type(self._host.model).__name__}: layers ran "
                "without the hooks that attach had set. This happens where layers were exchanged, traced or exported "
                "since, or where layers are dropped. Leave the model as it is until the attach is left."
            )
        fixed = (len(pictures.fixed),) * len(totals)
        call = Call(totals, fixed, visual=pictures.entered, vision=pictures.layers)
        call.tokens = [tuple(n + len(pictures.fixed) for n in counts) for counts in pictures.entered]
        before = totals
        for passed in pictures.passed:
            assert passed.site is not None
            call.stages.append(StageRecord(passed.site, before, passed.after, passed.slots, passed.size))
            before = passed.after
        self._trace.calls.append(call)

    def _restored(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """The rows at their old places, with zeros between them, for a head that knows where its rows stand."""
        pictures = self._pictures
        assert pictures is not None  # held in front of each layer
        if not pictures.cut:
            return None
        places = pictures.places()
        whole = output.new_zeros(len(output), pictures.length + 1, output.shape[2])  # padding goes behind the last one
        at = places.masked_fill(places < 0, pictures.length)[..., None].expand_as(output)
        return whole.scatter(1, at, output)[:, :-1]

    def _weighed(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """Rows whose plain mean is that of the tokens, each counted as often as what it stands for, without padding."""
        pictures = self._pictures
        assert pictures is not None  # held in front of each layer
        if not (pictures.merged or pictures.uneven):
            return None
        size = (pictures.size if pictures.merged else torch.ones_like(pictures.size)).to(output.dtype)
        size = size.masked_fill(pictures.slots < 0, 0)
        size = size * size.shape[1] / size.sum(1, keepdim=True)
        rows = pictures.laid_out(size, size.new_ones(len(size), len(pictures.fixed)))
        return output * rows[..., None]

    def _later(self, module: nn.Module, args: tuple, output: Tensor) -> _LateTables:
        """Position tables, made before the first layer runs: each is cut when it is read, behind its layer."""
        return _LateTables(output, self)

    def alive_rows(self, table: Tensor) -> Tensor:
        """[1 or P, rows, D] rows of a table [1, T, D] that belong to the layers' rows now."""
        pictures = self._pictures
        assert pictures is not None  # held in front of each layer
        if not pictures.cut:
            return table
        return gather_rows(table.expand(len(pictures.slots), -1, -1), pictures.origins())


class _LateTables:
    """Tables that are cut to the rows alive at the moment when one of them is read."""

    def __init__(self, tables: Tensor, stream: BackboneStream) -> None:
        self._tables, self._stream = tables, stream

    def __getitem__(self, layer: int) -> Tensor:
        return self._stream.alive_rows(self._tables[layer])
