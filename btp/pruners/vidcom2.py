"""VidCom2: frames that stand out of the video keep more tokens, and of each frame those that stand out of it stay."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.check_settings import check_number
from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signals
from btp.core.topk import top_k
from btp.ops.apportion import apportion, best_of_groups
from btp.ops.frames_before import frame_numbers
from btp.pruners.evs import check_input

WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)  # of the Gaussians that likeness is a sum of


class VidCom2(Pruner):
    """Frame compression adjustment and adaptive token compression.

    Tokens are compared over the channels that vary least, at unit length. Likeness to a centre is a sum of Gaussians of
    the distance. A frame is unique as far as its tokens are unlike the mean of all frames; a softmax of that says how
    much more than its share a frame keeps. In a frame those tokens stay that are least like the mean of all frames and
    that of their own frame, both added. Tokens off the grid (newlines) stay. All frames of a prompt are one video; a
    still picture is one frame, of which the outstanding tokens stay.

    Needs no signal: tokens are compared by themselves.

    Args:
        channels: share of the channels that are compared, in (0, 1].
        temperature: Temperature of the softmax over frames, above 0.

    Source: Liu et al. 2025, arXiv:2505.14454, section 4, and its released code.
    """

    def __init__(self, *, channels: float, temperature: float) -> None:
        check_number("pruner.method.channels", channels, "a share of the channels in (0, 1]", most=1, above=0)
        check_number("pruner.method.temperature", temperature, "a number above 0", above=0)
        self.channels, self.temperature = float(channels), float(temperature)

    def check(self, schedule: Schedule) -> None:
        """Refuse stages other than the decoder's input."""
        super().check(schedule)
        check_input(schedule, self.name)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Share the count among frames, and keep the outstanding tokens of each."""
        frame, sizes = frame_numbers(tokens.image, tokens.coord, tokens.valid)
        to_video, to_frame = self._likeness(tokens, frame, sizes)
        counts = tokens.keep_counts(stage)
        loose = tokens.valid & (frame < 0)
        left = (on_device(counts, frame.device) - loose.sum(1)).clamp(min=0)
        quota = apportion(self._shares(to_video, frame, sizes), torch.minimum(left, sizes.sum(1)), sizes)
        worth = -(to_video + to_frame)
        stays = loose | best_of_groups(worth, frame.clamp(min=0), quota, frame >= 0)
        return Selection(top_k(stays.float(), counts, tokens.valid), scores=worth)

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """How far a token stands out of the video, and of its frame."""
        frame, sizes = frame_numbers(tokens.image, tokens.coord, tokens.valid)
        to_video, to_frame = self._likeness(tokens, frame, sizes)
        return {"unlike the video": -to_video, "unlike the frame": -to_frame}

    def _likeness(self, tokens: Tokens, frame: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N] likeness of each token to the centre of the video and to that of its frame; 0 off the grid."""
        x = tokens.hidden.detach().to(torch.promote_types(tokens.hidden.dtype, torch.float32))
        real = (frame >= 0)[..., None]
        number = real.sum(1, keepdim=True).clamp(min=1)
        mean = x.masked_fill(~real, 0).sum(1, keepdim=True) / number
        spread = (x - mean).square().masked_fill(~real, 0).sum(1) / number[:, 0]  # [B, D]
        least = spread.argsort(dim=1, stable=True)[:, : max(int(x.shape[2] * self.channels), 1)]
        x = normalize(x.gather(2, least[:, None].expand(-1, x.shape[1], -1)), dim=-1).masked_fill(~real, 0)
        video = x.sum(1, keepdim=True) / number
        into = frame.clamp(min=0)[..., None].expand_as(x)
        frames = torch.zeros_like(x).scatter_add(1, into, x) / sizes.clamp(min=1)[..., None]
        to_video, to_frame = _gaussians(x, video), _gaussians(x, frames.gather(1, into))
        return to_video.masked_fill(~real[..., 0], 0), to_frame.masked_fill(~real[..., 0], 0)

    def _shares(self, to_video: Tensor, frame: Tensor, sizes: Tensor) -> Tensor:
        """[B, G] weight of each frame: its tokens, times more than 1 where it is more unique than the others."""
        sums = torch.zeros_like(to_video).scatter_add(1, frame.clamp(min=0), to_video)
        unique = (-sums / sizes.clamp(min=1) / self.temperature).masked_fill(sizes == 0, -torch.inf)
        share = unique.softmax(1).nan_to_num(0)
        return sizes * (1 + share - 1 / (sizes > 0).sum(1, keepdim=True).clamp(min=1))


def _gaussians(x: Tensor, centre: Tensor) -> Tensor:
    away = (x - centre).square().sum(-1)
    return torch.stack([(-away / (2 * width)).exp() for width in WIDTHS]).sum(0)
