"""Pruning between decoder layers: hooks that ask the pruner, cut the hidden states, and adjust masks and positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from btp.core.host import Host
from btp.core.keep import on_device
from btp.core.ledger import View
from btp.core.pruner import Pruner, Tokens
from btp.core.signals import Signal
from btp.core.trace import StageRecord, Trace
from btp.engine.cache.stages import CacheStages
from btp.engine.checks.hooks_ran import check_followed
from btp.engine.checks.plan import PlannedStage
from btp.engine.checks.signals import attention_name, unseen_message
from btp.engine.checks.sliding_window import check_flash_windows, layer_kinds
from btp.engine.decide import Decider, Decision
from btp.engine.decoder import kv_cache as kv
from btp.engine.decoder.deepstack import Deepstack
from btp.engine.decoder.lazy.stages import LazyStages
from btp.engine.decoder.masks_positions import check_step, decode_companions, needs_nothing, prefill_companions
from btp.engine.decoder.prefill import Run, count_held, open_run
from btp.engine.decoder.probe import Probe, Sight
from btp.engine.hooks.arguments import Binding
from btp.engine.hooks.attention_rows import gather_rows, last_row
from btp.engine.hooks.deferred_checks import Doubts
from btp.engine.hooks.encoder_calls import Encoders
from btp.engine.hooks.forward_lock import Turn
from btp.engine.hooks.root_forward import stand_around
from btp.engine.vision.choose_stream import vision_of
from btp.engine.vision.passed_frames import PassedFrames
from btp.engine.vision.projector_frames import ProjectedFrames
from btp.engine.vision.tower_pass import rows_valid as tower_rows_valid

_AXIS = {"hidden": 1, "queries": 2, "keys": 2, "values": 2, "attention": 3, "preview": 3}  # of the tokens
_SIDES = ("update", "change", "rotary")  # [2, B, N, ...]


class Stream:
    """The hooks of one attach, and the run under way.

    Args:
        host: the model.
        pruner: decides; None where no stage asks.
        plan: stages in order.
        trace: receives one call per prefill.
    """

    def __init__(self, host: Host, pruner: Pruner | None, plan: tuple[PlannedStage, ...], trace: Trace) -> None:
        self._host, self._plan, self._trace = host, plan, trace
        self._doubts = Doubts()
        self._decider = Decider(pruner, self._doubts)
        self._turn = Turn()
        self._run: Run | None = None  # whose forward is under way
        self._runs: WeakKeyDictionary[Any, Run] = WeakKeyDictionary()  # by the cache that goes on with them
        self._sights: dict[Signal, Sight] = {}
        self._attention = attention_name(host)  # before a probe renames it
        self._kinds = layer_kinds(host) if plan else ()
        self._between = tuple(planned for planned in plan if planned.stage.site.kind != "cache")
        self._cuts = tuple(planned for planned in self._between if not planned.stage.in_decode)
        signals = [signal for planned in self._cuts for signal in planned.needs]
        self._frames = PassedFrames()
        self._vision = vision_of(host, self._decider, self._cuts, signals, self._frames)
        self._projected = ProjectedFrames(host, signals, self._frames)
        self._encoders = Encoders(host, self._turn, self._encoding)
        self._probe = Probe(host, [s for s in signals if s.kind != "projected"], self._prefilling, self._note)
        self._lazy = LazyStages(host, self._decider, [p for p in plan if p.stage.in_decode], self._current)
        firsts = (planned.stage.site.first_layer for planned in self._cuts)
        self._first = min(*firsts, self._lazy.first, host.num_layers)
        self._cache_stages = CacheStages(host, pruner, plan, self._kinds, self._doubts, self._current)
        first = self._cuts[0].stage if self._cuts else None
        self._reads_grid = first is not None and not first.withdraws_all and bool(pruner and pruner.needs_grid(first))
        self._deepstack = Deepstack(host, self._doubts, self._first, self._prefilling)

    def open(self) -> ExitStack:
        """Register every hook; closing the stack removes them."""
        with ExitStack() as undo:
            layers = self._host.towers["llm"].layers
            stand_around(self._host.model, self._turn, self._follow, undo)
            self._encoders.open(undo)
            if self._vision.needed:
                self._vision.open(undo)
                enter = layers[0].register_forward_pre_hook(self._enter(Binding(layers[0])), with_kwargs=True)
                undo.callback(enter.remove)  # in front of the probe, which sees what entered
            self._projected.open(undo)
            undo.callback(self._frames.clear)
            self._lazy.open(undo)  # inside of the probe, whose previews end before they get here
            undo.enter_context(self._probe)
            self._deepstack.open(undo)
            for at in range(self._first, len(layers)):
                hook = layers[at].register_forward_pre_hook(self._before_layer(at), with_kwargs=True)
                undo.callback(hook.remove)
            self._cache_stages.open(undo)  # around the probe, which sees the masks that layers get
            return undo.pop_all()

    def settle(self) -> None:
        """Read what was left open on the device: doubts and the last call's indices."""
        for call in self._trace.calls[-1:]:
            call.settle()
        self._doubts.settle()

    def _current(self) -> Run | None:
        return self._run if self._turn.mine else None

    def _prefilling(self) -> Run | None:
        run = self._current()
        return run if run is not None and run.in_prefill else None

    def _encoding(self, kind: str, arguments: Mapping[str, Any]) -> None:
        """Pictures or videos are about to be encoded."""
        self._frames.encoding(kind)
        if self._vision.needed:
            self._vision.encoding(kind, arguments)

    def _note(self, run: Run, sight: Sight) -> None:
        self._sights[sight.signal] = sight

    def _follow(self, inputs: Mapping[str, Any], proceed: Callable[[], Any]) -> Any:
        """One forward of the root module."""
        cache = kv.given(inputs)
        if self._plan:
            _check_inputs(self._host, inputs)
            kv.check_cache(cache)
        try:
            run = self._step(inputs, cache) if kv.is_filled(cache) else self._prefill(inputs)
            self._cache_stages.begin()
            output = proceed()
            if self._plan:
                check_followed(run, self._host, self._between, self._first)
                self._cache_stages.check_followed()
            if run.in_prefill:
                self._filled(run, kv.returned(output) if cache is None else cache)
            count_held(run)
            return output
        finally:
            if isinstance(cache, kv.CutCache):
                cache.followed = False
            self._frames.clear()
            if self._run is not None:
                self._run.cache = None  # which keeps the run, and not the other way round
                self._run.memo.clear()
            self._run = None
            self._sights.clear()

    def _prefill(self, inputs: Mapping[str, Any]) -> Run:
        self.settle()
        inputs = self._encoders.told(inputs)
        self._run = run = open_run(self._host, inputs, self._reads_grid)
        self._trace.calls.append(run.call)
        self._frames.begin(inputs)
        self._vision.begin(inputs)
        if self._plan:
            check_flash_windows(self._kinds, self._attention, run.prompt_length)
        if self._cuts:
            self._expect_text_last(run)
        return run

    def _step(self, inputs: Mapping[str, Any], cache: Any) -> Run:
        run = self._runs.get(cache)
        if run is None:
            raise ValueError(
                "This cache (past_key_values) was filled outside the present attach, or is a copy. Start the prompt "
                "with an empty cache inside the attach, and go on with that one."
            )
        self._run = run
        if run.in_prefill:
            self._doubts.settle()  # the first token was read from this prefill: the device has caught up
        run.in_prefill, run.cache, run.undisturbed = False, cache, False
        run.entered.clear()
        run.call.decode_steps += 1
        if self._plan:
            check_step(run, inputs, self._doubts)
        if isinstance(cache, kv.CutCache):
            cache.followed = True
        return run

    def _expect_text_last(self, run: Run) -> None:
        """The last token's logits are read: it must not be one that a stage may withdraw."""
        visual = run.ledger.visual.gather(1, last_row(run.ledger.now))
        self._doubts.expect(
            ~visual.any(),
            "A prompt ends in a visual token, from which the next token is read, but a stage might withdraw it. "
            "Put text behind the last picture, and use no chunked prefill (prefill_chunk_size).",
        )

    def _filled(self, run: Run, cache: Any) -> None:
        """Record a prefill, and remember whose cache it filled."""
        if self._plan:
            kv.check_cache(cache)
        call, views = run.call, [run.ledger.at(at) for at in range(self._host.num_layers)]
        call.visual = [view.visual_counts for view in views]
        call.tokens = [tuple(map(sum, zip(call.text, counts, strict=True))) for counts in call.visual]
        self._lazy.record(run)
        call.slots, call.cache_bytes = kv.slots(cache), kv.size_bytes(cache)
        run.windows = tuple(kv.windows(cache))
        if cache is not None:
            self._runs[cache] = run
            if len(run.ledger.views) > 1 or run.held or run.lazy is not None:
                kv.lock(cache, evicted=bool(run.held) or run.lazy is not None)

    def _enter(self, binding: Binding) -> Callable:
        """Withdraw from the prompt what left in the vision tower."""

        def enter(module, args, kwargs):
            run = self._prefilling()
            if run is None:
                return None
            hidden = binding.read(args, kwargs)[binding.first]
            found = self._vision.withdrawn(run)
            if found is None:
                return None
            decision, renumber = found
            return binding.replace(args, kwargs, {binding.first: self._cut(run, 0, decision, renumber, hidden)})

        return enter

    def _before_layer(self, at: int) -> Callable:
        binding = Binding(self._host.towers["llm"].layers[at])
        stages = [p for p in self._cuts if p.stage.site.tower == "llm" and p.stage.site.first_layer == at]

        def enter(module, args, kwargs):
            run = self._current()
            if run is None:
                raise RuntimeError(
                    f"A decoder layer ran outside {type(self._host.model).__name__}.forward, where the "
                    "engine cannot know the prompt. Call the model itself; if that is a wrapper around another model "
                    "that was called, give the one inside: LVLM(wrapper.model)."
                )
            run.entered.append(at)
            if run.undisturbed:
                return None
            arguments = binding.read(args, kwargs)
            hidden = moved = arguments[binding.first]
            if at == self._first and not run.in_prefill:
                run.undisturbed = self._lazy.first >= self._host.num_layers and needs_nothing(
                    run, arguments.get("attention_mask"), self._attention, self._kinds
                )
            if run.in_prefill:
                for planned in stages:
                    if any(signal.kind == "preview" for signal in planned.needs):
                        view = run.ledger.now
                        self._probe.preview(run, at, moved, view, self._companions(run, moved, arguments, at, view))
                    moved = self._pass(run, planned, at, moved)
                    if planned.stage.site.kind == "input" and moved is not hidden:
                        self._probe.entered(run, moved)
            changes = {} if moved is hidden else {binding.first: moved}
            if run.ledger.at(at) is not run.ledger.views[0][1]:
                changes |= self._companions(run, moved, arguments, at, run.ledger.at(at))
            if at >= self._lazy.first:
                changes |= self._lazy.enter(run, at, binding.first, moved, arguments | changes)
            return binding.replace(args, kwargs, changes) if changes else None

        return enter

    def _companions(self, run: Run, hidden: Tensor, arguments: dict[str, Any], at: int, view: View) -> dict[str, Any]:
        """Masks, positions and RoPE of layer `at` for the tokens of a view."""
        whole = {name: arguments[name] for name in self._host.towers["llm"].companions if name in arguments}
        if view is run.ledger.views[0][1]:
            return whole
        kind = self._kinds[at]
        changes = run.memo.get((view, kind, hidden.device))
        if changes is None:
            if run.in_prefill:
                changes = prefill_companions(self._host, run, view, hidden, whole, self._attention, kind)
            else:
                changes = decode_companions(self._host, run, view, hidden, whole, self._attention, kind, at)
            run.memo[view, kind, hidden.device] = changes
        return changes

    def _pass(self, run: Run, planned: PlannedStage, at: int, hidden: Tensor) -> Tensor:
        """Let one stage decide and move; hands the hidden states back untouched where nothing changes."""
        stage, ledger, view = planned.stage, run.ledger, run.ledger.now
        before = view.visual_counts
        pairs = zip(ledger.total, before, strict=True)
        counts = tuple(stage.kept(total, alive) for total, alive in pairs)
        if max(before) == 0 and (view.closed or stage.positions != "renumber"):
            run.call.stages.append(StageRecord(stage.site, before, before, view.visual_index))
            return hidden
        decision = self._decider.plain(view.visual_row, before, counts) or self._ask(run, planned, hidden, counts)
        renumber = stage.positions == "renumber"
        if decision.changes(before) or (renumber and not view.closed):
            hidden = self._cut(run, at, decision, renumber, hidden)
        now = run.ledger.now
        sizes = now.size if decision.sizes is not None else None
        run.call.stages.append(StageRecord(stage.site, before, decision.counts, now.visual_index, sizes))
        return hidden

    def _cut(self, run: Run, at: int, decision: Decision, renumber: bool, hidden: Tensor) -> Tensor:
        self._deepstack.follow(decision)
        return _cut(run, at, decision, renumber, hidden)

    def _ask(self, run: Run, planned: PlannedStage, hidden: Tensor, counts: tuple[int, ...]) -> Decision:
        seen, rows_valid = {}, {}
        for signal in planned.needs:
            if signal.kind == "projected":
                seen[signal] = self._projected.seen()
                continue
            if signal.site.tower == "vision":
                seen[signal] = self._vision.seen(signal)
                rows_valid |= tower_rows_valid({signal: seen[signal]})
                continue
            sight = self._sights.get(signal)
            if sight is None:
                raise RuntimeError(unseen_message(f"pruner {self._decider.pruner.name!r}", signal))  # type: ignore[union-attr]
            seen[signal] = _restrict(sight, run)
            if sight.rows_valid is not None:
                rows_valid[signal] = sight.rows_valid
        tokens = make_tokens(run, hidden, planned, seen, rows_valid)
        return self._decider.ask(planned.stage, tokens, seen, rows_valid, counts)


