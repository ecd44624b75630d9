"""Opens a prefill: finds the visual tokens and starts the ledger and the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from btp.core.host import Host, Layout
from btp.core.keep import on_device
from btp.core.ledger import TokenLedger, View, facts, first_places
from btp.core.trace import Call


@dataclass
class Run:
    """One prefill and the decode steps behind it. New for each prefill; nothing outlives it.

    Attributes:
        ledger: who is alive where; exchanged at each cut.
        layout: Layout of the visual tokens in the prompt.
        call: the record that goes into the trace.
        cache: the host's cache object in a step, and in prefill once a stage of the cache met it; else None.
        in_prefill: False from the first decode step on.
        step_mask: [B, S + t] 2D mask of the current decode step, as the caller passed it.
        undisturbed: the decode step under way needs no mask and no position but the host's in any layer.
        entered: decoder layers that the engine saw in the current forward, from the first stage on.
        memo: what was computed for a view in the current forward, by view and device.
        lazy: what stages that act in decode know of it; None without any.
        per_picture: tokens of a picture in the vision tower, where its signals or stages are followed.
        held: what the caches of layers with a stage hold, by layer.
        windows: most tokens that each layer's cache holds, behind prefill; None without a limit.
        host_grid: coord [B, N, 3] and image [B, N] of the prompt's visual tokens on the CPU, where they were asked for.
    """

    ledger: TokenLedger
    layout: Layout
    call: Call
    cache: Any = None
    in_prefill: bool = True
    step_mask: Tensor | None = None
    undisturbed: bool = False
    entered: list[int] = field(default_factory=list)
    memo: dict[Any, Any] = field(default_factory=dict)
    lazy: Any = None
    per_picture: int | None = None
    held: dict[int, Any] = field(default_factory=dict)
    windows: tuple[int | None, ...] = ()
    host_grid: tuple[Tensor, Tensor] | None = None

    @property
    def host_prompt(self) -> tuple[int, ...]:
        """Real tokens of each row's prompt."""
        return tuple(map(sum, zip(self.ledger.text_counts, self.ledger.total, strict=True)))

    def total(self, scope: str) -> tuple[int, ...]:
        """Tokens of each row's prompt in the scope of a cache stage (all | visual | text), before any pruning."""
        return {"all": self.host_prompt, "visual": self.ledger.total, "text": self.ledger.text_counts}[scope]

    @property
    def host_length(self) -> tuple[int, ...]:
        """Real tokens of each row so far, that of the forward under way included."""
        return tuple(n + self.call.decode_steps for n in self.host_prompt)

    def lengths(self, device: torch.device) -> Tensor:
        """`host_length` as [B] on a device; made once in a forward."""
        found = self.memo.get(("lengths", device))
        if found is None:
            found = self.memo["lengths", device] = on_device(self.host_length, device)
        return found

    def newest_position(self, device: torch.device) -> Tensor:
        """[B, 1] place of the token of a decode step in its row's unpruned sequence."""
        return self.lengths(device)[:, None] - 1

    @property
    def prompt_length(self) -> int:
        """S, as the host sees it, padding included."""
        return self.ledger.visual.shape[1]

    def places(self, view: View, device: torch.device) -> Tensor:
        """[B, N, 7] of a view's visual tokens: position, coord (3) and image, as `coord` has them, and picture and
        slot, as `pictures` has them; -1 where padded. Put together once in a forward.
        """
        whole = self.ledger.views[0][1]
        if ("places", device) not in self.memo:
            position, coord, image = self.coord(whole)
            columns = [x[..., None] for x in (position, image, *self.pictures(whole))]
            self.memo["places", device] = torch.cat([columns[0], coord, *columns[1:]], dim=-1).to(device)
        found = self.memo["places", device]
        if view is whole:
            return found
        index = view.visual_index.to(device)[..., None]
        return found.gather(1, index.clamp(min=0).expand(-1, -1, found.shape[2])).masked_fill(index < 0, -1)

    def coord(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        """position [B, N] without padding of the prompt, coord [B, N, 3] and image [B, N] of a view's visual
        tokens.
        """
        place = self.ledger.original_place(view)  # [B, N]
        coord = self.layout.coord.gather(1, place[..., None].expand(-1, -1, 3))
        image = self.layout.image.gather(1, place)
        position = place - self.ledger.lead[:, None]
        gone = ~view.visual_valid
        return (
            position.masked_fill(gone, -1),
            coord.masked_fill(gone[..., None], -1),
            image.masked_fill(gone, -1),
        )

    def pictures(self, view: View) -> tuple[Tensor, Tensor]:
        """[B, N] which of the batch's pictures each visual token of a view belongs to, and which of the picture's
        tokens it is; -1 where padded, and where it is no token of the vision tower.
        """
        if self.layout.source is not None:
            return self._sources(view)
        image = self.layout.image  # [B, S]
        per_row = image.amax(1) + 1
        first = (per_row.cumsum(0) - per_row)[:, None]  # pictures of the rows before
        seen = torch.cat([torch.full_like(image[:, :1], -1), image.cummax(1).values[:, :-1]], dim=1)
        begins = image > seen  # text may lie inside a picture, between the frames of a video
        rank = self.ledger.visual.cumsum(1) - 1  # place among the row's visual tokens
        slot = rank - rank.masked_fill(~begins, 0).cummax(1).values
        place = self.ledger.original_place(view)
        gone = ~view.visual_valid
        return (
            (image + first).gather(1, place).masked_fill(gone, -1),
            slot.gather(1, place).masked_fill(gone, -1),
        )

    def _sources(self, view: View) -> tuple[Tensor, Tensor]:
        """The same where a picture passes the tower in tiles, which are the pictures then."""
        assert self.layout.source is not None
        source = self.layout.source.gather(1, self.ledger.original_place(view)).masked_fill(~view.visual_valid, -1)
        none = torch.full_like(source, -1)
        if self.per_picture is None:
            return none, none
        gone, each = source < 0, self.per_picture
        return (source // each).masked_fill(gone, -1), (source % each).masked_fill(gone, -1)


def open_run(host: Host, inputs: Mapping[str, Any], grid: bool = False) -> Run:
    """Start a prefill from the root module's inputs. One host sync beside those of the host's layout.

    Args:
        host: the model.
        inputs: Inputs of its forward, by name.
        grid: read with it where the visual tokens lie (`Run.host_grid`).

    Raises:
        ValueError: the attention mask is not [B, S], or the prompt has other placeholders than its pictures have
            tokens.
    """
    layout = host.layout(inputs)
    mask = inputs.get("attention_mask")
    if mask is None:
        valid = torch.ones_like(layout.visual)
    elif isinstance(mask, Tensor) and mask.shape == layout.visual.shape:
        valid = mask.to(layout.visual.device) != 0
    else:
        found = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask is {found}, but the prompt is {tuple(layout.visual.shape)}. "
            "Pass a mask with one entry per token of input_ids; ready-made 4D masks cannot be followed."
        )
    known, places = _read(layout, valid, grid)
    ledger = TokenLedger.open(layout.visual, valid, known)
    if layout.check is not None:
        layout.check(ledger.total)
    return Run(ledger, layout, Call(ledger.total, ledger.text_counts), host_grid=places)


def _read(layout: Layout, valid: Tensor, grid: bool) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """A prompt's facts, and `Run.host_grid` where asked, in one copy from the device."""
    found = facts(layout.visual, valid)
    if not grid:
        return found.cpu(), None
    B, S = valid.shape
    image = layout.image.masked_fill(~valid, -1)
    both = torch.cat([found.flatten(), image.flatten(), layout.coord.flatten()]).cpu()
    found, image, coord = both.split([found.numel(), image.numel(), layout.coord.numel()])
    found, image, coord = found.view(B, 4), image.view(B, S), coord.view(B, S, 3)
    place = first_places(image >= 0, int(found[:, 0].max()))
    gone = place < 0
    coord = coord.gather(1, place.clamp(min=0)[..., None].expand(-1, -1, 3)).masked_fill(gone[..., None], -1)
    return found, (coord, image.gather(1, place.clamp(min=0)).masked_fill(gone, -1))


def count_held(run: Run) -> None:
    """Note what each layer's cache holds behind a forward; nothing without a cache."""
    call, now = run.call, []
    for at, window in enumerate(run.windows):
        whole = run.lazy.held(at) if run.lazy is not None else None
        if whole is None:
            whole = run.held[at].alive if at in run.held else tuple(n + call.decode_steps for n in call.tokens[at])
        now.append(whole if window is None else tuple(min(n, window) for n in whole))
    call.held_by_forward.append(tuple(sum(layer) / len(now) for layer in zip(*now, strict=True)))
    if run.in_prefill:
        call.held = call.held_sum = now
    else:
        call.held_sum = [tuple(map(sum, zip(*both, strict=True))) for both in zip(call.held_sum, now, strict=True)]
