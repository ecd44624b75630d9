"""PlainMamba (Yang et al. 2024, arXiv:2403.17695): state space blocks that snake over the grid in four directions.

Under its official parameter names. As there, only the input of a scan follows its path: step sizes and the vectors that
put in and read out stay in raster order, so that step l takes those of patch l, whichever patch it visits; and the bias
of the step size is added twice. `permute_params` makes a model whose parameters follow the path.
"""

from __future__ import annotations

import functools
import math
from types import MappingProxyType
from typing import cast

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput

from btp.models.missing_rows import rows_at, spread_rows, time_passed
from btp.models.scan import scan
from btp.models.vim import Join, begin_steps

START, RIGHT, LEFT, UP, DOWN = range(5)
_STEM = 64  # channels of the convolutions in front of the patches


@strict
class PlainMambaConfig(PreTrainedConfig):
    """Sizes of a PlainMamba; the defaults are those of L1."""

    model_type = "btp_plainmamba"

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 192
    num_hidden_layers: int = 24
    state_size: int = 16
    expand: int = 2
    conv_size: int = 7
    stem_convs: int = 1
    dwconv_layers: list[int] | None = None
    permute_params: bool = False
    initializer_range: float = 0.02


@functools.lru_cache(maxsize=64)
def paths(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """The four ways over a grid: along rows, back, along columns, back.

    Returns:
        [4, rows * columns] raster index of the patch that each step visits, and the move that led there: 0 start,
        1 right, 2 left, 3 up, 4 down.
    """
    grid = torch.arange(rows * columns).view(rows, columns)
    along = torch.cat([row if i % 2 == 0 else row.flip(0) for i, row in enumerate(grid)])
    down = torch.cat([column if j % 2 == 0 else column.flip(0) for j, column in enumerate(grid.T)])
    orders = torch.stack([along, along.flip(0), down, down.flip(0)])
    move = torch.diff(torch.stack([orders // columns, orders % columns]), dim=2)
    codes = torch.full_like(orders, START)
    for code, (by_row, by_column) in ((RIGHT, (0, 1)), (LEFT, (0, -1)), (UP, (-1, 0)), (DOWN, (1, 0))):
        codes[:, 1:][(move[0] == by_row) & (move[1] == by_column)] = code
    return orders, codes


class PlainMambaMixer(nn.Module):
    """Gated state space mixer of four directions, which share all parameters but a vector for each move."""

    def __init__(self, config: PlainMambaConfig):
        super().__init__()
        width, inner = config.hidden_size, config.hidden_size * config.expand
        self.states, self.rank = config.state_size, math.ceil(width / 16)
        self.permute_params = config.permute_params
        self.in_proj = nn.Linear(width, 2 * inner)
        self.conv2d = nn.Conv2d(inner, inner, config.conv_size, padding=config.conv_size // 2, groups=inner)
        self.x_proj = nn.Linear(inner, self.rank + 2 * self.states, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, self.states))
        self.D = nn.Parameter(torch.empty(inner))
        self.direction_Bs = nn.Parameter(torch.empty(5, self.states))
        self.join = Join()
        self.out_proj = nn.Linear(inner, width)

    def forward(
        self,
        hidden: Tensor,
        hw_shape: tuple[int, int],
        places: Tensor | None = None,
        gap: str | None = None,
        conv: str = "aligned",
    ) -> Tensor:
        """Mix the rows.

        Args:
            hidden: [B, K, C] rows.
            hw_shape: (rows, columns) of the whole grid.
            places: [B, K] raster index of each row, ascending, -1 padded at the end; None = no row is missing.
            gap: what happens at missing rows (btp.models.missing_rows); masked computes the whole grid with inputs of
                zero there, of which the convolution makes something. None is own where parameters follow the path, and
                masked otherwise.
            conv: aligned alone: a convolution over a grid has nothing to close up.

        Raises:
            ValueError: conv is closed, or a step would take the parameters of a row that is missing.
        """
        gap = gap or ("own" if self.permute_params else "masked")
        if places is not None:
            self._check(gap, conv)
            places = places.T
        length = hw_shape[0] * hw_shape[1]
        x, gate = self.in_proj(hidden.transpose(0, 1)).chunk(2, -1)  # [K, B, E]
        whole = x if places is None else spread_rows(x, places, length)
        whole = F.silu(_over_grid(self.conv2d, whole, hw_shape))
        masked = places is not None and gap == "masked"
        u = whole if places is None or masked else rows_at(whole, places)
        ys = self._scan(u, hw_shape, None if masked else places, gap)
        if places is not None and masked:
            ys = [rows_at(y, places) for y in ys]
        return self.out_proj(self.join(F.silu(gate), *ys)).transpose(0, 1)

    def _scan(self, u: Tensor, hw_shape: tuple[int, int], places: Tensor | None, gap: str) -> list[Tensor]:
        """[K, B, E] what each direction puts out, in raster order."""
        low, put, read = self.x_proj(u).split([self.rank, self.states, self.states], -1)
        delta = F.softplus(self.dt_proj(low) + self.dt_proj.bias)
        if places is not None:
            u = u * (places >= 0)[..., None]
        rate, found = -torch.exp(self.A_log.float()).T, []
        orders, codes = (x.to(u.device) for x in paths(*hw_shape))
        for path, moves in zip(orders, codes, strict=True):
            order, steps = self._visits(path, places)
            own = (delta, put, read)
            if self.permute_params:
                own = tuple(_in_order(x, order) for x in own)
            step, into, out = own
            led = moves[:, None] if steps is None else moves[steps.clamp(min=0)]
            passed = time_passed(step, steps, gap, F.softplus(2 * self.dt_proj.bias))
            visited = _in_order(u, order)
            decay = torch.exp(passed[:, :, None] * rate)  # [K, B, n, E]
            states = scan(decay, (into + self.direction_Bs[led])[..., None] * (step * visited)[:, :, None])
            y = (out[:, :, None] @ states)[:, :, 0] + visited * self.D
            found.append(_back(y, order))
        return found

    @staticmethod
    def _visits(path: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The rows in the order in which a path visits them, [K] or [K, B], and the step of each visit."""
        if places is None:
            return path, None
        step = torch.empty_like(path).scatter(0, path, torch.arange(len(path), device=path.device))
        key = step[places.clamp(min=0)].masked_fill(places < 0, len(path))  # padding comes last in every direction
        steps, order = key.sort(dim=0)
        return order, steps.masked_fill(steps == len(path), -1)

    def _check(self, gap: str, conv: str) -> None:
        if conv == "closed":
            raise ValueError(
                "pruner.method.conv is closed, but PlainMamba convolves over the grid, where rows that are missing "
                "leave holes. Set pruner.method.conv=aligned."
            )
        if not self.permute_params and gap not in ("masked", "none"):
            raise ValueError(
                f"pruner.method.gap is {gap}, but in this PlainMamba each step of a scan takes its step size from "
                "another patch than it visits, which may be missing. Set pruner.method.gap=masked (or none, which "
                "closes the gaps)."
            )


class PlainMambaBlock(nn.Module):
    """Layer norm and mixer, added to the residual stream; in some layers a convolution over the grid behind them."""

    def __init__(self, config: PlainMambaConfig, dwconv: bool):
        super().__init__()
        width = config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.mamba = PlainMambaMixer(config)
        self.dw = None
        if dwconv:
            conv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
            self.dw = nn.Sequential(conv, nn.BatchNorm2d(width), nn.GELU())

    def forward(
        self,
        hidden: Tensor,
        hw_shape: tuple[int, int],
        places: Tensor | None = None,
        length: int | None = None,
        gap: str | None = None,
        conv: str = "aligned",
    ) -> Tensor:
        """[B, K, C] states; the rest as the mixer takes it."""
        hidden = hidden + self.mamba(self.norm(hidden), hw_shape, places, gap, conv)
        if self.dw is None:
            return hidden
        rows = hidden.transpose(0, 1)
        if places is None:
            return _over_grid(self.dw, rows, hw_shape).transpose(0, 1)
        whole = _over_grid(self.dw, spread_rows(rows, places.T, hw_shape[0] * hw_shape[1]), hw_shape)
        return rows_at(whole, places.T).transpose(0, 1)


class PlainMambaPatches(nn.Module):
    """Convolutions at half the picture's size, and patches of them as rows."""

    def __init__(self, config: PlainMambaConfig):
        super().__init__()
        first = nn.Conv2d(config.num_channels, _STEM, 7, stride=2, padding=3, bias=False)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(_STEM), nn.ReLU())
        more = []
        for _ in range(config.stem_convs):
            more += [nn.Conv2d(_STEM, _STEM, 3, padding=1, bias=False), nn.BatchNorm2d(_STEM), nn.ReLU()]
        self.convs = nn.Sequential(*more)
        half = config.patch_size // 2
        self.projection = nn.Conv2d(_STEM, config.hidden_size, half, half)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, h, w] to [B, patches, C] in raster order."""
        return self.projection(self.convs(self.stem(pixel_values))).flatten(2).transpose(1, 2)


class PlainMambaForImageClassification(PreTrainedModel):
    """PlainMamba with a linear head on the mean of its patches."""

    config_class = PlainMambaConfig
    main_input_name = "pixel_values"
    base_model_prefix = "plainmamba"
    _no_split_modules = ["PlainMambaBlock"]  # noqa: RUF012 - as transformers declares it
    tower_facts = MappingProxyType({"attends": False, "places": True, "directions": "mamba.join"})

    def __init__(self, config: PlainMambaConfig):
        super().__init__(config)
        side, odd = divmod(config.image_size, config.patch_size)
        if odd or config.patch_size % 2:
            raise ValueError(
                f"image_size is {config.image_size} and patch_size {config.patch_size}; the patch must be even and "
                "divide the picture. Change one of them in the model's config."
            )
        self.patch_embed = PlainMambaPatches(config)
        self.pos_embed = nn.Parameter(torch.empty(1, side * side, config.hidden_size))
        wide = config.dwconv_layers or ()
        self.layers = nn.ModuleList(PlainMambaBlock(config, i in wide) for i in range(config.num_hidden_layers))
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.head = nn.Linear(config.hidden_size, cast(int, config.num_labels))
        self.post_init()

    def fixed_rows(self, rows: int) -> tuple[int, ...]:
        """None: every row is a patch."""
        return ()

    @property
    def averaged(self) -> nn.Module:
        """The module whose rows the head averages."""
        return self.norm1

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs) -> ImageClassifierOutput:
        """Logits [B, labels] of pixels [B, 3, h, w], and the cross-entropy where `labels` [B] are given.

        Raises:
            ValueError: the picture has another size than the config says.
        """
        side, patch = self.config.image_size, self.config.patch_size
        if pixel_values.shape[-2:] != (side, side):
            found = "x".join(str(n) for n in pixel_values.shape[-2:])
            raise ValueError(f"The picture has {found} pixels, but image_size is {side}. Resize it to {side}x{side}.")
        hidden = self.patch_embed(pixel_values) + self.pos_embed
        for layer in self.layers:
            hidden = layer(hidden, (side // patch, side // patch))
        logits = self.head(self.norm1(hidden).mean(1))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PlainMambaForImageClassification):
            init.normal_(module.pos_embed, std=self.config.initializer_range)
        if isinstance(module, PlainMambaMixer):
            init.copy_(module.A_log, torch.arange(1.0, module.states + 1).log().expand_as(module.A_log))
            init.ones_(module.D)
            init.normal_(module.direction_Bs, std=self.config.initializer_range)
            begin_steps(module.dt_proj, module.rank)


def _over_grid(module: nn.Module, rows: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    """[L, B, E] rows of a grid through a module that takes [B, E, rows, columns]."""
    L, B, E = rows.shape
    return module(rows.permute(1, 2, 0).reshape(B, E, *hw_shape)).reshape(B, E, L).permute(2, 0, 1)


def _in_order(x: Tensor, order: Tensor) -> Tensor:
    """Rows [K, B, E] in an order [K], or one of each column [K, B]."""
    return x[order] if order.dim() == 1 else x.gather(0, order[..., None].expand(*order.shape, x.shape[-1]))


def _back(y: Tensor, order: Tensor) -> Tensor:
    """What `_in_order` did, undone."""
    order = order[:, None].expand(*y.shape[:2]) if order.dim() == 1 else order
    return torch.empty_like(y).scatter(0, order[..., None].expand_as(y), y)


AutoConfig.register("btp_plainmamba", PlainMambaConfig)
AutoModelForImageClassification.register(PlainMambaConfig, PlainMambaForImageClassification)
