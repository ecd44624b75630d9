"""Idefics3 and SmolVLM: tiles in rows and columns with marks between them, and a view of the whole behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from btp.core.host import Layout
from btp.models.families import grids
from btp.models.lvlm import LVLM

_MOST_TILES = 4  # along the longer side, in the processors that the checkpoints bring


class Idefics3(LVLM):
    """Every view of a picture is one square grid, whose sides a pixel shuffle shortens; marks stand between views.

    Frame 0 of a picture is its view of the whole, which comes last in the prompt; frame 1 is the mosaic of its tiles,
    with rows and columns counted through all of them. Both are read off the marks: a prompt's last view shows a whole
    picture, so the token in front of it marks such views, and the token behind it is the fence that also stands
    between the tiles of a row, while a row ends in a newline. Where these marks give rows of unequal length, the tiles
    become frames 1, 2, ... with rows and columns of their own. Each frame of a video is a picture of its own, as the
    prompt writes it.
    """

    families = ("idefics3", "smolvlm")

    pooled = "a pixel shuffle"

    def layout(self, inputs: Mapping[str, Any]) -> Layout:
        """Where the visual tokens lie; no token is one of the vision tower's. One host sync.

        Raises:
            ValueError: a row whose placeholders are no whole number of views.
        """
        visual = self.visual_mask(inputs)
        side = self._side()
        ids, found = inputs["input_ids"].cpu(), visual.cpu()
        coord, image = torch.full((*ids.shape, 3), -1), torch.full_like(ids, -1)
        grids.check_whole(found.sum(1).tolist(), side**2, type(self.model).__name__)
        grid = torch.cartesian_prod(torch.arange(1), torch.arange(side), torch.arange(side))  # [n, 3]
        for b, row in enumerate(found):
            places = row.nonzero().flatten()
            views = places.view(-1, side**2)
            front = ids[b, (views[:, 0] - 1).clamp(min=0)].tolist()
            behind = ids[b, (views[:, -1] + 1).clamp(max=ids.shape[1] - 1)].tolist()
            for view, (number, frame, down, right) in zip(views, _arrange(front, behind), strict=True):
                coord[b, view] = grid + torch.tensor([frame, down * side, right * side])
                image[b, view] = number
        coord, image = coord.to(visual.device), image.to(visual.device)
        return Layout(visual, coord, image, torch.full_like(image, -1))

    def example(self, batch: int, words: int, height: int, width: int, frames: int | None = None) -> dict[str, Tensor]:
        """As LVLM: a picture is cut into the tiles that the processor would choose, a frame of a video is one view."""
        edge = self.config.vision_config.image_size
        rows = columns = 0
        if frames is None:
            most, least = {"longest_edge": _MOST_TILES * edge}, {"longest_edge": edge}
            processor = Idefics3ImageProcessorPil(size=most, max_image_size=least)
            rows, columns = processor.get_number_of_image_patches(height, width)[1:]
        view = [self.placeholder("image")] * self._side() ** 2
        fence, whole, tile, newline = self.words()[:4]  # any four tokens, in the place of the marks
        line = [fence, tile, *view] * columns + [newline]
        picture = line * rows + [fence, whole, *view, fence]
        pixels = self.noise(batch, (rows * columns + 1) * (frames or 1), 3, edge, edge)
        return self.prompt(batch, picture * (frames or 1), words) | {"pixel_values": pixels}

    def _side(self) -> int:
        """Visual tokens per side of a view."""
        vision = self.config.vision_config
        return vision.image_size // vision.patch_size // self.config.scale_factor


def _arrange(front: Sequence[int], behind: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """(picture, frame, row of tiles, column of tiles) of each view of a prompt.

    Args:
        front, behind: the tokens next to each view.
    """
    found: list[tuple[int, int, int, int]] = []
    number, lines = 0, [0]  # tiles in each row of the picture under way
    for mark, next_ in zip(front, behind, strict=True):
        if mark != front[-1]:
            lines[-1] += 1
            if next_ != behind[-1]:
                lines.append(0)
            continue
        lines = [n for n in lines if n]
        if len(set(lines)) <= 1:
            found += [(number, 1, r, c) for r, n in enumerate(lines) for c in range(n)]
        else:
            found += [(number, 1 + i, 0, 0) for i in range(sum(lines))]
        found.append((number, 0, 0, 0))
        number, lines = number + 1, [0]
    return found
