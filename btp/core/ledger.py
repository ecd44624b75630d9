"""Token ledger: which prompt tokens are alive in front of which layer, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from btp.core.keep import on_device


@dataclass(frozen=True, eq=False)
class View:
    """Tokens alive in front of a run of layers, as the rows of a rectangular tensor.

    B batch, S prompt length as the host sees it, S' rows alive, N visual tokens alive (most of any row).
    Rows are aligned at their end, so that the last row is the last token; shorter ones are filled in front.
    These rows are also the K/V slots of each layer the view covers.

    Attributes:
        alive: [B, S] bool, prompt places that are rows.
        place: [B, S'] prompt place of each row, ascending; -1 for filling.
        attended: [B, S'] bool, rows that may be attended to: neither filling nor padding of the prompt.
        visual_row: [B, N] row of each visual token, -1 padded at the end.
        visual_index: [B, N] which original visual token it is, -1 padded.
        size: [B, N] original tokens each one stands for.
        visual_counts: visual tokens alive per row, known to the host.
        lengths: rows without filling, per batch row, known to the host.
        lowered: [B, S] by how much the position at each prompt place is lowered here; None where all are original.
        closed: no gap is left in the positions.
        even: no row is filled or padded, so that a causal mask needs no tensor.
        carried: [B, N] numbers by name that a method gave to the tokens; anything where padded.
    """

    alive: Tensor
    place: Tensor
    attended: Tensor
    visual_row: Tensor
    visual_index: Tensor
    size: Tensor
    visual_counts: tuple[int, ...]
    lengths: tuple[int, ...]
    lowered: Tensor | None
    closed: bool
    even: bool
    carried: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """S', rows of the rectangular tensor and K/V slots of a layer behind prefill."""
        return self.place.shape[1]

    @cached_property
    def visual_valid(self) -> Tensor:
        """[B, N] bool: entries of visual_row that are tokens and not padding."""
        return self.visual_row >= 0


@dataclass(frozen=True, eq=False)
class TokenLedger:
    """Which prompt tokens are alive in front of each layer of one prefill. Immutable: a cut returns a new ledger.

    Attributes:
        valid: [B, S] bool, prompt tokens that are not padding.
        visual: [B, S] bool, visual tokens.
        total: visual tokens per row before any pruning, known to the host.
        text_counts: real text tokens per row, known to the host.
        text_behind: T, text tokens behind the first image, of the row that has most.
        lead: [B] padding in front of each row; `leads` the same, known to the host.
        views: (first decoder layer, view), ascending; the first covers layer 0.
    """

    valid: Tensor
    visual: Tensor
    total: tuple[int, ...]
    text_counts: tuple[int, ...]
    text_behind: int
    lead: Tensor
    leads: tuple[int, ...]
    views: tuple[tuple[int, View], ...]

    @classmethod
    def open(cls, visual: Tensor, valid: Tensor, known: Tensor | None = None) -> TokenLedger:
        """The ledger of an uncut prompt. One host sync, unless the facts are known.

        Args:
            visual: [B, S] bool.
            valid: [B, S] bool.
            known: their `facts` on the CPU.
        """
        B, S = visual.shape
        found = facts(visual, valid) if known is None else known
        visual = visual & valid
        lead = (valid.cumsum(1) == 0).sum(1)
        total, real, leads, behinds = zip(*found.tolist(), strict=True)
        place = torch.arange(S, device=visual.device).expand(B, S)
        row = first_places(visual, max(total))
        view = View(
            alive=torch.ones_like(visual),
            place=place,
            attended=valid,
            visual_row=row,
            visual_index=_rank(row),
            size=torch.ones_like(row),
            visual_counts=total,
            lengths=(S,) * B,
            lowered=None,
            closed=True,
            even=all(n == S for n in real),
        )
        text = tuple(n - v for n, v in zip(real, total, strict=True))
        return cls(valid, visual, total, text, max(behinds), lead, leads, ((0, view),))

    def at(self, layer: int) -> View:
        """The view in front of a decoder layer."""
        return next(view for first, view in reversed(self.views) if first <= layer)

    @property
    def now(self) -> View:
        """The view behind every cut so far."""
        return self.views[-1][1]

    def cut(
        self,
        layer: int,
        keep: Tensor,
        counts: Sequence[int],
        renumber: bool,
        sizes: Tensor | None = None,
        carried: Mapping[str, Tensor] | None = None,
    ) -> TokenLedger:
        """Withdraw visual tokens from a layer on. No host sync.

        Padding in front of the prompt goes too, since rows are filled anew; other padding stays. The kept tokens
        stand in the order of `keep` on the kept places, of which the j-th smallest goes to the j-th token.

        Args:
            layer: first layer without them.
            keep: [B, K] indices into the visual tokens alive, -1 padded at the end.
            counts: entries of keep per row.
            renumber: close the gaps in the positions; otherwise each place keeps the position it has.
            sizes: [B, K] original tokens that each kept one stands for; None leaves them as they were.
            carried: [B, K] numbers of the kept tokens by name, beside those that they have already.
        """
        old = self.now
        S = self.visual.shape[1]
        counts = tuple(counts)
        safe = keep.clamp(min=0)
        real = keep >= 0
        index = old.visual_index.gather(1, safe).masked_fill(~real, -1)
        kept_place = old.place.gather(1, old.visual_row.gather(1, safe).clamp(min=0)).masked_fill(~real, S)
        kept_place = kept_place.sort(dim=1).values
        kept = torch.zeros(len(counts), S + 1, dtype=torch.bool, device=keep.device)
        kept = kept.scatter(1, kept_place, True)[:, :S]
        behind_lead = torch.arange(S, device=keep.device) >= self.lead[:, None]
        alive = old.alive & behind_lead & (~self.visual | kept)
        lengths = tuple(S - d - (t - k) for d, t, k in zip(self.leads, self.total, counts, strict=True))
        rows = max(lengths)
        ends = on_device(lengths, keep.device)[:, None]
        place = last_places(alive, rows)
        row_of = alive.cumsum(1) - 1 + rows - ends  # [B, S], right aligned
        view = View(
            alive=alive,
            place=place,
            attended=(place >= 0) & self.valid.gather(1, place.clamp(min=0)),
            visual_row=row_of.gather(1, kept_place.clamp(max=S - 1)).masked_fill(~real, -1),
            visual_index=index,
            size=old.size.gather(1, safe) if sizes is None else sizes,
            visual_counts=counts,
            lengths=lengths,
            lowered=(self.visual & ~alive).cumsum(1) if renumber else old.lowered,
            closed=renumber or (old.closed and counts == old.visual_counts),
            even=all(n == rows == t + k for n, t, k in zip(lengths, self.text_counts, counts, strict=True)),
            carried={name: x.gather(1, safe) for name, x in old.carried.items()} | dict(carried or {}),
        )
        return replace(self, views=(*self.views, (layer, view)))

    def rows_from(self, old: View, new: View, keep: Tensor) -> Tensor:
        """[B, S'new] row of `old` that each row of `new` comes from; filling points at row 0.

        Args:
            keep: Keep as given to the cut between the two.
        """
        lengths = on_device(old.lengths, old.place.device)[:, None]
        row_of = old.alive.cumsum(1) - 1 + old.rows - lengths  # [B, S]
        rows = row_of.gather(1, new.place.clamp(min=0)).clamp(min=0)
        spare = torch.cat([rows, rows[:, :1]], dim=1)  # padding of keep writes behind the rows
        source = old.visual_row.gather(1, keep.clamp(min=0)).clamp(min=0)
        target = new.visual_row.masked_fill(new.visual_row < 0, rows.shape[1])
        return spare.scatter(1, target, source)[:, : rows.shape[1]]

    def original_place(self, view: View) -> Tensor:
        """[B, N] prompt place that each visual token of a view had at first; 0 where padded."""
        return self.views[0][1].visual_row.gather(1, view.visual_index.clamp(min=0)).clamp(min=0)

    def entries(self, old: View, new: View) -> Tensor:
        """[B, N'] index into the old view's visual tokens of each of the new view's, -1 padded."""
        most = max(self.total)
        at = torch.full((len(self.total), most + 1), -1, device=old.visual_index.device)
        at = at.scatter(1, old.visual_index.masked_fill(old.visual_index < 0, most), _rank(old.visual_row))
        return at.gather(1, new.visual_index.clamp(min=0)).masked_fill(new.visual_index < 0, -1)

    def text_rows(self, view: View) -> Tensor:
        """[B, T] rows of the text tokens behind each row's first image, -1 padded at the end."""
        text = _text_behind(self.visual, self.valid).gather(1, view.place.clamp(min=0)) & (view.place >= 0)
        return first_places(text, self.text_behind)


def facts(visual: Tensor, valid: Tensor) -> Tensor:
    """[B, 4] what a ledger must know of each row as numbers: visual tokens, real ones, padding in front of them, and
    text behind the first visual one.
    """
    visual = visual & valid
    lead = (valid.cumsum(1) == 0).sum(1)
    return torch.stack([visual.sum(1), valid.sum(1), lead, _text_behind(visual, valid).sum(1)], dim=1)


def _text_behind(visual: Tensor, valid: Tensor) -> Tensor:
    """[B, S] bool: text tokens behind each row's first visual token."""
    return valid & ~visual & (visual.cumsum(1) > 0)


def first_places(mask: Tensor, most: int) -> Tensor:
    """[B, most] places of the first True entries of each row, -1 padded at the end."""
    S = mask.shape[1]
    place = torch.arange(S, device=mask.device).masked_fill(~mask, S).sort(dim=1).values[:, :most]
    return place.masked_fill(place == S, -1)


def last_places(mask: Tensor, most: int) -> Tensor:
    """[B, most] places of the last True entries of each row, ascending, -1 padded in front."""
    S = mask.shape[1]
    return torch.arange(S, device=mask.device).masked_fill(~mask, -1).sort(dim=1).values[:, S - most :]


def _rank(row: Tensor) -> Tensor:
    """0, 1, 2, ... over the real entries of [B, N], -1 where padded."""
    return torch.arange(row.shape[1], device=row.device).expand_as(row).masked_fill(row < 0, -1)
