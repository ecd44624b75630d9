"""Masks, positions and RoPE behind a cut, and decode masks rebuilt from slots.

The host builds all of them whole, once per forward, and hands the same objects to every layer. They stay
whole here too; a layer behind a cut gets a view through the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from btp.core.host import Host
from btp.core.ledger import View
from btp.engine.checks.sliding_window import LayerKind
from btp.engine.decoder.prefill import Run
from btp.engine.hooks.arguments import Binding
from btp.engine.hooks.deferred_checks import Doubts
from btp.engine.hooks.flash import FLASH, keys_of


def prefill_companions(
    host: Host, run: Run, view: View, hidden: Tensor, whole: Mapping[str, Any], attention: str, kind: LayerKind
) -> dict[str, Any]:
    """Arguments of a layer's forward to exchange during prefill.

    Args:
        host: Host whose RoPE is used, where positions are renumbered.
        run: the prefill.
        view: tokens alive in front of the layer.
        hidden: [B, S', D] for dtype and device.
        whole: the layer's arguments as the host passed them, full length.
        attention: "sdpa", "eager" or "flash_attention_2".
        kind: Kind of the layer.

    Raises:
        ValueError: positions are renumbered, but the prompt is longer than the layer's window.
    """
    _check_window(run, view, kind, run.prompt_length)
    place = view.place.clamp(min=0).to(hidden.device)
    changes: dict[str, Any] = {}
    if "attention_mask" in whole:
        if attention == FLASH:
            changes["attention_mask"] = None if view.even else view.attended.to(hidden.device)
        else:
            changes["attention_mask"] = _prefill_mask(whole["attention_mask"], view, hidden.device)
    positions = whole.get("position_ids")
    if positions is not None:
        positions = _expand(positions, len(place)).gather(1, place)
        if view.lowered is not None:
            positions = positions - view.lowered.to(place.device).gather(1, place)
        changes["position_ids"] = positions
    if whole.get("position_embeddings") is not None:
        if view.lowered is not None:
            changes["position_embeddings"] = _turn(host, hidden, positions, kind)
        else:
            changes["position_embeddings"] = tuple(_take(table, place) for table in whole["position_embeddings"])
        if attention == FLASH and positions is not None:
            changes["position_ids"] = None  # which it reads in every layer for prompts packed into one, as gaps look
    return changes


def decode_companions(
    host: Host, run: Run, view: View, hidden: Tensor, whole: Mapping[str, Any], attention: str, kind: LayerKind, at: int
) -> dict[str, Any]:
    """Arguments of a layer's forward to exchange in a decode step; the new token attends to the layer's own
    slots.

    Args:
        attention: "sdpa" (bool masks, None where nothing is masked), "eager" (additive masks) or "flash_attention_2"
            (the keys that count, None where all do).
        kind: Kind of the layer.
        at: which layer, for what its cache still holds.

    Raises:
        ValueError: positions are renumbered, but prompt and answer are longer than the layer's window.
    """
    end = run.prompt_length + run.call.decode_steps
    _check_window(run, view, kind, end)
    changes: dict[str, Any] = {}
    if "attention_mask" in whole:
        mask = decode_mask(run, view, hidden, attention, kind)
        held, _ = run.cache.layers[at].get_mask_sizes(1)  # a layer with a window forgets the oldest
        mask = mask if mask is None else mask[..., -held:]
        changes["attention_mask"] = keys_of(mask) if attention == FLASH else mask
    if view.lowered is not None:
        lowered = view.lowered[:, -1:].to(hidden.device)
        changes["position_ids"] = _expand(whole["position_ids"], len(lowered)) - lowered
        if whole.get("position_embeddings") is not None:
            changes["position_embeddings"] = _turn(host, hidden, changes["position_ids"], kind)
    return changes


def _prefill_mask(whole: Tensor | None, view: View, device: torch.device) -> Tensor | None:
    place = view.place.to(device)
    filled = place < 0  # [B, S']
    rows = place.shape[1]
    if whole is None:
        if view.even:
            return None
        causal = torch.ones(rows, rows, dtype=torch.bool, device=device).tril()
        mask = causal & view.attended.to(device)[:, None, None, :]  # [B, 1, S', S']
    else:
        place = place.clamp(min=0)
        mask = _expand(whole, len(place))
        mask = mask.gather(2, place[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
        mask = mask.gather(3, place[:, None, None, :].expand(-1, mask.shape[1], rows, -1))
    if min(view.lengths) == rows:
        return mask
    # filling attends to itself alone: a row without any key turns into NaN in some kernels
    itself = torch.eye(rows, dtype=torch.bool, device=device) & filled[:, None, :, None]
    mask = mask.masked_fill(filled[:, None, None, :], _closed(mask))
    return mask.masked_fill(itself, True if mask.dtype == torch.bool else 0.0)


def decode_mask(run: Run, view: View, like: Tensor, attention: str, kind: LayerKind) -> Tensor | None:
    """[B, 1, 1, S' + t] what the token of a decode step sees of a layer's rows and of the answer so far.

    Args:
        like: Tensor whose dtype and device are taken.
        attention: "eager" (additive masks), or another one (bool masks, None where nothing is masked).
        kind: Kind of the layer.
    """
    end = run.prompt_length + run.call.decode_steps
    window = kind.window if kind.window is not None and end > kind.window else None
    if attention != "eager" and view.even and run.step_mask is None and window is None:
        return None
    new = run.call.decode_steps
    if run.step_mask is None:
        behind = view.attended.new_ones(len(view.lengths), new)
    else:
        behind = run.step_mask[:, run.prompt_length :].to(view.attended.device) != 0
    seen = torch.cat([view.attended, behind], dim=1)  # [B, S' + t]
    if window is not None:
        seen[:, : view.rows] &= view.place >= run.prompt_length + new - window
        seen[:, :-window] = False
    seen = seen[:, None, None, :].to(like.device)
    if attention != "eager":
        return seen
    return torch.zeros_like(seen, dtype=like.dtype).masked_fill(~seen, torch.finfo(like.dtype).min)


def needs_nothing(run: Run, mask: Tensor | None, attention: str, kinds: Sequence[LayerKind]) -> bool:
    """Whether `decode_companions` would change nothing in any layer, so that no other layer has to be looked at.

    Without a mask the new token sees all there is in a layer's cache, which is all that is alive there.

    Args:
        mask: what the host gave the first layer that was looked at; layers without a window share it.
        attention: as `decode_mask`.
        kinds: Kinds of all layers.
    """
    if mask is not None or attention != "sdpa" or run.step_mask is not None:
        return False
    return all(kind.window is None for kind in kinds) and all(
        view.even and view.lowered is None for _, view in run.ledger.views
    )


def _check_own_token(run: Run, doubts: Doubts) -> None:
    """Where slots are known by their positions, every token of an answer is one."""
    if run.held and run.step_mask is not None:
        doubts.expect(
            (run.step_mask[:, -1] != 0).all(),
            "The attention_mask of a decode step hides the step's own token, which a stage at llm.cache cannot follow. "
            "Pass ones for every token of the answer.",
        )


def check_step(run: Run, inputs: Mapping[str, Any], doubts: Doubts) -> None:
    """Refuse a decode step that does not continue its prefill; returns its 2D mask.

    Raises:
        ValueError: the step cannot be followed; the message says what to pass.
    """
    ledger, ids, mask = run.ledger, inputs.get("input_ids"), inputs.get("attention_mask")
    new = ids if ids is not None else inputs["inputs_embeds"]
    if new.shape[1] != 1:
        raise ValueError(
            f"{new.shape[1]} tokens came at once behind a filled cache, but a pruned cache is continued by "
            "one token "
            "a step. Do not use chunked prefill (prefill_chunk_size), assisted decoding (assistant_model, "
            "prompt_lookup_num_tokens) or a second turn on the same past_key_values; pass the whole "
            "conversation "
            "with a new cache."
        )
    if new.shape[0] != len(ledger.total):
        raise ValueError(
            f"The prompt had {len(ledger.total)} rows, the step behind it has {new.shape[0]}. "
            "Expand the inputs before prefill, as generate() does."
        )
    length = run.prompt_length + run.call.decode_steps
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] != length:
        raise ValueError(
            f"attention_mask is {tuple(mask.shape)} at a step where {length} tokens were seen. "
            "Pass the mask of the whole unpruned sequence, or none."
        )
    run.step_mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
    _check_own_token(run, doubts)
    counted = run.cache.get_seq_length() if run.held else length - 1  # by the host, from its first layer
    shortened = ledger.at(0) is not ledger.views[0][1] or counted != length - 1
    if shortened and inputs.get("position_ids") is None:
        raise ValueError(
            "A decode step came without position_ids behind a cut in front of layer 0: the host would count "
            "them "
            "from its shortened cache. Pass position_ids of the unpruned sequence, as generate() does."
        )


def _check_window(run: Run, view: View, kind: LayerKind, length: int) -> None:
    tokens = length - min(run.ledger.leads)
    if view.lowered is None or kind.window is None or tokens <= kind.window:
        return
    raise ValueError(
        f"A stage renumbers positions, but prompt and answer have {tokens} tokens and layers of type {kind.name} see "
        f"{kind.window}: whether closed gaps let them see further has no agreed meaning. Set "
        "positions: original on every stage, or shorten the prompt."
    )


def _turn(host: Host, hidden: Tensor, positions: Tensor | None, kind: LayerKind) -> Any:
    if host.rotary is None or positions is None:
        raise RuntimeError(
            "positions: renumber needs the decoder's rotary_emb and position_ids in front of each layer, "
            "and this host "
            "gives none. Set positions: original."
        )
    if "layer_type" in Binding(host.rotary):
        return host.rotary(hidden, positions, kind.name)
    return host.rotary(hidden, positions)


def _take(table: Tensor, place: Tensor) -> Tensor:
    if table.dim() != 3:
        raise RuntimeError(
            f"A RoPE table of shape {tuple(table.shape)} reached a decoder layer; [B, S, d] was expected. "
            "This family needs an adapter in btp.models."
        )
    return _expand(table, len(place)).gather(1, place[..., None].expand(-1, -1, table.shape[-1]))


def _expand(x: Tensor, batch: int) -> Tensor:
    return x.expand(batch, *x.shape[1:])


def _closed(mask: Tensor) -> bool | float:
    return False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
