"""A vision model without a language model: one tower of layers and a head that names classes or finds objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from btp.core.host import FixedRows, Layout, Packed, Tower, unwrapped

_BLOCKS = ("encoder.layer", "layers")
_PARTS = {
    "attention": ("attention",),
    "mlp": ("mlp", "intermediate"),
    "attention_norm": ("layernorm_before", "norm1", "norm"),
    "mlp_norm": ("layernorm_after", "norm2"),
    "attention_exit": ("layer_scale1",),
    "mlp_exit": ("layer_scale2",),
    "mlp_sum": ("output",),
}
_AVERAGED = {  # families whose head reads the mean of the patches, and the module whose rows it averages
    "dinov2": "layernorm",
    "dinov2_with_registers": "layernorm",
    "videomae": "encoder.layer.-1",
}
FAMILIES = ("vit", "deit", "yolos", *_AVERAGED)  # what else there is names its rows itself (`fixed_rows`)
_FRONT = ("cls_token", "distillation_token", "register_tokens")


class Backbone:
    """A thin view of a vision model as the engine sees it; it changes nothing in it.

    Tokens are the patches of a picture, or the tubes of a clip (`frames_per_tube` frames of one patch). Rows of the
    tower that are none of them (class, register and detection tokens) never leave.

    Attributes:
        read: what its answers are: "classify" (logits [B, classes]) or "detect" (logits and boxes of detection tokens).
        unit: what its tokens are called: "patches" or "tubes".
        kind: Kind of these models, for loading.
        averaged: the module whose rows the head averages; None where the head reads rows of its own.
        tables: modules that make position tables [layers, 1, rows, C], of which the model adds one behind each layer.

    Args:
        model: ViT, DeiT, DINOv2 or VideoMAE for classification, YOLOS for detection, or a module of btp.models that
            says itself which of its rows are no patches.

    Raises:
        ValueError: it is no such model, or its head reads its rows in a way that pruning would change.
    """

    kind = "vision"
    decoder = rotary = norm = projector = None
    num_layers = 0

    def __init__(self, model: Any) -> None:
        self._outside = model
        self.model = model = unwrapped(model)
        family = getattr(getattr(model, "config", None), "model_type", None)
        base = getattr(model, "base_model", model)
        stack = next((m for path in _BLOCKS if isinstance(m := _module(base, path), nn.ModuleList)), None)
        own = hasattr(base, "fixed_rows")
        if stack is None or not (own or family in FAMILIES):
            raise ValueError(
                f"{type(model).__name__} is no vision model whose tokens can be followed. There are: "
                f"{', '.join(FAMILIES)}, btp_vim and btp_plainmamba. Set model.path to one of them."
            )
        self.config = model.config
        self.vision = base
        if family == "videomae" and not self.config.use_mean_pooling:
            raise ValueError(
                f"{type(model).__name__} reads its answer from its first tube, which might leave. Use a checkpoint "
                "whose config.json says use_mean_pooling: true."
            )
        path = _AVERAGED.get(str(family))
        self.averaged = getattr(base, "averaged", None) if path is None else base.get_submodule(_counted(path, stack))
        mid = _module(base, "encoder.interpolation")
        self.tables = () if mid is None else (mid,)
        self.read = (
            "detect" if type(model).__name__ in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.values() else "classify"
        )
        self.frames_per_tube = getattr(self.config, "tubelet_size", None)
        self.unit = "patches" if self.frames_per_tube is None else "tubes"
        facts: dict[str, Any] = {"fixed": base.fixed_rows if own else _fixed(base.embeddings)}
        facts |= _parts(stack) | dict(getattr(base, "tower_facts", {}))
        self.towers = {"vision": Tower("vision", list(stack), companions=(), feature=len(stack) - 1, **facts)}

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Those of the tower."""
        return self.towers["vision"].layers

    @property
    def hidden_size(self) -> int:
        """Width of the tower."""
        return self.config.hidden_size

    @property
    def labels(self) -> Mapping[int, str]:
        """Class number -> name."""
        return self.config.id2label

    @property
    def device(self) -> torch.device:
        """Where the inputs belong."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.model.parameters()).dtype

    def __call__(self, **inputs: Any) -> Any:
        """The model's own forward."""
        return self._outside(**inputs)

    def picture_grid(self, pixels: Tensor) -> tuple[int, ...]:
        """(rows, columns) of the patches of pictures [B, 3, height, width]; (frames, rows, columns) of the tubes of
        clips [B, frames, 3, height, width].
        """
        high, wide = _pair(self.config.patch_size)
        if grid := getattr(self.vision, "picture_grid", None):
            return grid(pixels)
        plane = (pixels.shape[-2] // high, pixels.shape[-1] // wide)
        return plane if self.frames_per_tube is None else (pixels.shape[1] // self.frames_per_tube, *plane)

    def layout(self, inputs: Mapping[str, Any]) -> Layout:
        """Which of the tower's rows are patches, and where each lies: S is the rows that enter the first layer.

        Raises:
            ValueError: no pixel_values.
        """
        pixels = _pixels(inputs)
        coord = grid_coord(self.picture_grid(pixels), pixels.device)
        tower = self.towers["vision"]
        fixed = tower.fixed(len(coord) + tower.fixed_count)
        rows = len(coord) + len(fixed)
        visual = torch.ones(rows, dtype=torch.bool, device=pixels.device)
        visual[list(fixed)] = False
        every = coord.new_full((rows, 3), -1)
        every[visual] = coord
        B = len(pixels)
        image = visual.long() - 1
        return Layout(visual.expand(B, rows), every.expand(B, rows, 3), image.expand(B, rows))

    def coords(self, inputs: Mapping[str, Any]) -> Tensor:
        """[B, N, 3] (frame, row, column) of the patches in order."""
        pixels = _pixels(inputs)
        coord = grid_coord(self.picture_grid(pixels), pixels.device)
        return coord.expand(len(pixels), *coord.shape)

    def packing(self, kind: str, arguments: Mapping[str, Any]) -> Sequence[Packed] | None:
        """None: there is no prompt."""
        return None

    def example(
        self, batch: int, height: int | None = None, width: int | None = None, frames: int | None = None
    ) -> dict[str, Tensor]:
        """Inputs without a processor: pictures or clips of noise, the same at every call.

        Args:
            batch: Batch of them.
            height, width: Size in pixels; None takes the size that the model was trained with.
            frames: Frames of a clip; None likewise.

        Raises:
            ValueError: frames of a model that takes pictures, or another number of frames than the model takes.
        """
        high, wide = _pair(self.config.image_size)
        shape = (3, height or high, width or wide)
        if self.frames_per_tube is None and frames is not None:
            raise ValueError(
                f"model.example asks for {frames} frames, but {type(self.model).__name__} takes pictures. Remove "
                "model.example.frames."
            )
        if self.frames_per_tube is not None:
            shape = (frames or self.config.num_frames, *shape)
        noise = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(0))
        return {"pixel_values": noise.to(self.device, self.dtype)}


def grid_coord(grid: Sequence[int], device: torch.device) -> Tensor:
    """[N, 3] (frame, row, column) of a grid (rows, columns) or (frames, rows, columns), in raster order."""
    frames, rows, columns = (1, *grid) if len(grid) == 2 else grid
    every = [torch.arange(n, device=device) for n in (frames, rows, columns)]
    return torch.cartesian_prod(*every)


def _fixed(embeddings: nn.Module) -> FixedRows:
    """Class, distillation and register tokens in front, detection tokens at the end."""
    front = sum(part.shape[1] for name in _FRONT if (part := getattr(embeddings, name, None)) is not None)
    tail = getattr(embeddings, "detection_tokens", None)
    behind = 0 if tail is None else tail.shape[1]
    return lambda rows: (*range(front), *range(rows - behind, rows))


def _module(root: nn.Module, path: str) -> Any:
    at: Any = root
    for name in path.split("."):
        at = getattr(at, name, None)
    return at


def _parts(stack: nn.ModuleList) -> dict[str, str | None]:
    """The names that blocks, norms and what stands behind them go by inside a layer."""
    there = dict(stack[0].named_children())
    return {part: next((name for name in names if name in there), None) for part, names in _PARTS.items()}


def _counted(path: str, stack: nn.ModuleList) -> str:
    return path.replace("-1", str(len(stack) - 1))


def _pixels(inputs: Mapping[str, Any]) -> Tensor:
    pixels = inputs.get("pixel_values")
    if not isinstance(pixels, Tensor):
        raise ValueError("The inputs hold no pixel_values, without which a vision model has nothing to look at.")
    return pixels


def _pair(size: Any) -> tuple[int, int]:
    """(high, wide) of a size that a config gives as one number or as two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
