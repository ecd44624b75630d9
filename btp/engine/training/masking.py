"""The training forward: nothing is removed; what inference would drop is masked, softly or hard.

It reads the signals that inference reads, so that what is trained is what is run: with hard masks its logits are those
of `attach` to the last bits. From a stage on, no row but a token's own sees a token whose weight is 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from btp.core.host import Host
from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.core.topk import marked
from btp.core.trained import Masked, Trained
from btp.engine.attach import occupy
from btp.engine.checks.plan import PlannedStage, make_plan
from btp.engine.checks.signals import attention_name, unseen_message
from btp.engine.decoder.prefill import Run, open_run
from btp.engine.decoder.probe import Probe, Sight
from btp.engine.decoder.stream import make_tokens
from btp.engine.hooks.arguments import Binding
from btp.engine.hooks.attention_registry import implementation, own_eager, standing_for
from btp.engine.hooks.checkpointed_layers import checkpoint_behind_hooks
from btp.engine.hooks.flash import FLASH
from btp.engine.training.masked_attention import masked_attention

SOFT, HARD, AIM = "soft", "hard", "aim"
UNLIKE = ("mean", "all", "start")  # rows among which dropped tokens would still count


@contextmanager
def masking(model: Host, pruner: Trained, schedule: Schedule, how: str = SOFT) -> Iterator[Masking]:
    """Forwards in which the pruner's decisions are masks; on leaving, no hook or registry entry stays.

    Args:
        model: a Host. Its weights may have gradients, and it may be in training mode.
        pruner: decides.
        schedule: its stages, in the language model; a keep counts only where decisions are hard.
        how: soft (as `soften` says) | hard (exactly what `select` drops, as inference removes it) | aim (exactly what
            training aims at, `aim`).

    Raises:
        ValueError: as `attach`, or a stage or signal that has no meaning where nothing is removed.
    """
    with occupy(model):
        _check(pruner, schedule)
        if model.decoder is not None and attention_name(model) == FLASH:
            raise ValueError(
                f"The decoder runs {FLASH}, which takes no weights for single keys. Load the model with "
                "attn_implementation=sdpa (model.attention=sdpa) to train."
            )
        training = model.model.training
        if training:
            model.model.eval()  # what the plan is held against is inference
        try:
            plan = make_plan(model, pruner, schedule if how == HARD else _free(schedule))
        finally:
            if training:
                model.model.train()
        made = Masking(model, pruner, plan, how)
        with made.open():
            yield made


class Masking:
    """Runs masked forwards; `masking` makes it."""

    def __init__(self, host: Host, pruner: Trained, plan: tuple[PlannedStage, ...], how: str) -> None:
        self._host, self._pruner, self._plan, self._how = host, pruner, plan, how
        self._run: Run | None = None
        self._sights: dict[Signal, Sight] = {}
        self._stages: list[Masked] = []
        self._columns: dict[int, Tensor] = {}  # [B, S] by layer; kept until the next forward, for checkpointed layers

    def __call__(
        self, inputs: Mapping[str, Any], prompt: Tensor | None = None, **more: Any
    ) -> tuple[Any, list[Masked]]:
        """One forward without a cache.

        Args:
            inputs: Inputs of the model, with input_ids [B, S].
            prompt: [B, S] bool, what was there when inference decides: answers, which follow in training, are not.
                Decisions see nothing else. None is all that attention_mask says.
            more: further arguments of the model's forward.

        Returns:
            The model's output, and what each stage decided.
        """
        given = inputs.get("attention_mask")
        real = torch.ones_like(inputs["input_ids"]) if given is None else given
        shown = real if prompt is None else real * prompt.to(real.dtype)
        self._run = open_run(self._host, {**inputs, "attention_mask": shown})
        self._forget()
        try:
            output = self._host.model(**inputs, use_cache=False, **more)
        finally:
            self._run = None
            self._sights.clear()
        return output, self._stages

    def open(self) -> ExitStack:
        """Register every hook; closing the stack removes them."""
        with ExitStack() as undo:
            layers = self._host.towers["llm"].layers
            checkpoint_behind_hooks(layers, undo)
            first = min(planned.stage.site.first_layer for planned in self._plan)
            inside = {id(module): at for at in range(first, len(layers)) for module in layers[at].modules()}
            self._stand_for_attention(inside, undo)
            signals = [signal for planned in self._plan for signal in planned.needs]
            undo.enter_context(_MaskedProbe(self._host, signals, lambda: self._run, self._note, self._columns_of))
            for planned in self._plan:
                layer = layers[planned.stage.site.first_layer]
                undo.callback(layer.register_forward_pre_hook(self._before(planned, layer), with_kwargs=True).remove)
            undo.callback(self._forget)
            return undo.pop_all()

    def _forget(self) -> None:
        self._stages, self._columns = [], {}

    def _note(self, run: Run, sight: Sight) -> None:
        self._sights[sight.signal] = sight

    def _columns_of(self, at: int) -> Tensor | None:
        """Weights in layer `at`: those of the last stage in front of it."""
        before = max((layer for layer in self._columns if layer <= at), default=None)
        return None if before is None else self._columns[before]

    def _before(self, planned: PlannedStage, layer: Any) -> Any:
        binding = Binding(layer)

        def decide(module, args, kwargs):
            run = self._run
            if run is None or not max(run.ledger.total):
                return
            self._decide(run, planned, binding.read(args, kwargs)[binding.first])

        return decide

    def _decide(self, run: Run, planned: PlannedStage, hidden: Tensor) -> None:
        stage, seen, rows_valid = planned.stage, {}, {}
        for signal in planned.needs:
            sight = self._sights.get(signal)
            if sight is None:
                raise RuntimeError(unseen_message(f"pruner {self._pruner.name!r}", signal))
            seen[signal] = sight.value
            if sight.rows_valid is not None:
                rows_valid[signal] = sight.rows_valid
        tokens = make_tokens(run, hidden, planned, seen, rows_valid)
        real, before = tokens.valid, self._stages[-1] if self._stages else None
        if before is not None:
            tokens = replace(tokens, valid=before.stays, host_alive=None)
        weight, stays = self._say(planned, tokens, seen, rows_valid)
        stays, weight = stays & tokens.valid, weight * real
        if before is not None:
            weight = weight * before.weight
        self._stages.append(Masked(stage, weight, stays, real))
        row, places = run.ledger.now.visual_row.to(hidden.device), run.prompt_length
        columns = weight.new_ones(len(row), places + 1)
        columns = columns.scatter(1, row.masked_fill(row < 0, places), weight)
        self._columns[stage.site.first_layer] = columns[:, :places]

    def _say(self, planned: PlannedStage, tokens: Any, seen: dict, rows_valid: dict) -> tuple[Tensor, Tensor]:
        stage, signals = planned.stage, Signals(seen, rows_valid)
        if self._how == SOFT:
            soft = self._pruner.soften(tokens, signals, stage)
            return soft.weight, soft.stays
        if self._how == AIM:
            stays = self._pruner.aim(tokens, signals, stage)
        elif stage.withdraws_all:
            stays = torch.zeros_like(tokens.valid)
        else:
            keep = self._pruner.select(tokens, signals, stage).keep
            stays = marked(keep.to(tokens.valid.device), tokens.valid.shape[1])
        return stays.to(tokens.hidden.dtype), stays

    def _stand_for_attention(self, inside: Mapping[int, int], undo: ExitStack) -> None:
        assert self._host.decoder is not None  # hosts without one are refused
        base = implementation(self._host.decoder)
        known = AttentionInterface._global_mapping.get(base)

        def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
            at = inside.get(id(module))
            columns = None if at is None else self._columns_of(at)
            if columns is None:
                original = known if known is not None else own_eager(module)
                return original(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
            odd = [k for k in ("softcap", "position_bias", "s_aux") if kwargs.get(k) is not None]
            if odd:
                raise ValueError(
                    f"{type(module).__name__} computes attention with {', '.join(odd)}, which the masks of a training "
                    "do not follow. Train on another model."
                )
            factor = query.shape[-1] ** -0.5 if scaling is None else scaling
            columns = columns.to(query.device)
            out = masked_attention(query, key, value, attention_mask, columns, factor)
            return out.transpose(1, 2).contiguous(), None

        standing_for(self._host.decoder, attention, undo)


class _MaskedProbe(Probe):
    """Sees attention as it is where dropped tokens are gone: normalised over what is left."""

    def __init__(self, host, signals, run, sink, columns) -> None:
        super().__init__(host, signals, run, sink)
        self._columns = columns

    def _inside(self, at, query, key, value, mask, scaling) -> None:
        columns = self._columns(at)
        if columns is not None and any(signal.kind == "attention" for signal in self._at[at]):
            mask = _biased(mask, columns.detach().to(query), query)
        super()._inside(at, query, key, value, mask, scaling)


def _biased(mask: Tensor | None, columns: Tensor, query: Tensor) -> Tensor:
    """[B, 1 or H, S, S] the mask with log-weights of the columns, but for a row's own."""
    S = query.shape[2]
    if mask is None:
        mask = torch.ones(S, S, dtype=torch.bool, device=query.device).tril()[None, None]
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    own = torch.eye(S, dtype=torch.bool, device=query.device)
    return mask + columns.log()[:, None, None].masked_fill(own, 0.0)