def _cut(run: Run, at: int, decision: Decision, renumber: bool, hidden: Tensor) -> Tensor:
    """[B, S', D] the rows that stay, with what flowed into them."""
    old, keep = run.ledger.now, decision.keep.to(run.ledger.visual.device)
    sizes = None if decision.sizes is None else decision.sizes.to(keep.device)
    carried = {name: x.to(keep.device).gather(1, keep.clamp(min=0)) for name, x in decision.carried.items()}
    run.ledger = run.ledger.cut(at, keep, decision.counts, renumber, sizes, carried)
    new = run.ledger.now
    rows = run.ledger.rows_from(old, new, keep).to(hidden.device)
    moved = hidden.gather(1, rows[..., None].expand(-1, -1, hidden.shape[-1]))
    if decision.states is None:
        return moved
    row = new.visual_row.to(hidden.device)
    spare = torch.cat([moved, moved[:, :1]], dim=1)  # padding writes behind the rows
    target = row.masked_fill(row < 0, moved.shape[1])[..., None].expand_as(decision.states)
    return spare.scatter(1, target, decision.states.to(hidden))[:, : moved.shape[1]]


def make_tokens(run: Run, hidden: Tensor, planned: PlannedStage, seen: dict, rows_valid: dict) -> Tokens:
    """The visual tokens alive in front of a stage, as a pruner is shown them.

    Args:
        hidden: [B, S', D], rows of the ledger's latest view.
        seen: signals over these tokens.
        rows_valid: Real rows of signals with padded rows.
    """
    view, device = run.ledger.now, hidden.device
    where = run.places(view, device)
    text = next((s for s in planned.needs if s.kind == "hidden" and s.rows == "text"), None)
    if text is not None and (text.site.layer != max(planned.stage.site.layer, 0) or text.form is not None):
        text = None
    return Tokens(
        hidden=gather_rows(hidden, view.visual_row),
        position=where[..., 0],
        coord=where[..., 1:4],
        image=where[..., 4],
        size=view.size.to(device),
        valid=view.visual_valid.to(device),
        total=on_device(run.ledger.total, device),
        index=view.visual_index.to(device),
        text=None if text is None else seen[text],
        text_valid=None if text is None else rows_valid[text],
        picture=where[..., 5],
        slot=where[..., 6],
        row=view.visual_row.to(device),
        carried={name: x.to(device) for name, x in view.carried.items()},
        host_total=run.ledger.total,
        host_alive=view.visual_counts,
        host_grid=run.host_grid if view is run.ledger.views[0][1] else None,
    )


