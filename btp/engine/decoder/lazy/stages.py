"""Stages that act in decode (LazyLLM): tokens skip layers in every step, and may be revived.

A pruner says which tokens the layers behind a stage see in this forward. The rest follows: a token that has its K/V
there is only a key; a row of this forward goes on; one that stayed behind before is computed from where it was parked;
and a row that is not seen is parked. So each token passes each layer at most once. At a stage of phase decode the
prompt passes whole, so that its tokens are keys and values that later steps see or do not see.

Source: Fu et al. 2024, arXiv:2407.14057, section 3, where it is called LazyLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from btp.core.host import Host
from btp.core.keep import on_device
from btp.core.ledger import first_places, last_places
from btp.core.pruner import Tokens
from btp.core.signals import Signal
from btp.core.topk import marked
from btp.core.trace import StageRecord, StepRecord
from btp.engine.checks.plan import PlannedStage
from btp.engine.checks.signals import attention_name, unseen_message
from btp.engine.decide import Decider
from btp.engine.decoder.lazy.stage_settings import Rule
from btp.engine.decoder.lazy.state import Behind, State
from btp.engine.decoder.prefill import Run
from btp.engine.hooks.attention_registry import Attending, stand_around_attention
from btp.engine.hooks.attention_rows import slot_attention
from btp.engine.hooks.slot_masks import as_mask, seen_slots


class LazyStages:
    """The stages of one attach that act in decode.

    Args:
        host: the model.
        decider: asks the pruner.
        plan: these stages, in order.
        current: gives the run whose forward is under way, or None.
    """

    def __init__(
        self, host: Host, decider: Decider, plan: Sequence[PlannedStage], current: Callable[[], Run | None]
    ) -> None:
        self._host, self._decider, self._current = host, decider, current
        self._plan = tuple(plan)
        self._rules = tuple(Rule.of(planned.stage) for planned in plan)
        self._at = {planned.stage.site.layer: number for number, planned in enumerate(plan)}
        self._attention = attention_name(host)

    @property
    def first(self) -> int:
        """First decoder layer behind one of them; more than there are where there is none."""
        return min(self._at, default=self._host.num_layers)

    def open(self, undo: ExitStack) -> None:
        """Stand around attention, and behind the last layer; closing the stack ends it."""
        if not self._plan:
            return
        assert self._host.decoder is not None  # held by make_plan: they stand between its layers
        layers = self._host.towers["llm"].layers
        inside = {at: layers[at] for at in range(self.first - 1, len(layers))}
        stand_around_attention(self._host.decoder, inside, self._stand, undo)
        undo.callback(layers[len(layers) - 1].register_forward_hook(self._newest_alone).remove)

    def enter(self, run: Run, at: int, first: str, hidden: Tensor, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What changes among a layer's arguments.

        Args:
            at: the layer.
            first: name of the argument that holds the hidden states.
            hidden: these, [B, R, D].
            arguments: Arguments of the layer, as they would be without these stages.
        """
        state, changes = self._state(run), {}
        if at == self.first:
            state.collect(arguments)
        if at in self._at:
            moved = self._pass(run, state, self._at[at], hidden)
            if moved is not hidden:
                changes[first] = moved
        if not state.plain:
            if hidden.device not in state.memo:
                state.memo[hidden.device] = state.tables_of_rows(hidden.device)
            changes |= state.memo[hidden.device]
        return changes

    def record(self, run: Run) -> None:
        """Put what the layers behind these stages got in the prefill into the trace."""
        for layer, visual, tokens in run.lazy.entered if run.lazy is not None else ():
            for counts, found in ((run.call.visual, visual), (run.call.tokens, tokens)):
                counts[layer:] = [found] * (len(counts) - layer)

    def _state(self, run: Run) -> State:
        if run.lazy is None:
            run.lazy = State(run)
        if not run.in_prefill:
            run.lazy.advance(run.call.decode_steps)
        return run.lazy

    def _stand(self, now: Attending) -> Any:
        """One layer's attention: look at what the stage behind it asks for, and say who sees whom."""
        run = self._current()
        if run is None:
            return now.attend(now.own)
        state, number = self._state(run), self._at.get(now.at + 1)
        if number is not None and self._asks(run, number):
            self._look(now, state, self._plan[number].needs)
        if state.plain:
            return now.attend(now.own)
        device = now.query.device
        if device not in state.masks:
            state.masks[device] = self._mask(state, now)
        return now.attend(state.masks[device])

    def _look(self, now: Attending, state: State, needs: Sequence[Signal]) -> None:
        if needs and now.odd:
            raise ValueError(
                f"Layer {now.at} computes attention with {', '.join(now.odd)}, which attention signals do not follow "
                "yet. Use a method without attention signals on this model."
            )
        if now.key.shape[2] != state.slots.shape[1]:
            raise RuntimeError(
                f"Decoder layer {now.at} attends to {now.key.shape[2]} slots where {state.slots.shape[1]} tokens are "
                "known. This family needs an adapter in btp.models."
            )
        seen, row = state.seen_slots() >= 0, state.row_of().gather(1, state.newest)
        for signal in needs:
            found = slot_attention(now.query, now.key, now.scaling, row, seen, str(signal.form))
            state.sights[signal] = found

    def _mask(self, state: State, now: Attending) -> Tensor | None:
        if self._attention == "sdpa" and state.even:
            return None
        seen = seen_slots(state.rows, state.seen_slots()[:, None])
        return as_mask(seen, self._attention, now.query, now.key.shape[1])

    def _asks(self, run: Run, number: int) -> bool:
        rule = self._rules[number]
        return rule.stage.phase == "both" if run.in_prefill else rule.revive

    def _pass(self, run: Run, state: State, number: int, hidden: Tensor) -> Tensor:
        """Let one stage decide; hands on the rows of the layers behind it."""
        rule, behind = self._rules[number], state.behind.get(number)
        rowed = marked(state.rows, state.total)
        have = torch.zeros_like(rowed) if behind is None else marked(behind.slots, state.total)
        if self._asks(run, number):
            chosen, shares, dropped = self._choose(run, state, number)
        else:  # who stayed behind does so for good, and nobody else does
            chosen, shares, dropped = state.alive & (have | rowed), (), False
        go, stay = chosen & ~have, rowed & ~chosen
        back = go & ~rowed
        visual = _padded(run.ledger.visual, state.total)
        masks = (rowed, go, back, stay, chosen, state.alive & ~chosen, visual & state.alive, visual & chosen)
        facts = torch.stack([mask.sum(1) for mask in masks]).tolist()  # one host sync: rows come in rectangles
        entered, computed, revived, stayed, seen, unseen, before, after = (tuple(counts) for counts in facts)
        state.whole = (state.whole and not dropped) if behind is None else behind.whole
        state.plain = state.plain and state.whole and not dropped
        if behind is None:
            behind = state.behind[number] = Behind(state.slots[:, :0], state.whole, shares)
        moved = hidden
        if not state.plain:
            moved = self._move(state, behind, hidden, (go, back, stay), (computed, revived, stayed), rule.revive)
        behind.slots = torch.cat([behind.slots, state.rows], dim=1)
        state.go_on(behind.slots, chosen, even=self._even(run, state, computed, seen, behind.slots))
        site = rule.stage.site
        state.hold(site.layer, computed)
        parked = stayed if rule.revive else (0,) * len(stayed)
        held = behind.parked.counts or (0,) * len(stayed)
        rows, looked = state.by_position(go), state.by_position(chosen)
        if self._at[self.first] == number:
            run.call.steps.append([])
        run.call.steps[-1].append(StepRecord(site, entered, computed, revived, parked, held, unseen, rows, looked))
        if run.in_prefill:
            state.entered.append((site.layer, after, computed))
            which = first_places(chosen & visual, max(after))
            index = (visual.cumsum(1) - 1).gather(1, which.clamp(min=0)).masked_fill(which < 0, -1)
            run.call.stages.append(StageRecord(site, before, after, index))
        return moved

    def _even(self, run: Run, state: State, computed: tuple, seen: tuple, slots: Tensor) -> bool:
        """Whether every row sees every slot up to its own, so that a mask needs no tensor."""
        R = state.rows.shape[1]
        if run.in_prefill:
            return min(computed) == R
        return R == 1 and min(seen) == slots.shape[1]

    def _move(
        self,
        state: State,
        behind: Behind,
        hidden: Tensor,
        masks: tuple[Tensor, Tensor, Tensor],
        counts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
        revive: bool,
    ) -> Tensor:
        """[B, R', D] states of the rows behind a stage; parks and gives back."""
        go, back, stay = masks
        computed, revived, stayed = counts
        row_of, D = state.row_of(), hidden.shape[-1]
        rows = last_places(go, max(computed))

        def taken(column: Tensor) -> Tensor:
            at = row_of.gather(1, column.clamp(min=0)).clamp(min=0).to(hidden.device)
            return hidden.gather(1, at[..., None].expand(-1, -1, D))

        moved = taken(rows)
        if max(revived):
            returns = (back.gather(1, rows.clamp(min=0)) & (rows >= 0)).to(hidden.device)
            column = rows.masked_fill(~returns.to(rows.device), -1)
            states = behind.parked.take(column, state.total, revived).to(hidden)
            moved = torch.where(returns[..., None], states, moved)
        if revive and max(stayed):
            column = first_places(stay, max(stayed))
            behind.parked.put(column, taken(column), stayed)
        state.rows = rows
        return moved

    def _choose(self, run: Run, state: State, number: int) -> tuple[Tensor, tuple[float, ...], bool]:
        """[B, T] columns seen behind a stage; the share that stays of those in scope, per row; whether any goes."""
        rule, behind = self._rules[number], state.behind.get(number)
        domain = rule.domain(self._host, run, state)
        own = domain & state.alive
        free = rule.free(own, run, state)
        prompt = domain[:, : run.prompt_length]
        totals, owns, frees = (tuple(x) for x in torch.stack([m.sum(1) for m in (prompt, own, free)]).tolist())
        kept = rule.kept(self._host, run, totals, owns, () if behind is None else behind.shares)
        shares = tuple(k / n if n else 1.0 for k, n in zip(kept, owns, strict=True))
        keeps = tuple(max(f - (n - k), 0) for f, n, k in zip(frees, owns, kept, strict=True))
        if self._decider.pruner is None or not max(frees):
            return state.alive, shares, False
        column = first_places(free, max(frees))
        stays, keeps = self._ask(run, state, number, domain, column, totals, frees, keeps)
        return (state.alive & ~free) | stays, shares, keeps != frees

    def _ask(
        self,
        run: Run,
        state: State,
        number: int,
        domain: Tensor,
        column: Tensor,
        totals: tuple[int, ...],
        alive: tuple[int, ...],
        keeps: tuple[int, ...],
    ) -> tuple[Tensor, tuple[int, ...]]:
        """[B, T] bool, those of the candidates [B, N] that the pruner keeps, and how many."""
        planned, pruner = self._plan[number], self._decider.pruner
        assert pruner is not None
        if not max(keeps):
            return torch.zeros_like(domain), keeps
        behind = state.behind.get(number)
        told = {} if behind is None else behind.carried
        carried = {name: _by_candidate(value, column) for name, value in told.items()}
        tokens = _tokens(run, state, domain, column, totals, alive, keeps, carried)
        at = state.slot_of().gather(1, column.clamp(min=0)).clamp(min=0)  # [B, N]
        seen = {}
        for signal in planned.needs:
            if signal not in state.sights:
                raise RuntimeError(unseen_message(f"pruner {pruner.name!r}", signal))
            x = state.sights[signal]
            which = at.to(x.device)[:, None, None, :].expand(*x.shape[:3], -1)
            seen[signal] = x.gather(3, which).masked_fill((column < 0).to(x.device)[:, None, None, :], 0)
        decision = self._decider.ask(planned.stage, tokens, seen, {}, keeps)
        if behind is not None:
            behind.carried = {k: _by_column(v, column, state.total) for k, v in decision.carried.items()}
        if decision.states is not None or decision.ordered:
            raise ValueError(
                f"pruner {pruner.name!r} merges, exchanges or reorders tokens at {planned.stage.site}, a stage of "
                f"phase {planned.stage.phase}, where tokens stay or leave. Set phase: prefill on that stage."
            )
        keep = decision.keep.to(column.device)
        kept = column.gather(1, keep.clamp(min=0)).masked_fill(keep < 0, -1)
        return marked(kept, state.total), decision.counts

    def _newest_alone(self, module: Any, args: Any, output: Any) -> Any:
        """Behind the last layer of a decode step: one row, as came in, whoever was computed beside it."""
        run = self._current()
        if run is None or run.in_prefill or run.lazy is None or run.lazy.plain:
            return None
        return (output[0][:, -1:], *output[1:]) if isinstance(output, tuple) else output[:, -1:]


