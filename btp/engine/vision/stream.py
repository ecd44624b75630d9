"""Walks tokens through the vision tower and the projector, and tells the prompt what left there.

A stage may stand in front of a layer, inside it between attention and MLP, or in front of the projector. Behind the
projector the features get their old length again, with zeros where a token is gone, since the host fills its
placeholders by counting; the same tokens are then withdrawn in front of decoder layer 0.

A cut inside a layer cannot shorten the host's residual, which is a local variable there. So the MLP's norm is given
the short states, what the MLP adds is set aside and nothing is handed back in its place, and behind the layer the two
are added: the sum that a layer without the other tokens would have made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from btp.core.host import Host, Packed
from btp.core.pruner import Tokens
from btp.core.signals import Signal
from btp.core.trace import StageRecord
from btp.engine.checks.plan import PlannedStage
from btp.engine.checks.signals import check_packing, layer_of, unseen_message
from btp.engine.decide import Decider, Decision
from btp.engine.decoder.prefill import Run
from btp.engine.hooks.arguments import Binding
from btp.engine.hooks.attention_registry import watch_attention
from btp.engine.hooks.attention_rows import gather_rows, tower_rows
from btp.engine.vision.state import Pictures
from btp.engine.vision.to_prompt import hand_over, of_prompt
from btp.ops.bipartite import size_bias

_AXIS = {"attention": 3, "queries": 2, "keys": 2, "values": 2, "hidden": 1}


class VisionStream(threading.local):
    """The hooks of one attach in the vision tower. What passed it belongs to the thread: its prompt comes later.

    Args:
        host: the model.
        decider: asks the pruner.
        plan: all stages; those of the vision tower are done here.
        signals: all declared signals; those of the vision tower are seen here.
    """

    def __init__(self, host: Host, decider: Decider, plan: Iterable[PlannedStage], signals: Iterable[Signal]) -> None:
        self._host, self._decider = host, decider
        self._plan = [planned for planned in plan if planned.stage.site.tower == "vision"]
        self._signals = [s for s in dict.fromkeys(signals) if s.site.tower == "vision"]
        self._pictures: Pictures | None = None  # of the latest pass through the tower
        self._inside: tuple[Tensor, Tensor | None] | None = None  # short states, and what the MLP adds to them
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
        tower, layers = self._host.towers["vision"], self._host.towers["vision"].layers
        projector, vision = self._host.projector, self._host.vision
        assert projector is not None  # held by check.vision_tower
        assert vision is not None
        hooks = [
            vision.register_forward_pre_hook(self._before_tower(Binding(vision)), with_kwargs=True),
            *(layer.register_forward_pre_hook(self._before(at), with_kwargs=True) for at, layer in enumerate(layers)),
            # in front of the host's own hooks, which collect what leaves a layer
            *(layer.register_forward_hook(self._behind(at), prepend=True) for at, layer in enumerate(layers)),
            projector.register_forward_pre_hook(self._before_projector(Binding(projector)), with_kwargs=True),
            projector.register_forward_hook(self._behind_projector),
        ]
        for at in {p.stage.site.layer for p in self._plan if p.stage.site.kind == "mlp"}:
            norm, mlp = (getattr(layers[at], str(name)) for name in (tower.mlp_norm, tower.mlp))
            hooks += [norm.register_forward_pre_hook(self._before_mlp(at)), mlp.register_forward_hook(self._behind_mlp)]
        for hook in hooks:
            undo.callback(hook.remove)
        inside = [s for s in self._signals if s.kind not in ("hidden", "pixels")]
        attending = {layer_of(tower, s.site) for s in inside}
        if attending:
            watch_attention(vision, {at: layers[at] for at in attending}, self._look, undo)

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
            self._pictures = Pictures.open(len(pixels), self._host.picture_grid(pixels), pixels.device)
            self._pictures.seen |= {s: pixels for s in self._signals if s.kind == "pixels"}
            if self._coming is not None:
                self._pictures.pack(*self._coming)
            self._inside = self._coming = None

        return enter

    def _before(self, at: int) -> Callable:
        binding = Binding(self._host.towers["vision"].layers[at])
        front = self._host.towers["vision"].class_tokens
        stages = [p for p in self._plan if p.stage.site.kind == "layer" and p.stage.site.layer == at]
        wanted = [s for s in self._signals if s.kind == "hidden" and s.site.kind == "layer" and s.site.layer == at]

        def enter(module, args, kwargs):
            pictures, hidden = self._pictures, binding.read(args, kwargs)[binding.first]
            if pictures is None or hidden.shape[:2] != (len(pictures.slots), pictures.slots.shape[1] + front):
                raise RuntimeError(
                    f"A layer of the vision tower got states of shape {tuple(hidden.shape)}, which are not the "
                    "pictures' patches. This family needs an adapter in btp.models."
                )
            self._see_hidden(wanted, hidden)
            for planned in stages:
                hidden = self._pass(planned, hidden, front)
            changes = {binding.first: hidden}
            if pictures.merged and self._decider.proportional_attention:
                changes["attention_mask"] = _weights(pictures.size, front, hidden)
            pictures.layers.append((hidden.shape[1], hidden.shape[1]))
            return binding.replace(args, kwargs, changes)

        return enter

    def _behind(self, at: int) -> Callable:
        feature = at == self._host.towers["vision"].feature
        wanted = [s for s in self._signals if s.kind == "hidden" and feature and s.site.kind in ("feature", "output")]

        def leave(module, args, output):
            left = output[0] if isinstance(output, tuple) else output
            if self._inside is not None:
                states, added = self._inside
                assert added is not None
                left, self._inside = states + added, None
                layers = self._pictures.layers  # type: ignore[union-attr]
                layers[at] = (layers[at][0], left.shape[1])
                output = (left, *output[1:]) if isinstance(output, tuple) else left
            self._see_hidden(wanted, left)
            return output

        return leave

    def _before_mlp(self, at: int) -> Callable:
        front = self._host.towers["vision"].class_tokens
        stages = [p for p in self._plan if p.stage.site.kind == "mlp" and p.stage.site.layer == at]

        def enter(module, args):
            hidden = moved = args[0]
            for planned in stages:
                moved = self._pass(planned, moved, front)
            if moved is hidden:
                return None
            self._inside = (moved, None)
            return (moved, *args[1:])

        return enter

    def _behind_mlp(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        if self._inside is None:
            return None
        self._inside = (self._inside[0], output)
        return output.new_zeros(1, 1, 1)  # the host adds it to a residual of the old length

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
                moved = self._pass(planned, moved, 0)
            return None if moved is features else binding.replace(args, kwargs, {binding.first: moved})

        return enter

    def _behind_projector(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        assert self._pictures is not None  # held in front of the projector
        self._pictures.features = self._pictures.spread(output, 1)
        return self._pictures.features

    def _look(self, at: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> None:
        pictures, tower = self._pictures, self._host.towers["vision"]
        assert pictures is not None  # held in front of each layer
        for signal in self._signals:
            if signal.kind in ("hidden", "pixels") or layer_of(tower, signal.site) != at:
                continue
            if signal.kind == "attention":
                with torch.no_grad():
                    rows, form = str(signal.rows), str(signal.form)
                    x = tower_rows(query, key, mask, scaling, rows, form, tower.class_tokens)
            else:
                x = {"queries": query * scaling, "keys": key, "values": value}[signal.kind]
                x = x if signal.rows == "all" else x[:, :, tower.class_tokens :]
            pictures.seen[signal] = x if signal.rows == "all" else pictures.spread(x, _AXIS[signal.kind])

    def _see_hidden(self, wanted: Iterable[Signal], hidden: Tensor) -> None:
        front, pictures = self._host.towers["vision"].class_tokens, self._pictures
        assert pictures is not None
        for signal in wanted:
            pictures.seen[signal] = hidden[:, :1] if signal.rows == "cls" else pictures.spread(hidden[:, front:], 1)

    def _pass(self, planned: PlannedStage, hidden: Tensor, front: int) -> Tensor:
        """Let one stage decide and move; `front` class tokens stay where they are.

        Behind the tower a stage sees of a tile what prompts will have of it; inside, the tower needs it whole.
        """
        stage, pictures = planned.stage, self._pictures
        assert pictures is not None
        shown, alive = pictures.shown() if stage.site.kind == "output" else (pictures, None)
        states = hidden if alive is None else gather_rows(hidden, alive)
        before = shown.counts
        totals = pictures.totals if stage.site.kind == "output" else (pictures.total,) * len(before)
        counts = tuple(stage.kept(total, n) for total, n in zip(totals, before, strict=True))
        if max(before) == 0:
            pictures.passed.append(pictures.state(stage.site, merging=False))
            return hidden
        decision = self._decider.plain(shown.slots, before, counts)
        decision = decision or self._ask(planned, shown, states, front, totals, counts)
        if stage.site.kind != "output" and not front + min(decision.counts):
            raise ValueError(
                f"schedule.{planned.index}.keep is {stage.keep} at {stage.site}, which leaves no token of a picture "
                "for the layers of a vision tower without class token. Raise it, or set the site to vision.output."
            )
        if decision.changes(before):
            if stage.site.kind != "output" and len(set(decision.counts)) > 1:
                raise ValueError(
                    f"schedule.{planned.index} keeps {decision.counts} tokens of its pictures at {stage.site}, but "
                    "inside the vision tower all must keep as many. Move the stage to vision.output."
                )
            lead = torch.arange(front, device=hidden.device).expand(len(hidden), front)
            rows = torch.cat([lead, decision.keep.clamp(min=0) + front], dim=1)
            moved = gather_rows(states, rows)
            if decision.states is not None:
                moved = torch.cat([moved[:, :front], decision.states.to(moved)], dim=1)
            hidden = moved
            pictures.slots, pictures.size, pictures.present = shown.slots, shown.size, shown.present
            pictures.take(decision.keep, decision.counts, decision.sizes)
            pictures.ordered = pictures.ordered or decision.ordered
            pictures.renumber = stage.positions == "renumber"
        pictures.passed.append(pictures.state(stage.site, merging=decision.sizes is not None))
        return hidden

    def _ask(
        self,
        planned: PlannedStage,
        pictures: Pictures,
        hidden: Tensor,
        front: int,
        totals: tuple[int, ...],
        counts: tuple[int, ...],
    ) -> Decision:
        (P, n), valid, device = pictures.slots.shape, pictures.slots >= 0, hidden.device
        rows = torch.arange(n, device=device).expand(P, n)
        tokens = Tokens(
            hidden=hidden[:, front:],
            position=pictures.slots,
            coord=pictures.coord[pictures.slots.clamp(min=0)].masked_fill(~valid[..., None], -1),
            image=torch.zeros_like(rows).masked_fill(~valid, -1),
            size=pictures.size,
            valid=valid,
            total=torch.tensor(totals, device=device),
            index=pictures.slots,
            picture=torch.arange(P, device=device)[:, None].expand(P, n).masked_fill(~valid, -1),
            slot=pictures.slots,
            row=(rows + self._host.towers["vision"].class_tokens).masked_fill(~valid, -1),
            host_total=totals,
            host_alive=pictures.counts,
        )
        seen = {s: self._now(pictures, s) for s in planned.needs}
        return self._decider.ask(planned.stage, tokens, seen, rows_valid(seen), counts)

    def _sight(self, pictures: Pictures, signal: Signal) -> Tensor:
        if signal not in pictures.seen:
            raise RuntimeError(unseen_message(f"pruner {self._decider.pruner.name!r}", signal))  # type: ignore[union-attr]
        return pictures.seen[signal]

    def _now(self, pictures: Pictures, signal: Signal) -> Tensor:
        """A signal over the tokens alive; the class token, pixels and rows all are as they were seen."""
        x = self._sight(pictures, signal)
        whole = signal.kind == "pixels" or signal.rows == "all" or (signal.kind == "hidden" and signal.rows == "cls")
        return x if whole else pictures.alive(x, _AXIS[signal.kind])


def rows_valid(seen: Mapping[Signal, Tensor]) -> dict[Signal, Tensor]:
    """[P, T] for signals of the tower with rows all: every one is real."""
    every = {s: x for s, x in seen.items() if s.rows == "all"}
    return {s: torch.ones(len(x), x.shape[2], dtype=torch.bool, device=x.device) for s, x in every.items()}


def _weights(size: Tensor, front: int, hidden: Tensor) -> Tensor:
    """[P, 1, 1, T] log of how many tokens each key stands for, class tokens one."""
    ones = size.new_ones(len(size), front)
    return size_bias(torch.cat([ones, size], dim=1)).to(hidden.dtype)[:, None, None]
