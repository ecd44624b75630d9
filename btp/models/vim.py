"""Vim (Zhu et al. 2024, arXiv:2401.09417): a vision backbone of state space blocks, under its official parameter names.

Every block scans the patches forwards and backwards; the class token stands in their middle. Rows may be missing: a
layer that is told the places of the rows that it gets treats the others as tokens that put nothing into the state, but
pass time. In stock PyTorch, since the official kernels need CUDA.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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


@strict
class VimConfig(PreTrainedConfig):
    """Sizes of a Vim; the defaults are those of Vim-Ti."""

    model_type = "btp_vim"

    image_size: int = 224
    patch_size: int = 16
    patch_stride: int | None = None
    num_channels: int = 3
    hidden_size: int = 192
    num_hidden_layers: int = 24
    state_size: int = 16
    expand: int = 2
    conv_kernel: int = 4
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02


@dataclass(frozen=True)
class Missing:
    """Which rows of one direction are missing: places [K, B] in its order, and how that is taken."""

    places: Tensor | None
    length: int
    gap: str
    conv: str


class Join(nn.Module):
    """Adds the directions of a scan and gates them: where they can be seen, forward and backward in turn."""

    def forward(self, gate: Tensor, *directions: Tensor) -> Tensor:
        """[N, B, E] each."""
        return sum(directions[1:], directions[0]) * gate


class VimMixer(nn.Module):
    """Gated state space mixer of two directions. The parameters of the backward one carry `_b`."""

    def __init__(self, config: VimConfig):
        super().__init__()
        width, inner = config.hidden_size, config.hidden_size * config.expand
        self.states, self.rank = config.state_size, math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.join = Join()
        self.out_proj = nn.Linear(inner, width, bias=False)
        for suffix in ("", "_b"):
            taps = config.conv_kernel
            self.add_module(f"conv1d{suffix}", nn.Conv1d(inner, inner, taps, groups=inner, padding=taps - 1))
            self.add_module(f"x_proj{suffix}", nn.Linear(inner, self.rank + 2 * self.states, bias=False))
            self.add_module(f"dt_proj{suffix}", nn.Linear(self.rank, inner))
            self.register_parameter(f"A{suffix}_log", nn.Parameter(torch.empty(inner, self.states)))
            self.register_parameter(f"D{suffix}", nn.Parameter(torch.empty(inner)))

    def forward(
        self,
        hidden: Tensor,
        places: Tensor | None = None,
        length: int | None = None,
        gap: str = "own",
        conv: str = "aligned",
    ) -> Tensor:
        """Mix the rows.

        Args:
            hidden: [B, K, C] rows.
            places: [B, K] where each row stands in the whole sequence, ascending, -1 padded at the end; None = no row
                is missing.
            length: rows of the whole sequence; goes with `places`.
            gap, conv: what happens at missing rows (btp.models.missing_rows); gap masked computes them as rows of
                zeros, which the convolution makes leak into the state.

        Returns:
            [B, K, C].
        """
        whole = length or 0
        if places is not None and gap == "masked":
            rows, places = hidden.transpose(0, 1), places.T
            return rows_at(self(spread_rows(rows, places, whole).transpose(0, 1)).transpose(0, 1), places).transpose(
                0, 1
            )
        x, gate = self.in_proj(hidden.transpose(0, 1)).chunk(2, -1)  # [K, B, E]: a step of the scan is contiguous
        back = None
        if places is not None:
            places = places.T
            x = x * (places >= 0)[..., None]
            back = torch.where(places < 0, -1, whole - 1 - places).flip(0)
        missing = Missing(places, whole, gap, conv)
        forwards = self._direction(x, "", missing)
        backwards = self._direction(x.flip(0), "_b", replace(missing, places=back)).flip(0)
        return self.out_proj(self.join(F.silu(gate), forwards, backwards) / 2).transpose(0, 1)

    def _direction(self, x: Tensor, suffix: str, missing: Missing) -> Tensor:
        u = F.silu(self._convolve(x, getattr(self, f"conv1d{suffix}"), missing))
        parts = getattr(self, f"x_proj{suffix}")(u).split([self.rank, self.states, self.states], -1)
        step = getattr(self, f"dt_proj{suffix}")
        delta = F.softplus(step(parts[0]))  # [K, B, E]
        put = delta * u if missing.places is None else delta * u * (missing.places >= 0)[..., None]
        passed = time_passed(delta, missing.places, missing.gap, F.softplus(step.bias))
        rate = -torch.exp(getattr(self, f"A{suffix}_log").float())
        decay = torch.exp(passed[:, :, None] * rate.T)  # [K, B, n, E]: rows of E are long, those of n short
        states = scan(decay, parts[1][..., None] * put[:, :, None])
        return (parts[2][:, :, None] @ states)[:, :, 0] + u * getattr(self, f"D{suffix}")

    @staticmethod
    def _convolve(x: Tensor, conv: nn.Conv1d, missing: Missing) -> Tensor:
        """Causal depthwise convolution as a sum of shifted rows: conv1d of many groups is slow on a processor."""
        places = missing.places if missing.conv == "aligned" else None
        if places is not None:
            x = spread_rows(x, places, missing.length)
        taps = conv.weight[:, 0].T  # [k, E]
        padded = F.pad(x, (0, 0, 0, 0, len(taps) - 1, 0))
        assert conv.bias is not None  # the mixer makes it with one
        out = sum(padded[k : k + len(x)] * tap for k, tap in enumerate(taps)) + conv.bias
        return out if places is None else rows_at(out, places)


class VimBlock(nn.Module):
    """RMS norm and mixer, added to the residual stream."""

    def __init__(self, config: VimConfig):
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mixer = VimMixer(config)

    def forward(
        self,
        hidden: Tensor,
        places: Tensor | None = None,
        length: int | None = None,
        gap: str = "own",
        conv: str = "aligned",
    ) -> Tensor:
        """[B, K, C] states; the rest as the mixer takes it."""
        return hidden + self.mixer(self.norm(hidden), places, length, gap, conv)


class VimPatches(nn.Module):
    """Patches of a picture as rows."""

    def __init__(self, config: VimConfig):
        super().__init__()
        stride = config.patch_stride or config.patch_size
        self.proj = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, stride)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, h, w] to [B, patches, C] in raster order."""
        return self.proj(pixel_values).flatten(2).transpose(1, 2)