def _tokens(
    run: Run,
    state: State,
    domain: Tensor,
    column: Tensor,
    totals: tuple[int, ...],
    alive: tuple[int, ...],
    keeps: tuple[int, ...],
    carried: Mapping[str, Tensor],
) -> Tokens:
    """Candidates [B, N] as a pruner sees them; most are keys and values alone here, so that they have no states."""
    S, at, gone = run.prompt_length, column.clamp(min=0), column < 0
    beyond = gone | (column >= S)
    place = column.clamp(min=0, max=S - 1)
    coord = run.layout.coord.gather(1, place[..., None].expand(-1, -1, 3))
    return Tokens(
        hidden=torch.empty(*column.shape, 0, device=column.device),
        position=state.position.gather(1, at).masked_fill(gone, -1),
        coord=coord.masked_fill(beyond[..., None], -1),
        image=run.layout.image.gather(1, place).masked_fill(beyond, -1),
        size=torch.ones_like(column),
        valid=~gone,
        total=on_device(totals, column.device),
        index=(domain.cumsum(1) - 1).gather(1, at).masked_fill(gone, -1),
        row=state.row_of().gather(1, at).masked_fill(gone, -1),
        host_total=totals,
        host_alive=alive,
        host_keep=keeps,
        carried=carried,
    )


def _by_column(value: Tensor, column: Tensor, total: int) -> Tensor:
    """[B, total] numbers of candidates [B, N] at their columns, 0 elsewhere."""
    at = column.masked_fill(column < 0, total).to(value.device)
    return value.new_zeros(len(value), total + 1).scatter(1, at, value)[:, :total]


def _by_candidate(value: Tensor, column: Tensor) -> Tensor:
    """[B, N] numbers of columns [B, up to T] as candidates have them, 0 of those that are new or padded."""
    known = (column >= 0) & (column < value.shape[1])
    at = column.masked_fill(~known, 0).to(value.device)
    return value.gather(1, at).masked_fill(~known.to(value.device), 0)


def _padded(mask: Tensor, total: int) -> Tensor:
    """[B, total] the mask, False in further columns."""
    return torch.cat([mask, mask.new_zeros(len(mask), total - mask.shape[1])], dim=1)
