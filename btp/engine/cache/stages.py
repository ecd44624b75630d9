"""Cache stages (llm.cache): eviction behind a layer's attention, in prefill and in every decode step.

Everything happens inside the layer's attention function: a decode step gets its mask from what the layer's cache holds,
and once the layer has attended, signals are computed, the method decides, and slots leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from btp.core.cache_pruner import every_of, evicts_nothing, scope_of
from btp.core.host import Host
from btp.core.pruner import Pruner
from btp.core.schedule import Stage
from btp.core.signals import Signals
from btp.core.slots import Slots, allowed
from btp.core.trace import Evicted
from btp.engine.cache.decide_eviction import ask
from btp.engine.cache.layer_slots import Held
from btp.engine.cache.scope import restricted
from btp.engine.cache.slot_signals import one_row, slot_signal
from btp.engine.checks.plan import PlannedStage
from btp.engine.checks.signals import attention_name
from btp.engine.checks.sliding_window import LayerKind
from btp.engine.decoder import kv_cache as kv
from btp.engine.decoder.masks_positions import decode_mask
from btp.engine.decoder.prefill import Run
from btp.engine.hooks.arguments import Binding
from btp.engine.hooks.attention_registry import Attending, stand_around_attention
from btp.engine.hooks.deferred_checks import Doubts
from btp.engine.hooks.slot_masks import as_mask, seen_slots


class CacheStages:
    """The cache stages of one attach.

    Args:
        host: the model.
        pruner: decides; None where no stage asks.
        plan: all stages, one for each layer.
        kinds: Kinds of the decoder layers.
        doubts: collects checks on tensor content.
        current: gives the run whose forward is under way, or None.
    """

    def __init__(
        self,
        host: Host,
        pruner: Pruner | None,
        plan: Sequence[PlannedStage],
        kinds: Sequence[LayerKind],
        doubts: Doubts,
        current: Callable[[], Run | None],
    ) -> None:
        self._host, self._pruner, self._kinds = host, pruner, kinds
        self._doubts, self._current = doubts, current
        self._stages = {p.stage.site.layer: p for p in plan if p.stage.site.kind == "cache"}
        self._attention = attention_name(host)
        self._in_order = bool(getattr(pruner, "in_order", True))
        self._accumulates = bool(getattr(pruner, "accumulates", False))
        self._attended: set[int] = set()

    def open(self, undo: ExitStack) -> None:
        """Register what is needed; closing the stack takes it back."""
        if not self._stages:
            return
        assert self._host.decoder is not None  # cache stages are refused without
        layers = self._host.towers["llm"].layers
        for at in self._stages:
            hook = layers[at].register_forward_pre_hook(self._find_cache(Binding(layers[at])), with_kwargs=True)
            undo.callback(hook.remove)
        stand_around_attention(self._host.decoder, dict(enumerate(layers)), self._stand, undo)

    def begin(self) -> None:
        """A forward starts."""
        self._attended.clear()

    def check_followed(self) -> None:
        """Make sure that every layer with a stage attended through the registry.

        Raises:
            RuntimeError: one was passed over.
        """
        lost = sorted(self._stages.keys() - self._attended)
        if lost:
            raise RuntimeError(
                f"The stage at llm.cache.{lost[0]} was passed over in a forward of {type(self._host.model).__name__}: "
                "the layer's attention did not pass through the attention registry of transformers. This family needs "
                "an adapter in btp.models."
            )

    def _find_cache(self, binding: Binding) -> Callable:
        name = kv.argument(binding)

        def look(module, args, kwargs):
            run = self._current()
            if run is not None and name is not None and run.in_prefill:
                run.cache = binding.read(args, kwargs).get(name)

        return look

    def _stand(self, now: Attending) -> Any:
        run = self._current()
        if run is None:
            return now.attend(now.own)
        self._attended.add(now.at)
        planned = self._stages.get(now.at)
        if run.in_prefill:
            out = now.attend(now.own)
            if planned is not None:
                run.held[now.at] = self._open(run, now)
                self._decide(run, planned, now, run.held[now.at])
            return out
        if planned is None:
            return now.attend(self._plain_mask(run, now))
        held = run.held[now.at]
        self._check_window(run, now.at)
        position = run.newest_position(now.query.device)
        held.grow(position)
        mask = None
        if not held.even:
            mask = as_mask(seen_slots(position, held.position[:, :1]), self._attention, now.query, now.key.shape[1])
        if now.odd or not self._looks(run, planned, held):
            out = now.attend(mask)
            self._decide(run, planned, replace(now, mask=mask), held)
            return out
        out, probs = one_row(now, mask)
        self._decide(run, planned, replace(now, mask=mask), held, probs)
        return out, (probs.to(out.dtype) if self._attention == "eager" else None)

    def _looks(self, run: Run, planned: PlannedStage, held: Held) -> bool:
        """Whether slots leave in this step by what its row looks at; otherwise the layer's own function attends."""
        asked = any(signal.kind == "attention" for signal in planned.needs)
        if not asked or not self._is_due(run, planned.stage):
            return False
        shown = restricted(held, scope_of(planned.stage))[0] if scope_of(planned.stage) != "all" else held
        most = allowed(planned.stage, run.total(scope_of(planned.stage)))
        return any(n > count for n, count in zip(shown.alive, most, strict=True))

    def _is_due(self, run: Run, stage: Stage) -> bool:
        turn = stage.phase != "decode" if run.in_prefill else run.call.decode_steps % every_of(stage) == 0
        return turn and not evicts_nothing(stage) and (run.in_prefill or stage.phase != "prefill")

    def _open(self, run: Run, now: Attending) -> Held:
        """The slots of a layer behind its prefill, padding and all."""
        if run.cache is None:
            raise ValueError(
                f"The stage at llm.cache.{now.at} evicts from the cache, but this forward has none (use_cache=False), "
                "so it would have no effect. Let the model use its cache, and score an answer token by token behind "
                "the prompt."
            )
        self._check_window(run, now.at)
        view, ledger, device = run.ledger.at(now.at), run.ledger, now.query.device
        place = view.place.clamp(min=0)
        rank = (ledger.valid.cumsum(1) - 1).gather(1, place)
        position = rank.masked_fill(~view.attended, -1)[:, None]
        visual = (ledger.visual.gather(1, place) & view.attended)[:, None]
        alive = tuple(text + n for text, n in zip(ledger.text_counts, view.visual_counts, strict=True))
        return Held(position.to(device), visual.to(device), alive, view.visual_counts)

    def _plain_mask(self, run: Run, now: Attending) -> Tensor | None:
        """Of a decode step in a layer without a stage, whose slots are the rows that entered it."""
        mask = decode_mask(run, run.ledger.at(now.at), now.query, self._attention, self._kinds[now.at])
        return mask if mask is None else mask[..., -now.key.shape[2] :]

    def _check_window(self, run: Run, at: int) -> None:
        window = self._kinds[at].window
        if window is not None and max(run.host_length) >= window:
            raise ValueError(
                f"Layer {at} sees {window} tokens ({self._kinds[at].name}) and forgets older ones by itself, but "
                f"prompt and answer have {max(run.host_length)}: which token a slot holds would be lost. Shorten the "
                "prompt, or leave this layer out: name the others as llm.cache.N."
            )

    def _decide(self, run: Run, planned: PlannedStage, now: Attending, held: Held, probs: Tensor | None = None) -> None:
        stage, prefill = planned.stage, run.in_prefill
        if stage.phase == "prefill" and not prefill:
            return
        due = self._is_due(run, stage)
        shown, back = restricted(held, scope_of(stage))
        slots = self._slots(run, planned, now, shown, due)
        wanted = slots.keep_counts(stage)
        adaptive = self._pruner is not None and self._pruner.adaptive and due
        if wanted == slots.host_alive and not (adaptive or self._accumulates):
            return
        if stage.withdraws_all and due:
            stay, counts = torch.zeros_like(shown.position, dtype=torch.bool), (0,) * len(wanted)
        else:
            stay, counts = self._ask(run, planned, now, slots, shown, back.index, probs)
        if counts == slots.host_alive:
            back.carry(held, shown)
            return
        stay, kept = back.whole(held, shown, stay, counts)
        gone = held.evict(run.cache.layers[now.at], stay, kept, not self._in_order and not prefill)
        back.count(held, counts)
        run.call.evicted.append(Evicted(stage.site, run.call.decode_steps, slots.host_alive, counts, gone))

    def _slots(self, run: Run, planned: PlannedStage, now: Attending, shown: Held, due: bool) -> Slots:
        B, heads, n = len(shown.alive), now.key.shape[1], shown.size
        total = run.total(scope_of(planned.stage))
        length = run.lengths(now.query.device)
        return Slots(
            position=shown.position.expand(B, heads, n),
            length=length,
            prompt=length - run.call.decode_steps,
            layer=now.at,
            layers=self._host.num_layers,
            groups=now.query.shape[1] // heads,
            new=now.query.shape[2],
            prefill=run.in_prefill,
            due=due,
            carried={name: x.expand(B, heads, n) for name, x in shown.carried.items()},
            host_total=tuple(total),
            host_alive=shown.alive,
            host_length=run.host_length,
            running=shown.running,
        )

    def _ask(
        self,
        run: Run,
        planned: PlannedStage,
        now: Attending,
        slots: Slots,
        shown: Held,
        index: Tensor | None,
        probs: Tensor | None,
    ) -> tuple[Tensor, tuple[int, ...]]:
        """[B, H, n] bool which of the slots shown stay, and how many per row."""
        assert self._pruner is not None  # held by make_plan
        view = run.ledger.at(now.at)
        attended = view.attended.to(now.query.device) if run.in_prefill else torch.ones_like(slots.length)[:, None] > 0
        even = view.even if run.in_prefill else True
        seen, rows_valid = {}, {}
        with torch.no_grad():
            for signal in planned.needs:
                if signal.kind == "attention" and now.odd:
                    raise ValueError(
                        f"Layer {now.at} computes attention with {', '.join(now.odd)}, which attention signals do not "
                        "follow yet. Use a method without attention signals on this model."
                    )
                value, real = slot_signal(signal, now, attended, even, probs)
                seen[signal] = value if index is None else _narrowed(signal.kind, value, index)
                if real is not None:
                    rows_valid[signal] = real
            answer = ask(self._pruner, planned.stage, slots, Signals(seen, rows_valid), self._doubts)
        shown.carried, shown.running = dict(answer.carried), answer.running
        return answer.stay, answer.counts


def _narrowed(kind: str, value: Tensor, index: Tensor) -> Tensor:
    """Keys and values [B, Hkv, n, d], attention [B, Hq, R, n], of the slots at index [B, H, m] alone."""
    if kind != "attention":
        wide = index.expand(-1, value.shape[1], -1)[..., None].expand(-1, -1, -1, value.shape[-1])
        return value.gather(2, wide)
    heads = value.shape[1]
    wide = index if index.shape[1] == 1 else index.repeat_interleave(heads // index.shape[1], dim=1)
    return value.gather(3, wide[:, :, None].expand(-1, heads, value.shape[2], -1))