class VimForImageClassification(PreTrainedModel):
    """Vim with a linear head on its class token."""

    config_class = VimConfig
    main_input_name = "pixel_values"
    base_model_prefix = "vim"
    _no_split_modules = ["VimBlock"]  # noqa: RUF012 - as transformers declares it
    tower_facts = MappingProxyType({"attends": False, "places": True, "exit": "restore", "directions": "mixer.join"})

    def __init__(self, config: VimConfig):
        super().__init__(config)
        if (config.image_size - config.patch_size) % (config.patch_stride or config.patch_size):
            raise ValueError(
                f"image_size is {config.image_size}, which patch_size {config.patch_size} does not divide. Change one "
                "of them in the model's config."
            )
        patches = self.picture_grid(None)[0] ** 2
        self.middle = patches // 2
        self.patch_embed = VimPatches(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.pos_embed = nn.Parameter(torch.empty(1, patches + 1, config.hidden_size))
        self.layers = nn.ModuleList(VimBlock(config) for _ in range(config.num_hidden_layers))
        self.norm_f = nn.RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, cast(int, config.num_labels))
        self.post_init()

    def picture_grid(self, pixels: Tensor | None) -> tuple[int, int]:
        """(rows, columns) of its patches; it takes pictures of one size."""
        config = self.config
        side = (config.image_size - config.patch_size) // (config.patch_stride or config.patch_size) + 1
        return side, side

    def fixed_rows(self, rows: int) -> tuple[int, ...]:
        """The class token, in the middle of `rows` rows."""
        return ((rows - 1) // 2,)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, h, w] pixels to [B, patches + 1, C] final rows; the class token is row `middle`.

        Raises:
            ValueError: the picture has another size than the config says.
        """
        side = self.config.image_size
        if pixel_values.shape[-2:] != (side, side):
            found = "x".join(str(n) for n in pixel_values.shape[-2:])
            raise ValueError(f"The picture has {found} pixels, but image_size is {side}. Resize it to {side}x{side}.")
        rows = self.patch_embed(pixel_values)
        token = self.cls_token.expand(len(rows), -1, -1)
        hidden = torch.cat([rows[:, : self.middle], token, rows[:, self.middle :]], 1) + self.pos_embed
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm_f(hidden)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs) -> ImageClassifierOutput:
        """Logits [B, labels] of pixels [B, 3, h, w], and the cross-entropy where `labels` [B] are given."""
        logits = self.head(self.encode(pixel_values)[:, self.middle])
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VimForImageClassification):
            init.normal_(module.cls_token, std=self.config.initializer_range)
            init.normal_(module.pos_embed, std=self.config.initializer_range)
        if isinstance(module, VimMixer):
            self._init_mixer(module)

    def _init_mixer(self, mixer: VimMixer) -> None:
        """Decays 1 to n, steps between 0.001 and 0.1, and an output that shrinks with depth."""
        for suffix in ("", "_b"):
            rates, step = getattr(mixer, f"A{suffix}_log"), getattr(mixer, f"dt_proj{suffix}")
            init.copy_(rates, torch.arange(1.0, mixer.states + 1).log().expand_as(rates))
            init.ones_(getattr(mixer, f"D{suffix}"))
            begin_steps(step, mixer.rank)
            conv = getattr(mixer, f"conv1d{suffix}")
            init.kaiming_uniform_(conv.weight, a=math.sqrt(5))
        for linear in (mixer.in_proj, *(getattr(mixer, f"x_proj{suffix}") for suffix in ("", "_b"))):
            init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
        output = mixer.out_proj
        init.normal_(output.weight, std=(3 * output.in_features * self.config.num_hidden_layers) ** -0.5)


def begin_steps(step: nn.Linear, rank: int) -> None:
    """Initialise the projection of a scan's step sizes, so that they begin log-uniformly between 0.001 and 0.1."""
    init.uniform_(step.weight, -(rank**-0.5), rank**-0.5)
    first = torch.exp(torch.empty_like(step.bias).uniform_(math.log(0.001), math.log(0.1)))
    init.copy_(step.bias, first + torch.log(-torch.expm1(-first)))  # softplus of it is `first`


AutoConfig.register("btp_vim", VimConfig)
AutoModelForImageClassification.register(VimConfig, VimForImageClassification)
