"""Walks tokens through the decoder: lets the pruner decide, cuts, and takes everything along."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from btp.core.pruner import Pruner, Tokens
from btp.core.selection import Selection, check_shape, is_sound, unsound_message
from btp.core.signals import Signal, Signals
from btp.core.site import Site
from btp.core.tower import Host
from btp.core.trace import StageRecord, Trace
from btp.engine import cache as kv
from btp.engine.binding import Binding
from btp.engine.companions import check_step, decode_companions, prefill_companions
from btp.engine.doubts import Doubts
from btp.engine.plan import PlannedStage
from btp.engine.probe import Probe, Sight, attention_name
from btp.engine.run import Run, gather_rows, open_run


class Stream:
    """The hooks of one attach, and the run under way.

    Args:
        host: the model.
        pruner: decides; None where no stage asks.
        plan: stages in order.
        trace: receives one call per prefill.
    """

    def __init__(self, host: Host, pruner: Pruner | None, plan: tuple[PlannedStage, ...], trace: Trace) -> None:
        self._host, self._pruner, self._plan, self._trace = host, pruner, plan, trace
        self._doubts = Doubts()
        self._run: Run | None = None
        self._sights: dict[Signal, Sight] = {}
        self._attention = attention_name(host)  # before a probe renames it

    def open(self) -> ExitStack:
        """Register every hook; closing the stack removes them."""
        with ExitStack() as undo:
            root = Binding(self._host.model)
            hooks = [
                self._host.model.register_forward_pre_hook(self._before_root(root), with_kwargs=True),
                self._host.model.register_forward_hook(self._behind_root(root), with_kwargs=True),
            ]
            for hook in hooks:
                undo.callback(hook.remove)
            undo.enter_context(Probe(self._host, self._signals(), self._prefilling, self._note))
            layers = self._host.towers["llm"].layers
            first = min((planned.stage.site.first_layer for planned in self._plan), default=len(layers))
            for at in range(first, len(layers)):
                hook = layers[at].register_forward_pre_hook(self._before_layer(at), with_kwargs=True)
                undo.callback(hook.remove)
            return undo.pop_all()

    def settle(self) -> None:
        """Read what was left open on the device: doubts and the last call's indices."""
        self._run = None
        self._sights.clear()
        for call in self._trace.calls[-1:]:
            call.settle()
        self._doubts.settle()

    def _signals(self) -> list[Signal]:
        return [signal for planned in self._plan for signal in planned.needs]

    def _prefilling(self) -> Run | None:
        return self._run if self._run is not None and self._run.in_prefill else None

    def _note(self, run: Run, sight: Sight) -> None:
        self._sights[sight.signal] = sight

    def _before_root(self, binding: Binding) -> Callable:
        def enter(module, args, kwargs):
            inputs = binding.read(args, kwargs)
            cache = inputs.get("past_key_values")
            if self._plan:
                _check_inputs(self._host, inputs)
                kv.check_cache(cache)
            if not kv.is_filled(cache):
                self.settle()
                self._run = open_run(self._host, inputs, cache)
                self._trace.calls.append(self._run.call)
                return
            run = self._run
            if run is None or (run.cache is not None and run.cache is not cache):
                raise ValueError(
                    "This past_key_values was filled outside the present attach, or by another prompt since. "
                    "Start the prompt with an empty cache inside the attach."
                )
            run.in_prefill = False
            run.memo.clear()
            run.cache = cache
            run.call.decode_steps += 1
            if self._plan:
                check_step(run, inputs)

        return enter

    def _behind_root(self, binding: Binding) -> Callable:
        def leave(module, args, kwargs, output):
            run = self._run
            if run is None or not run.in_prefill:
                return
            run.cache = binding.read(args, kwargs).get("past_key_values")
            if run.cache is None:
                run.cache = getattr(output, "past_key_values", None)
            if self._plan:
                kv.check_cache(run.cache)
            call, views = run.call, [run.ledger.at(at) for at in range(self._host.num_layers)]
            call.visual = [view.visual_counts for view in views]
            call.tokens = [tuple(map(sum, zip(call.text, counts, strict=True))) for counts in call.visual]
            call.slots, call.cache_bytes = kv.slots(run.cache), kv.size_bytes(run.cache)
            run.memo.clear()
            self._sights.clear()

        return leave

    def _before_layer(self, at: int) -> Callable:
        binding = Binding(self._host.towers["llm"].layers[at])
        names = self._host.towers["llm"].companions
        stages = [planned for planned in self._plan if planned.stage.site.first_layer == at]

        def enter(module, args, kwargs):
            run = self._run
            if run is None:
                raise RuntimeError(
                    f"A decoder layer ran outside {type(self._host.model).__name__}.forward, where the "
                    "engine cannot "
                    "know the prompt. Call the model itself."
                )
            if run.in_prefill and stages:
                hidden = binding.read(args, kwargs)[binding.first]
                moved = hidden
                for planned in stages:
                    moved = self._pass(run, planned, at, moved)
                if moved is not hidden:
                    args, kwargs = binding.replace(args, kwargs, {binding.first: moved})
            view = run.ledger.at(at)
            if view is run.ledger.views[0][1]:
                return None
            arguments = binding.read(args, kwargs)
            hidden = arguments[binding.first]
            changes = run.memo.get((view, hidden.device))
            if changes is None:
                whole = {name: arguments[name] for name in names if name in arguments}
                if run.in_prefill:
                    changes = prefill_companions(self._host, run, view, hidden, whole)
                else:
                    changes = decode_companions(self._host, run, view, hidden, whole, self._attention)
                run.memo[view, hidden.device] = changes
            return binding.replace(args, kwargs, changes)

        return enter

    def _pass(self, run: Run, planned: PlannedStage, at: int, hidden: Tensor) -> Tensor:
        """Let one stage decide and move; hands the hidden states back untouched where nothing is dropped."""
        stage, ledger, view = planned.stage, run.ledger, run.ledger.now
        before = view.visual_counts
        pairs = zip(ledger.total, before, strict=True)
        counts = tuple(min(stage.count(total), alive) for total, alive in pairs)
        if max(before) == 0:
            run.call.stages.append(StageRecord(stage.site, before, before, view.visual_index))
            return hidden
        if max(counts) == 0:
            keep = view.visual_row[:, :0]
        elif self._pruner is None:
            keep = _everything(view.visual_row)
        else:
            keep = self._decide(run, planned, hidden, counts)
        renumber = stage.positions == "renumber"
        if counts == before and (renumber == view.renumbered or view is ledger.views[0][1]):
            run.call.stages.append(StageRecord(stage.site, before, counts, view.visual_index))
            return hidden
        run.ledger = ledger.cut(at, keep, counts, renumber)
        run.call.stages.append(StageRecord(stage.site, before, counts, run.ledger.now.visual_index))
        rows = ledger.rows_from(view, run.ledger.now).to(hidden.device)
        return hidden.gather(1, rows[..., None].expand(-1, -1, hidden.shape[-1]))

    def _decide(self, run: Run, planned: PlannedStage, hidden: Tensor, counts: tuple[int, ...]) -> Tensor:
        pruner, stage = self._pruner, planned.stage
        assert pruner is not None  # held by make_plan
        seen, rows_valid = {}, {}
        for signal in planned.needs:
            sight = self._sights.get(signal)
            if sight is None:
                raise RuntimeError(
                    f"pruner {pruner.name!r} asks for {signal}, but the layer's attention did not pass "
                    "through the "
                    "attention registry of transformers. This family needs an adapter in btp.models."
                )
            seen[signal] = _restrict(sight, run)
            self._expect_numbers(seen[signal], f"{signal}", pruner.name)
            if sight.rows_valid is not None:
                rows_valid[signal] = sight.rows_valid
        tokens = _tokens(run, hidden, planned, seen, rows_valid)
        self._expect_numbers(tokens.hidden, f"hidden at {stage.site}", pruner.name)
        selection = pruner.select(tokens, Signals(seen, rows_valid), stage)
        check_shape(selection, counts, pruner.name, stage.site)
        _refuse_unbuilt(selection, pruner.name, stage.site)
        alive = run.ledger.now.visual_valid.sum(1)
        wanted = torch.tensor(counts, device=alive.device)
        keep = selection.keep.to(alive.device, torch.int64)
        self._doubts.expect(is_sound(keep, wanted, alive), unsound_message(pruner.name, stage.site))
        return keep.clamp(max=run.ledger.now.visual_row.shape[1] - 1)

    def _expect_numbers(self, x: Tensor, what: str, method: str) -> None:
        self._doubts.expect(
            ~x.isnan().any(),
            f"{what} holds NaN, which pruner {method!r} would rank at random. "
            "The model overflowed before the cut: try another dtype, or look at the input.",
        )


