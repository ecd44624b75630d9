"""Adds deepstack features to the visual tokens alive, in place of a host that would add them to all.

Such a host adds further features of the vision tower to the visual tokens behind each of its first decoder layers, at
a mask over the whole prompt that no hook can reach. It is given no features at all, and they are added here, in front
of the layer behind, where the token still is what the host would make of it. What leaves a layer stays untouched, for
those who look at it.

Where tokens flow together, so do the features they are yet to get, by the same weights: the sum of a mean is the mean
of the sums, so a merge is the same whether the features come before it or after. A token that a method gives states of
its own making, without a merge, keeps its own features.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from btp.core.host import Host
from btp.engine.decide import Decision
from btp.engine.decoder.prefill import Run
from btp.engine.hooks.arguments import Binding
from btp.engine.hooks.attention_rows import gather_rows
from btp.engine.hooks.deferred_checks import Doubts
from btp.engine.vision.state import rows_of
from btp.ops.merge import merge_states

FEATURES, MASK = "deepstack_visual_embeds", "visual_pos_masks"


class Deepstack:
    """The features of the prompt under way.

    Args:
        host: the model.
        doubts: collects checks on tensor content.
        first: first decoder layer that may see fewer tokens; features added in front of it are left to the host.
        prefilling: gives the run whose prefill is under way, or None.
    """

    def __init__(self, host: Host, doubts: Doubts, first: int, prefilling: Callable[[], Run | None]) -> None:
        self._host, self._doubts, self._first, self._prefilling = host, doubts, first, prefilling
        self._features: dict[int, Tensor] = {}  # behind layer -> [B, N, D] over the visual tokens alive
        self._hooks: dict[int, RemovableHandle] = {}

    def open(self, undo: ExitStack) -> None:
        """Register what is needed, on a host with deepstack."""
        decoder = self._host.decoder
        assert decoder is not None  # streams of decoders alone have this
        binding = Binding(decoder)
        if FEATURES in binding:
            undo.callback(self._close)
            hook = decoder.register_forward_pre_hook(self._take_over(binding), with_kwargs=True)
            undo.callback(hook.remove)

    def follow(self, decision: Decision) -> None:
        """Take the features along a cut."""
        keep, merge = decision.keep, decision.merge
        for at, x in self._features.items():
            moved = gather_rows(x, keep) if merge is None else merge_states(x.to(keep.device), keep, merge)
            self._features[at] = moved

    def _close(self) -> None:
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        self._features.clear()

    def _take_over(self, binding: Binding) -> Callable:
        def enter(module, args, kwargs):
            self._features.clear()
            run, inputs = self._prefilling(), binding.read(args, kwargs)
            features, mask = inputs.get(FEATURES), inputs.get(MASK)
            if run is None or features is None or self._first >= len(features):
                return None
            visual = run.ledger.visual
            if mask is None or mask.shape != visual.shape:
                found = None if mask is None else tuple(mask.shape)
                raise RuntimeError(
                    f"{type(module).__name__} got {FEATURES} at places of shape {found}, but the prompt is "
                    f"{tuple(visual.shape)}. This family needs an adapter in btp.models."
                )
            mask = mask.to(visual.device)
            self._doubts.expect(
                (mask == visual).all(),
                f"{type(module).__name__} gets {FEATURES} at other places than the visual tokens that "
                f"{type(self._host).__name__}.layout names. This family needs an adapter in btp.models.",
            )
            order = (mask.flatten().cumsum(0) - 1).view_as(mask)  # [B, S] which feature each place gets
            row = order.gather(1, run.ledger.now.visual_row.clamp(min=0))  # [B, N]
            for at, x in enumerate(features):
                self._features[at] = x[row.to(x.device)]
                if at not in self._hooks:
                    self._hooks[at] = self._behind(at)
            return binding.replace(args, kwargs, {FEATURES: None, MASK: None})

        return enter

    def _behind(self, at: int) -> RemovableHandle:
        layers = self._host.towers["llm"].layers
        module = layers[at + 1] if at + 1 < len(layers) else self._host.norm
        assert module is not None  # a decoder loop ends in its norm
        binding = Binding(module)

        def enter(module, args, kwargs):
            run, x = self._prefilling(), self._features.pop(at, None)
            if run is None or x is None or max(run.ledger.now.visual_counts) == 0:
                return None
            hidden, view = binding.read(args, kwargs)[binding.first], run.ledger.now
            which = rows_of(view.visual_row, view.rows)  # [B, S'] visual token of each row
            added = hidden + gather_rows(x.to(hidden.device, hidden.dtype), which)
            return binding.replace(args, kwargs, {binding.first: added})

        # in front of the engine's own hooks, which cut and look
        return module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
