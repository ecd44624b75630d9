"""Pruning between the layers of a vision tower, with or without a language model behind it.

A stage may stand in front of a layer, or inside it between attention and MLP. A cut inside a layer cannot shorten the
host's residual, which is a local variable there. So the MLP's norm is given the short states, what the MLP adds is set
aside and nothing is handed back in its place, and behind the layer the two are added: the sum that a layer without the
other tokens would have made. Where a module of the layer adds the residual, it is given the short one instead.

Tokens that stay keep their order among the rows that never leave, wherever these stand. Pictures that keep fewer than
others are padded behind their last patch; no row attends to padding.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from btp.core.host import Host
from btp.core.keep import on_device
from btp.core.pruner import Tokens
from btp.core.signals import Signal
from btp.engine.checks.plan import PlannedStage
from btp.engine.checks.signals import layer_of, unseen_message
from btp.engine.decide import Decider, Decision
from btp.engine.hooks.arguments import Binding
from btp.engine.hooks.attention_registry import watch_attention
from btp.engine.hooks.attention_rows import gather_rows, tower_rows
from btp.engine.vision.state import Pictures
from btp.ops.bipartite import size_bias

AXIS = {"attention": 3, "queries": 2, "keys": 2, "values": 2, "hidden": 1, "scan": 1}
_OUTSIDE = ("hidden", "pixels", "scan")  # signals that are not seen inside attention


class TowerPass(threading.local):
    """The hooks of one attach on the layers of a vision tower. What passed it belongs to the thread.

    Args:
        host: the model.
        decider: asks the pruner.
        plan: all stages; those of the vision tower are done here.
        signals: all declared signals; those of the vision tower are seen here.
    """

    uneven = False  # whether pictures may keep unequal numbers of tokens inside the tower

    def __init__(self, host: Host, decider: Decider, plan: Iterable[PlannedStage], signals: Iterable[Signal]) -> None:
        self._host, self._decider = host, decider
        self._plan = [planned for planned in plan if planned.stage.site.tower == "vision"]
        self._signals = [s for s in dict.fromkeys(signals) if s.site.tower == "vision"]
        self._pictures: Pictures | None = None  # of the latest pass through the tower
        self._inside: tuple[Tensor, Tensor | None] | None = None  # short states, and what the MLP adds to them

    def open_layers(self, undo: ExitStack) -> None:
        """Register the hooks of every layer."""
        tower = self._host.towers["vision"]
        layers, vision = tower.layers, self._host.vision
        assert vision is not None  # held by checks
        hooks = [
            *(layer.register_forward_pre_hook(self._before(at), with_kwargs=True) for at, layer in enumerate(layers)),
            # in front of the host's own hooks, which collect what leaves a layer
            *(layer.register_forward_hook(self._behind(at), prepend=True) for at, layer in enumerate(layers)),
        ]
        for at in {p.stage.site.layer for p in self._plan if p.stage.site.kind == "mlp"}:
            norm = getattr(layers[at], str(tower.mlp_norm))
            hooks.append(norm.register_forward_pre_hook(self._before_mlp(at)))
            if tower.mlp_sum is not None:
                hooks.append(getattr(layers[at], tower.mlp_sum).register_forward_pre_hook(self._before_sum))
            else:
                left = getattr(layers[at], str(tower.mlp_exit or tower.mlp))
                hooks.append(left.register_forward_hook(self._behind_mlp))
        for at in {layer_of(tower, s.site) for s in self._signals if s.kind == "scan"}:
            joined = layers[at].get_submodule(str(tower.directions))
            hooks.append(joined.register_forward_pre_hook(self._before_joined(at)))
        for hook in hooks:
            undo.callback(hook.remove)
        attending = {layer_of(tower, s.site) for s in self._signals if s.kind not in _OUTSIDE}
        biased = self._plan and (self._decider.proportional_attention or (self.uneven and self._decider.adaptive))
        if tower.attends and (attending or biased):
            watched = dict(enumerate(layers)) if biased else {at: layers[at] for at in attending}
            watch_attention(vision, watched, self._look, undo, self._bias if biased else None)

    def _before(self, at: int) -> Callable:
        tower = self._host.towers["vision"]
        binding = Binding(tower.layers[at])
        stages = [p for p in self._plan if p.stage.site.kind == "layer" and p.stage.site.layer == at]
        wanted = [s for s in self._signals if s.kind == "hidden" and s.site.kind == "layer" and s.site.layer == at]

        def enter(module, args, kwargs):
            pictures, hidden = self._pictures, binding.read(args, kwargs)[binding.first]
            if pictures is None or hidden.shape[:2] != (len(pictures.slots), pictures.rows):
                raise RuntimeError(
                    f"A layer of the vision tower got states of shape {tuple(hidden.shape)}, which are not the "
                    "pictures' patches. This family needs an adapter in btp.models."
                )
            self._see_hidden(wanted, hidden)
            for planned in stages:
                hidden = self._pass(planned, hidden)
            changes = {binding.first: hidden}
            if tower.places and pictures.cut:
                changes |= {"places": pictures.places(), "length": pictures.length}
                changes |= self._decider.alignment
            pictures.layers.append((hidden.shape[1], hidden.shape[1]))
            pictures.entered.append(pictures.counts)
            return binding.replace(args, kwargs, changes)

        return enter

    def _behind(self, at: int) -> Callable:
        feature = at == self._host.towers["vision"].feature
        wanted = [s for s in self._signals if s.kind == "hidden" and feature and s.site.kind in ("feature", "output")]

        def leave(module, args, output):
            left = output[0] if isinstance(output, tuple) else output
            if self._inside is not None:
                states, added = self._inside
                left, self._inside = (left if added is None else states + added), None
                layers = self._pictures.layers  # type: ignore[union-attr]
                layers[at] = (layers[at][0], left.shape[1])
                output = (left, *output[1:]) if isinstance(output, tuple) else left
            self._see_hidden(wanted, left)
            return output

        return leave

    def _before_mlp(self, at: int) -> Callable:
        stages = [p for p in self._plan if p.stage.site.kind == "mlp" and p.stage.site.layer == at]

        def enter(module, args):
            hidden = moved = args[0]
            for planned in stages:
                moved = self._pass(planned, moved)
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

    def _before_sum(self, module: nn.Module, args: tuple) -> tuple | None:
        return None if self._inside is None else (args[0], self._inside[0], *args[2:])

    def _before_joined(self, at: int) -> Callable:
        tower = self._host.towers["vision"]
        wanted = [s for s in self._signals if s.kind == "scan" and layer_of(tower, s.site) == at]

        def enter(module, args):
            pictures = self._pictures
            assert pictures is not None  # held in front of each layer
            gate, *every = (x.detach().transpose(0, 1) for x in args)
            directions = {"both": every, "forward": every[::2], "backward": every[1::2]}
            for signal in wanted:
                x = sum(directions[str(signal.rows)]) * gate
                pictures.seen[signal] = pictures.spread(pictures.of_tokens(x, 1), 1)

        return enter

    def _bias(self, query: Tensor) -> Tensor | None:
        """[P, 1, 1, T] what is added to the logits of each key: log sizes of merged tokens, and nothing but padding."""
        pictures = self._pictures
        assert pictures is not None  # held in front of each layer
        weighed = pictures.merged and self._decider.proportional_attention
        if not (weighed or pictures.uneven):
            return None
        size = pictures.size if weighed else torch.ones_like(pictures.size)
        bias = size_bias(size).to(query.dtype).masked_fill(pictures.slots < 0, torch.finfo(query.dtype).min)
        return pictures.laid_out(bias, bias.new_zeros(len(bias), len(pictures.fixed)))[:, None, None]

    def _look(self, at: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> None:
        pictures, tower = self._pictures, self._host.towers["vision"]
        assert pictures is not None  # held in front of each layer
        for signal in self._signals:
            if signal.kind in _OUTSIDE or layer_of(tower, signal.site) != at:
                continue
            if signal.kind == "attention":
                with torch.no_grad():
                    x = self._attended(signal, query, key, mask, scaling)
                    x = pictures.of_tokens(x, 3)
            else:
                x = {"queries": query * scaling, "keys": key, "values": value}[signal.kind]
                x = x if signal.rows == "all" else pictures.of_tokens(x, 2)
            pictures.seen[signal] = x if signal.rows == "all" else pictures.spread(x, AXIS[signal.kind])

    def _attended(self, signal: Signal, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """[P, H, 1, T] what the asked rows attend to; attention of no other row is computed."""
        pictures, rows = self._pictures, str(signal.rows)
        assert pictures is not None
        real = pictures.real_rows() if pictures.uneven else None
        if rows == "fixed":
            rows = "mean"
            if pictures.fixed:
                query, real = gather_rows(query, pictures.arranged()[1], axis=2), None
        return tower_rows(query, key, mask, scaling, rows, str(signal.form), real=real)

    def _see_hidden(self, wanted: Iterable[Signal], hidden: Tensor) -> None:
        pictures = self._pictures
        assert pictures is not None
        for signal in wanted:
            if signal.rows == "cls":
                pictures.seen[signal] = gather_rows(hidden, pictures.arranged()[1][:, :1])
            else:
                pictures.seen[signal] = pictures.spread(pictures.of_tokens(hidden, 1), 1)

    def _pass(self, planned: PlannedStage, hidden: Tensor) -> Tensor:
        """Let one stage decide and move; fixed rows stay.

        Behind the tower, where no fixed row is left, a stage sees of a tile what prompts will have of it; inside, the
        tower needs it whole.
        """
        stage, pictures = planned.stage, self._pictures
        assert pictures is not None
        behind = stage.site.kind == "output"
        shown, alive = pictures.shown() if behind else (pictures, None)
        states = hidden if alive is None else gather_rows(hidden, alive)
        before = shown.counts
        totals = pictures.totals if behind else (pictures.total,) * len(before)
        counts = tuple(stage.kept(total, n) for total, n in zip(totals, before, strict=True))
        if max(before) == 0:
            pictures.passed.append(pictures.state(stage.site, merging=False))
            return hidden
        decision = self._decider.plain(shown.slots, before, counts)
        decision = decision or self._ask(planned, shown, states, totals, counts)
        if not behind:
            self._check_inside(planned, decision)
        if decision.changes(before):
            tokens = None if behind else pictures.arranged()
            pictures.slots, pictures.size, pictures.present = shown.slots, shown.size, shown.present
            pictures.seats = shown.seats
            pictures.take(decision.keep, decision.counts, decision.sizes)
            hidden = _moved(states, decision, tokens, pictures)
            pictures.ordered = pictures.ordered or decision.ordered
            pictures.renumber = stage.positions == "renumber"
        pictures.passed.append(pictures.state(stage.site, merging=decision.sizes is not None))
        return hidden

    def _check_inside(self, planned: PlannedStage, decision: Decision) -> None:
        stage = planned.stage
        if not self._host.towers["vision"].fixed_count + min(decision.counts):
            raise ValueError(
                f"schedule.{planned.index}.keep is {stage.keep} at {stage.site}, which leaves no token of a picture "
                "for the layers of a vision tower without class token. Raise it, or set the site to vision.output."
            )
        if not self.uneven and len(set(decision.counts)) > 1:
            raise ValueError(
                f"schedule.{planned.index} keeps {decision.counts} tokens of its pictures at {stage.site}, but "
                "inside the vision tower all must keep as many. Move the stage to vision.output."
            )

    def _ask(
        self,
        planned: PlannedStage,
        pictures: Pictures,
        hidden: Tensor,
        totals: tuple[int, ...],
        counts: tuple[int, ...],
    ) -> Decision:
        (P, n), valid, device = pictures.slots.shape, pictures.slots >= 0, hidden.device
        none = torch.zeros(P, n, dtype=torch.long, device=device)
        behind = planned.stage.site.kind == "output"
        tokens = Tokens(
            hidden=hidden if behind else pictures.of_tokens(hidden, 1),
            position=pictures.slots,
            coord=pictures.coord[pictures.slots.clamp(min=0)].masked_fill(~valid[..., None], -1),
            image=none.masked_fill(~valid, -1),
            size=pictures.size,
            valid=valid,
            total=on_device(totals, device),
            index=pictures.slots,
            picture=torch.arange(P, device=device)[:, None].expand(P, n).masked_fill(~valid, -1),
            slot=pictures.slots,
            row=pictures.arranged()[0].masked_fill(~valid, -1),
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
        return x if whole else pictures.alive(x, AXIS[signal.kind])


def _moved(states: Tensor, decision: Decision, before: tuple[Tensor, Tensor] | None, pictures: Pictures) -> Tensor:
    """[P, rows, D] the rows that go on, with what flowed into them.

    Args:
        states: [P, rows before, D].
        before: rows of tokens and of fixed rows in `states`; None where it holds tokens alone.
        pictures: Pictures behind the cut.
    """
    keep = decision.keep.clamp(min=0)
    if before is None:
        return gather_rows(states, keep) if decision.states is None else decision.states.to(states)
    tokens, fixed = before
    moved = gather_rows(states, pictures.laid_out(tokens.gather(1, keep), fixed))
    if decision.states is None:
        return moved
    at = pictures.arranged()[0][..., None].expand_as(decision.states)
    return moved.scatter(1, at, decision.states.to(moved))


def rows_valid(seen: Mapping[Signal, Tensor]) -> dict[Signal, Tensor]:
    """[P, T] for signals of the tower with rows all: every one is real."""
    every = {s: x for s, x in seen.items() if s.rows == "all"}
    return {s: torch.ones(len(x), x.shape[2], dtype=torch.bool, device=x.device) for s, x in every.items()}
