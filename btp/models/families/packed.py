"""Families that pack their pictures: what the vision tower hands on is put together, cut, resized or pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from btp.core.host import Encoding, Layout, Packed
from btp.models.families import grids
from btp.models.lvlm import LVLM

KINDS = ("image", "video")
OFF = -1  # newlines, blends, text


class PackedLVLM(LVLM):
    """An LVLM whose subclasses say in `packing` what becomes of each picture and video.

    Attributes:
        blends: when its visual tokens are none of the vision tower's, for the message that refuses them there.
    """

    blends = ""

    def layout(self, inputs: Mapping[str, Any]) -> Layout:
        """Where the visual tokens lie, put together from `packing`.

        Raises:
            ValueError: the pictures were encoded elsewhere, or the prompt has other placeholders than they have tokens.
        """
        visual = self.visual_mask(inputs)
        coord = torch.full((*visual.shape, 3), OFF, device=visual.device)
        source, first = torch.full_like(coord[..., 0], OFF), torch.zeros_like(visual)
        for kind in KINDS:
            entries = self._entries(kind, inputs)
            if not entries:
                continue
            mine = inputs["input_ids"] == self._token(kind)
            tokens = sum(len(entry.source) for entry in entries)
            if tokens != int(mine.sum()):
                raise ValueError(
                    f"The prompt has {int(mine.sum())} placeholders of kind {kind}, but its pixels and sizes make "
                    f"{tokens} tokens. Make both with the processor of this checkpoint."
                )
            begins = torch.cat([(torch.arange(len(entry.source)) == 0) & entry.begins for entry in entries])
            coord = coord.masked_scatter(mine[..., None], torch.cat([e.coord for e in entries]).to(coord.device))
            source = source.masked_scatter(mine, torch.cat([e.source for e in entries]).to(source.device))
            first = first.masked_scatter(mine, begins.to(first.device))
        return Layout(visual, coord, grids.number(visual, first), source)

    def packing(self, kind: str, arguments: Mapping[str, Any]) -> Sequence[Packed] | None:
        """One entry per picture, video or frame that the encoder hands on; None where the arguments hold none."""
        raise NotImplementedError

    def placeholders(self, kind: str, inputs: Mapping[str, Any], batch: int) -> list[int]:
        """What one row writes for its pictures, where all rows have the same ones."""
        entries, token = self.packing(kind, inputs) or (), self._token(kind)
        assert token is not None  # every config of these families names both
        return [token] * (sum(len(entry.source) for entry in entries) // batch)

    def _entries(self, kind: str, inputs: Mapping[str, Any]) -> Sequence[Packed]:
        """What the prompt has of one kind, in order."""
        encoded: Encoding | None = inputs.get("encoded", {}).get(kind)
        if encoded is not None:
            entries = self.packing(kind, encoded.arguments) or ()
            return [entries[i] for i in encoded.which]
        if (inputs.get("mm_encoder_outputs") or {}).get(kind) is not None:
            raise ValueError(
                f"The prompt has {kind} features that were encoded before btp was attached, or before others since: "
                "nothing says how their tokens were packed. Encode them inside the attach, right before the prompt, or "
                "pass the pixels in their place."
            )
        return self.packing(kind, inputs) or ()


def frames(count: int, rows: int, columns: int, extra: int = 0) -> Tensor:
    """[count * (extra + rows * columns), 3] coordinates of frames on equal grids.

    Args:
        count: frames.
        rows, columns: Rows and columns of each grid.
        extra: tokens in front of each that lie on no grid.
    """
    frame, row, column = (torch.arange(n) for n in (count, rows, columns))
    grid = torch.cartesian_prod(frame, row, column).view(count, rows * columns, 3)
    return torch.cat([grid.new_full((count, extra, 3), OFF), grid], dim=1).flatten(0, 1)