def _restrict(sight: Sight, run: Run) -> Tensor:
    """A sight's value over the visual tokens alive now, where some went since it was seen."""
    now, signal = run.ledger.now, sight.signal
    over_tokens = signal.kind in ("attention", "preview") or signal.rows is None
    if sight.view is now or not over_tokens:
        return sight.value
    entry = run.ledger.entries(sight.view, now)
    if signal.kind in _SIDES:
        return torch.stack([gather_rows(side, entry) for side in sight.value])
    return gather_rows(sight.value, entry, _AXIS[signal.kind])


def _check_inputs(host: Host, inputs: Mapping[str, Any]) -> None:
    if host.model.training:
        raise ValueError("The model is in training mode. Call model.eval(); pruning is built for inference only.")
    if inputs.get("labels") is not None:
        raise ValueError("labels were passed, but logits of dropped tokens do not exist. Compute the loss yourself.")
    asked = inputs.get("logits_to_keep")
    if isinstance(asked, Tensor) or (isinstance(asked, int) and asked > 1):
        raise ValueError(
            f"logits_to_keep is {asked}, but places of the unpruned prompt do not exist behind a cut. Pass 0 "
            "or 1; assisted decoding (assistant_model, prompt_lookup_num_tokens) asks for more and is not supported."
        )