def _free(schedule: Schedule) -> Schedule:
    """The same stages with a keep that says nothing, since soft decisions do not read it."""
    return Schedule(tuple(replace(stage, keep=1.0, solver=None) for stage in schedule))


def _check(pruner: Trained, schedule: Schedule) -> None:
    """Refuse what cannot be masked as it would be removed.

    Raises:
        TypeError: the pruner is no Trained.
        ValueError: no stage, or one that cannot be; names the key.
    """
    if not isinstance(pruner, Trained):
        raise TypeError(
            f"masking needs a method that is trained, a btp.core.trained.Trained, and got {type(pruner).__name__}."
        )
    if not schedule:
        raise ValueError(f"pruner {pruner.name!r} has no stage, so there is nothing to train. Give it a schedule.")
    for i, stage in enumerate(schedule):
        if stage.site.tower != "llm" or stage.site.kind not in ("input", "layer"):
            raise ValueError(
                f"schedule.{i}.site is {stage.site}, but masks are built for the language model's layers. Choose "
                "llm.input or llm.layer.N to train."
            )
        if stage.positions != "original":
            raise ValueError(
                f"schedule.{i}.positions is {stage.positions}, but in training nothing is removed and no gap can be "
                f"closed. Set pruner.schedule.{i}.positions=original."
            )
        for signal in pruner.needs(stage):
            if signal.kind == "preview" or signal.rows in UNLIKE or signal.site.tower != "llm":
                raise ValueError(
                    f"pruner {pruner.name!r} asks for {signal}, which is not the same where dropped tokens are masked "
                    "and not removed. In training, ask for hidden, attention (rows last or text), queries, keys or "
                    "values of the language model."
                )