def _tokens(run: Run, hidden: Tensor, planned: PlannedStage, seen: dict, rows_valid: dict) -> Tokens:
    view, device = run.ledger.now, hidden.device
    position, coord, image = (x.to(device) for x in run.coord(view))
    text = next((s for s in planned.needs if s.kind == "hidden" and s.rows == "text"), None)
    if text is not None and (text.site.layer != max(planned.stage.site.layer, 0) or text.form is not None):
        text = None
    return Tokens(
        hidden=gather_rows(hidden, view.visual_row),
        position=position,
        coord=coord,
        image=image,
        size=view.size.to(device),
        valid=view.visual_valid.to(device),
        total=torch.tensor(run.ledger.total, device=device),
        index=view.visual_index.to(device),
        text=None if text is None else seen[text],
        text_valid=None if text is None else rows_valid[text],
        host_total=run.ledger.total,
        host_alive=view.visual_counts,
    )


def _restrict(sight: Sight, run: Run) -> Tensor:
    """A sight's value over the visual tokens alive now, where some went since it was seen."""
    now = run.ledger.now
    if sight.view is now or (sight.signal.rows == "text" and sight.signal.kind != "attention"):
        return sight.value
    entry = run.ledger.entries(sight.view, now)
    axis = {"hidden": 1, "update": 2, "keys": 2, "values": 2, "attention": 3}[sight.signal.kind]
    if sight.signal.kind == "update":
        return torch.stack([gather_rows(side, entry) for side in sight.value])
    return gather_rows(sight.value, entry, axis)


def _everything(visual_row: Tensor) -> Tensor:
    every = torch.arange(visual_row.shape[1], device=visual_row.device).expand_as(visual_row)
    return every.masked_fill(visual_row < 0, -1)


def _refuse_unbuilt(selection: Selection, method: str, site: Site) -> None:
    for part, given in (("merge", selection.merge), ("revive", selection.revive)):
        if given is not None:
            raise ValueError(
                f"pruner {method!r} returned a Selection with {part} at {site}, which is not built yet. "
                "Return keep alone."
            )


def _check_inputs(host: Host, inputs: dict[str, Any]) -> None:
    if host.model.training:
        raise ValueError("The model is in training mode. Call model.eval(); pruning is built for inference only.")
    if inputs.get("labels") is not None:
        raise ValueError("labels were passed, but logits of dropped tokens do not exist. Compute the loss yourself.")
    asked = inputs.get("logits_to_keep")
    if isinstance(asked, Tensor) or (isinstance(asked, int) and asked > 1):
        raise ValueError(
            f"logits_to_keep is {asked}, but places of the unpruned prompt do not exist behind a cut. Pass 0 "
            "or 1; "
            "assisted decoding (assistant_model, prompt_lookup_num_tokens) asks for more and is not "
            "supported."
        )
