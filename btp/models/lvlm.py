"""The general vision-language model: a root module, and the names of four modules inside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from btp.core.host import Layout, Packed, Tower, front_rows, unwrapped
from btp.models import picture_inputs
from btp.models.decoder_host import DecoderHost, find_module, given_module, parts_of
from btp.models.families import grids
from btp.models.families.adapters import adapter_for

KINDS = ("image", "video")
_VISION = ("vision_tower", "visual", "vision_model")
_PROJECTOR = ("multi_modal_projector", "mm_projector", "connector", "visual.merger")
_BLOCKS = ("encoder.layers", "encoder.layer", "vision_model.encoder.layers", "blocks", "layers")


class LVLM(DecoderHost):
    """A thin view of a transformers model with the standard decoder loop; it changes nothing in it.

    `LVLM(model)` is the family's own subclass where btp has one. Module paths are found by the standard names, or
    given where a family differs. A family whose visual tokens are packed in its own way subclasses `layout`.

    Attributes:
        families: transformers' names (model_type) of the families that a subclass is for.
        pooled: what joins several tokens of the vision tower into one visual token; empty where nothing does.

    Args:
        model: any transformers model for image-text-to-text with `input_ids` and image placeholders.
        vision: path of the vision tower inside `model`, as "model.vision_tower".
        projector: path of the projector.
        decoder: path of the language model, which builds masks and RoPE and holds `norm` and `rotary_emb`.
        layers: path of the decoder layers.

    Raises:
        ValueError: a path does not exist, or the decoder or its layers were not found; the message names the
            key. Or it is no model of transformers, or a wrapper that cannot be taken off.
    """

    families: ClassVar[tuple[str, ...]] = ()
    unit = "visual tokens"
    kind = "image-text"
    pooled = ""

    def __new__(cls, model: Any = None, **paths: Any) -> Self:
        """An object of the family's own class, where the general one is asked for."""
        if cls is LVLM and model is not None:
            config = getattr(unwrapped(model), "config", None)
            cls = cast(type[Self], adapter_for(getattr(config, "model_type", None)) or LVLM)
        return super().__new__(cls)

    def __init__(
        self,
        model: Any,
        *,
        vision: str | None = None,
        projector: str | None = None,
        decoder: str | None = None,
        layers: str | None = None,
    ) -> None:
        super().__init__(model, decoder=decoder, layers=layers)
        self.base: Any = getattr(self.model, "model", self.model)
        self.vision = given_module("vision", self.model, vision) if vision else find_module(self.base, _VISION)
        self.projector = (
            given_module("projector", self.model, projector) if projector else find_module(self.base, _PROJECTOR)
        )
        blocks = find_module(self.vision, _BLOCKS) if self.vision is not None else None
        if isinstance(blocks, nn.ModuleList):
            packed = hasattr(getattr(self.config, "vision_config", None), "spatial_merge_size")
            self.towers["vision"] = Tower(
                "vision",
                cast(Sequence[nn.Module], blocks),
                token_axis=0 if packed else 1,
                companions=("attention_mask",),
                exit="restore",
                fixed=front_rows(_class_tokens(self.vision)),
                feature=None if packed or self.pooled else self._feature_layer(len(blocks)),
                pooled=self.pooled,
                **parts_of(blocks),
            )

    def _feature_layer(self, depth: int) -> int | None:
        """The vision layer that the projector reads; None where it reads several, or class tokens too."""
        asked = getattr(self.config, "vision_feature_layer", None)
        wanted = "default" if _class_tokens(self.vision) else "full"
        if not isinstance(asked, int) or getattr(self.config, "vision_feature_select_strategy", None) != wanted:
            return None
        layer = asked % (depth + 1) - 1  # hidden state 0 is what enters the first layer
        return layer if layer >= 0 else None

    def visual_mask(self, inputs: Mapping[str, Any]) -> Tensor:
        """[B, S] bool: image and video placeholders of the prompt.

        Raises:
            ValueError: no input_ids, or the model's config names no placeholder.
        """
        ids = inputs.get("input_ids")
        if ids is None:
            raise ValueError(
                "The inputs hold no input_ids, so the visual tokens cannot be found. "
                "Pass input_ids with placeholders in place of inputs_embeds."
            )
        images, videos = self._token("image"), self._token("video")
        if images is None:
            raise ValueError(
                f"{type(self.config).__name__} names no image_token_id, so the visual tokens cannot be "
                "found. "
                "Set config.image_token_id to the placeholder's id."
            )
        mask = ids == images
        return mask if videos is None else mask | (ids == videos)

    def coords(self, inputs: Mapping[str, Any]) -> Tensor:
        """[B, N, 3] (frame, row, column) of each row's visual tokens in order, padded with -1. One host
        sync.
        """
        layout = self.layout(inputs)
        counts = layout.visual.sum(1)
        coord = torch.full((len(counts), int(counts.max()), 3), -1, device=counts.device)
        real = torch.arange(coord.shape[1], device=counts.device) < counts[:, None]
        return coord.masked_scatter(real[..., None], layout.coord[layout.visual])

    def layout(self, inputs: Mapping[str, Any]) -> Layout:
        """Where the visual tokens of a forward's inputs lie, and where each lies in its picture.

        A family that btp does not know is held to what it hands over: the placeholders of each row must be whole
        pictures of the grid assumed, as many as there are. One host sync, but none for square pictures on a device: who
        reads the counts then holds them against `Layout.check`.

        Raises:
            ValueError: this family packs its visual tokens in a way the general rules do not know.
        """
        visual = self.visual_mask(inputs)
        if any(inputs.get(f"{kind}_grid_thw") is not None for kind in ("image", "video")):
            coord, first = self._packed(inputs, visual)
        elif visual.device.type != "cpu" and picture_inputs.has(inputs, "image"):
            coord, first, check = self._squares(inputs, visual)
            return Layout(visual, coord, grids.number(visual, first), check=check)
        elif max(counts := visual.sum(1).tolist()) == 0:
            coord, first = torch.full((*visual.shape, 3), -1, device=visual.device), torch.zeros_like(visual)
        else:
            coord, first, check = self._squares(inputs, visual)
            check(counts)
        return Layout(visual, coord, grids.number(visual, first))

    def example(self, batch: int, words: int, height: int, width: int, frames: int | None = None) -> dict[str, Tensor]:
        """Model inputs without a processor: equal prompts of one picture of noise and `words` text tokens behind it.

        A tower with a fixed input gets its own size, whatever is asked: a processor would resize to that.

        Args:
            batch: rows.
            words: text tokens behind the picture.
            height, width: Size of the picture in pixels.
            frames: Frames of a video in place of the picture.

        Raises:
            ValueError: the family takes no video, or its pictures are not one square grid.
        """
        if frames is not None or not hasattr(self.config, "vision_feature_select_strategy"):
            what = "one picture" if frames is None else "a video"
            raise ValueError(
                f"{type(self.model).__name__} has no example inputs of {what}: LVLM.example knows square grids. "
                "Set model.adapter to this family's adapter in btp.models, and correct model.example."
            )
        side = self.config.vision_config.image_size
        pixels = self.noise(batch, 3, side, side)
        rows, columns = self.picture_grid(pixels)
        whole = self.config.vision_feature_select_strategy == "full"
        count = rows * columns + (_class_tokens(self.vision) if whole else 0)
        return self.prompt(batch, [self.placeholder("image")] * count, words) | {"pixel_values": pixels}

    def noise(self, *shape: int) -> Tensor:
        """Pixels for `example`, of the model's dtype and on its device; the same at every call."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device, self.dtype)

    def packing(self, kind: str, arguments: Mapping[str, Any]) -> Sequence[Packed] | None:
        """None: the vision tower's tokens are handed on in order, one to one; `families/packed.py` has the others."""
        return None

    def tiling(self, tiles: int, height: int, width: int) -> tuple[int, int] | None:
        """(rows, columns) in which frames 1, 2, ... of a picture of this size in pixels lie on it, frame 0 showing all
        of it; None where they are no tiles, or nobody can tell.
        """
        return None

    def picture_grid(self, pixels: Tensor) -> tuple[int, int]:
        """(rows, columns) of the vision tower's tokens for pictures [P, 3, height, width]."""
        high, wide = _pair(self.config.vision_config.patch_size)
        return pixels.shape[-2] // high, pixels.shape[-1] // wide

    def _packed(self, inputs: Mapping[str, Any], visual: Tensor) -> tuple[Tensor, Tensor]:
        merge = getattr(getattr(self.config, "vision_config", None), "spatial_merge_size", None)
        if not isinstance(merge, int):
            raise ValueError(self._unknown("its config names no vision_config.spatial_merge_size"))
        coord, first = torch.full((*visual.shape, 3), -1, device=visual.device), torch.zeros_like(visual)
        shown = {kind: inputs[f"{kind}_grid_thw"] for kind in KINDS if inputs.get(f"{kind}_grid_thw") is not None}
        mine = {kind: inputs["input_ids"] == self._token(kind) for kind in shown}
        placed = torch.stack(list(mine.values())).any(0)
        parts = [(visual & ~placed).any()[None].long()]
        parts += [x for kind in shown for x in (mine[kind].sum(1), shown[kind].to(visual.device).flatten())]
        stray, *found = [x.tolist() for x in torch.cat(parts).cpu().split([len(x) for x in parts])]  # one host sync
        for kind, counts, flat in zip(shown, found[::2], found[1::2], strict=True):
            entries = [flat[i : i + 3] for i in range(0, len(flat), 3)]
            sizes = [t * (h // merge) * (w // merge) for t, h, w in entries]
            grids.check_lengths(counts, sizes, type(self.model).__name__, kind)
            its_coord, its_first = grids.packed(mine[kind], entries, merge)
            coord, first = torch.where(mine[kind][..., None], its_coord, coord), first | its_first
        if any(stray):
            raise ValueError(self._unknown("some placeholders belong to no grid of the inputs"))
        return coord, first

    def _squares(
        self, inputs: Mapping[str, Any], visual: Tensor
    ) -> tuple[Tensor, Tensor, Callable[[Sequence[int]], None]]:
        """Where tokens of square pictures lie, and what refuses the counts of rows that are none."""
        rows, columns, extra = self._square(inputs)
        each, pictures, name = (
            rows * columns + extra,
            picture_inputs.lengths(inputs, "image"),
            type(self.model).__name__,
        )
        return *grids.square(visual, rows, columns, extra), lambda n: grids.check_whole(n, each, name, pictures)

    def _square(self, inputs: Mapping[str, Any]) -> tuple[int, int, int]:
        """(rows, columns) of every picture, and tokens in front of each that lie on no grid."""
        vision = getattr(self.config, "vision_config", None)
        strategy = getattr(self.config, "vision_feature_select_strategy", None)
        if strategy is None or inputs.get("image_sizes") is not None:
            raise ValueError(self._unknown("neither one square grid per image nor image_grid_thw"))
        if picture_inputs.has(inputs, "video"):
            raise ValueError(self._unknown("it brings a video, and only pictures are one square grid"))
        pixels, size = picture_inputs.pixels(inputs), getattr(vision, "image_size", None)
        if getattr(vision, "patch_size", None) is None or (pixels is None and size is None):
            raise ValueError(self._unknown("its config names no vision_config.patch_size and image_size"))
        if pixels is None:
            pixels = torch.empty(1, 3, *_pair(size), device="meta")
        return *self.picture_grid(pixels), _class_tokens(self.vision) if strategy == "full" else 0

    def _unknown(self, why: str) -> str:
        return (
            f"{type(self.model).__name__} packs its visual tokens in a way that LVLM.layout does not know ({why}). Use "
            "this family's adapter in btp.models, or subclass LVLM and override layout."
        )

    def placeholder(self, kind: str) -> int:
        """Id of the placeholder of pictures ("image") or videos ("video")."""
        token = self._token(kind)
        assert token is not None  # families with example inputs name it
        return token

    def _token(self, kind: str) -> int | None:
        for name in (f"{kind}_token_id", f"{kind}_token_index"):
            if getattr(self.config, name, None) is not None:
                return getattr(self.config, name)
        return None


def _pair(size: Any) -> tuple[int, int]:
    """(high, wide) of a size that a config gives as one number or as two."""
    return (size, size) if isinstance(size, int) else tuple(size)


def _class_tokens(vision: nn.Module | None) -> int:
    """Tokens that a vision tower puts in front of the patches."""
    embeddings = getattr(vision, "embeddings", None) or getattr(
        getattr(vision, "vision_model", None), "embeddings", None
    )
    named = ("class_embedding", "cls_token", "distillation_token")
    return sum(getattr(embeddings, name, None) is not None for name in named)
