"""Pruning in the vision tower and in front of the projector, and removal of the same tokens from the prompt.

A stage may stand in front of a layer, inside it between attention and MLP, or in front of the projector. Behind the
projector the features get their old length again, with zeros where a token is gone, since the host fills its
placeholders by counting; the same tokens are then withdrawn in front of decoder layer 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from btp.core.host import Host, Packed
from btp.core.signals import Signal
from btp.core.trace import StageRecord
from btp.engine.checks.plan import PlannedStage
from btp.engine.checks.signals import check_packing
from btp.engine.decide import Decider, Decision
from btp.engine.decoder.prefill import Run
from btp.engine.hooks.arguments import Binding
from btp.engine.vision.state import Pictures
from btp.engine.vision.to_prompt import hand_over, of_prompt
from btp.engine.vision.tower_pass import TowerPass


class VisionStream(TowerPass):
    """The hooks of one attach in the vision tower of a vision-language model. What passed it belongs to the thread: its
    prompt comes later.
    """

    def __init__(self, host: Host, decider: Decider, plan: Iterable[PlannedStage], signals: Iterable[Signal]) -> None:
        super().__init__(host, decider, plan, signals)
        self._ready: list[Tensor] | None = None  # features that the prompt under way was given
        self._which: list[int] = []  # which of the pictures its own are
        self._coming: tuple[Mapping[str, Any], Sequence[Packed]] | None = None  # what is about to enter the tower
        self._noted: Mapping[str, Any] | None = None  # arguments that the features under way were encoded with

    @property
    def needed(self) -> bool:
        """Whether any stage or signal is in the vision tower."""
        return bool(self._plan or self._signals)

    def open(self, undo: ExitStack) -> None:
        """Register every hook."""
        projector, vision = self._host.projector, self._host.vision
        assert projector is not None  # held by check.vision_tower
        assert vision is not None
        enter = vision.register_forward_pre_hook(self._before_tower(Binding(vision)), with_kwargs=True)
        undo.callback(enter.remove)
        self.open_layers(undo)
        for hook in (
            projector.register_forward_pre_hook(self._before_projector(Binding(projector)), with_kwargs=True),
            projector.register_forward_hook(self._behind_projector),
        ):
            undo.callback(hook.remove)

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """A prompt enters the model, perhaps with features that were encoded before."""
        found = (inputs.get("mm_encoder_outputs") or {}).get("image")
        self._ready = None if found is None else list(found.pooler_output)
        encoded = inputs.get("encoded", {}).get("image")
        self._noted = None if encoded is None else encoded.arguments
        if found is None:
            self._pictures = None  # the tower runs now, or not at all

    def encoding(self, kind: str, arguments: Mapping[str, Any]) -> None:
        """Pictures or videos are about to be encoded.

        Raises:
            ValueError: the prompt's tokens will not be the tower's, so that none can be followed.
        """
        packed = self._host.packing(kind, arguments)
        self._coming = None
        if packed is not None:
            check_packing(self._host, kind, packed)
            self._coming = (arguments, packed)

    def seen(self, signal: Signal) -> Tensor:
        """A signal as a stage of the language model gets it: per picture of the prompt, over all its tokens."""
        assert self._pictures is not None
        return of_prompt(self._sight(self._pictures, signal), self._which)

    def withdrawn(self, run: Run) -> tuple[Decision, bool] | None:
        """What leaves the prompt because it left in the tower, and whether positions close up; None for nothing.

        Raises:
            RuntimeError: the pictures did not pass the tower and the projector under these hooks.
        """
        totals = run.ledger.total
        if max(totals) == 0:
            empty = torch.zeros(len(totals), 0, dtype=torch.long)
            run.call.stages += [StageRecord(p.stage.site, totals, totals, empty) for p in self._plan]
            return None
        pictures, packed = self._pictures, run.layout.source is not None
        which = None
        if pictures is not None:
            which = self._whole_pass(pictures) if packed else pictures.which(self._ready)
        if pictures is None or which is None:
            raise RuntimeError(
                "The prompt has visual tokens, but its pictures did not pass the vision tower and the projector while "
                "the engine was attached, so a stage or signal there has nothing to work on. Pass pixel_values in "
                "place of ready features."
            )
        if not packed and sum(totals) != len(which) * pictures.total:
            raise RuntimeError(
                f"The vision tower had {len(which)} pictures of {pictures.total} tokens, but the prompts have "
                f"{sum(totals)} visual tokens. This family packs its pictures; it needs an adapter in btp.models."
            )
        self._which, run.per_picture = which, pictures.total
        if self._plan:
            run.call.vision = pictures.layers
            run.call.projected = tuple(pictures.counts[i] for i in which)
        return hand_over(run, pictures, which)

    def _whole_pass(self, pictures: Pictures) -> list[int] | None:
        """All pictures of the latest pass, if the prompt's features were packed of them; None otherwise."""
        noted = pictures.arguments if self._ready is None else self._noted
        if pictures.features is None or noted is None or noted is not pictures.arguments:
            return None
        return list(range(len(pictures.slots)))

    def _before_tower(self, binding: Binding) -> Callable:
        def enter(module, args, kwargs):
            pixels = binding.read(args, kwargs)[binding.first]
            fixed = self._host.towers["vision"].fixed
            self._pictures = Pictures.open(len(pixels), self._host.picture_grid(pixels), fixed, pixels.device)
            self._pictures.seen |= {s: pixels for s in self._signals if s.kind == "pixels"}
            if self._coming is not None:
                self._pictures.pack(*self._coming)
            self._inside = self._coming = None

        return enter

    def _before_projector(self, binding: Binding) -> Callable:
        stages = [p for p in self._plan if p.stage.site.kind == "output"]

        def enter(module, args, kwargs):
            pictures = self._pictures
            features = moved = binding.read(args, kwargs)[binding.first]
            if pictures is None or features.shape[:2] != pictures.slots.shape:
                raise RuntimeError(
                    f"The projector gets features of shape {tuple(features.shape)}, which are not the tokens alive in "
                    "the vision tower. This family needs an adapter in btp.models."
                )
            for planned in stages:
                moved = self._pass(planned, moved)
            return None if moved is features else binding.replace(args, kwargs, {binding.first: moved})

        return enter

    def _behind_projector(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        assert self._pictures is not None  # held in front of the projector
        self._pictures.features = self._pictures.spread(output, 1)
        return self._pictures.features
