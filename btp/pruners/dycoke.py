"""DyCoke: in windows of four frames, the tokens that repeat an earlier frame leave."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signals
from btp.core.topk import top_k
from btp.ops.apportion import apportion, best_of_groups
from btp.ops.frames_before import before, distance_before, frame_numbers
from btp.pruners.evs import check_input

WINDOW = 4
BACK = (WINDOW, 1, 2, 1)  # frames to go back, by the frame's place in its window


class DyCoke(Pruner):
    """Temporal token merging, the first half of the method: what it does in front of the decoder.

    In each window of four frames the first stays whole. The second is compared with the first, the third with the
    first, the fourth with the third, token by token at the same place, and of each the least alike stay, the same share
    of every frame. What is alike is dropped, as in the released code. Below a quarter of the tokens first frames are
    cut too, by their likeness to the window before. Tokens off the grid (newlines) stay.

    Needs no signal: tokens are compared by themselves.

    Source: Tao et al. 2024, arXiv:2411.15024, section 3.1, and its released code. The second half, which takes slots of
    the cache out and in at every decode step, is not built.
    """

    def check(self, schedule: Schedule) -> None:
        """Refuse stages other than the decoder's input."""
        super().check(schedule)
        check_input(schedule, self.name)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """First frames whole, of the others the same share."""
        distance, place = self._distance(tokens)
        frame, sizes = frame_numbers(tokens.image, tokens.coord, tokens.valid)
        counts = tokens.keep_counts(stage)
        loose = tokens.valid & (frame < 0)
        left = (on_device(counts, frame.device) - loose.sum(1)).clamp(min=0)
        first = torch.zeros_like(sizes).scatter_add(1, frame.clamp(min=0), ((place == 0) & (frame >= 0)).long())
        whole = torch.minimum(left, first.sum(1))
        quota = apportion(first, whole, first)
        quota = quota + apportion(sizes - first, torch.minimum(left - whole, (sizes - first).sum(1)), sizes - first)
        stays = loose | best_of_groups(distance, frame.clamp(min=0), quota, frame >= 0)
        return Selection(top_k(stays.float(), counts, tokens.valid), scores=distance)

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """What the choice goes by: the distance to the frame that a token is compared with."""
        return {"distance": self._distance(tokens)[0]}

    def _distance(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """[B, N] distance to the frame that each is compared with, and the frame's place in its window."""
        place = tokens.coord[..., 0].clamp(min=0) % WINDOW
        back = on_device(BACK, place.device)[place]
        return distance_before(tokens.hidden, before(tokens.image, tokens.coord, tokens.valid, back)), place
