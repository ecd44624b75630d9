"""What the engine needs to know about a model: its towers and where its visual tokens lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@dataclass(frozen=True)
class Tower:
    """A stack of layers that tokens walk through; an encoder and a language model are the same thing here.

    Attributes:
        name: "llm" or "vision", the first word of its sites.
        layers: in order; each takes the hidden states as the first parameter of `forward`.
        token_axis: axis of the hidden states along which tokens lie: 1 for [B, S, D], 0 for packed [T, D].
        companions: parameters of a layer's `forward` that carry a token axis and must be taken along a cut.
        exit: "short" hands on fewer tokens, "restore" needs the original length back behind the last layer.
        attends: False for towers without attention (state-space), where attention signals are refused.
        class_tokens: tokens in front of the patches that are never visual tokens (a vision tower's class token).
        feature: layer whose output the projector reads; None where there is none, or more than one.
        attention, mlp: names of the two blocks inside a layer; None where they are not told apart.
        attention_norm, mlp_norm: names of the norms in front of the two.
    """

    name: str
    layers: Sequence[nn.Module]
    token_axis: int = 1
    companions: tuple[str, ...] = ("attention_mask", "position_ids", "position_embeddings")
    exit: str = "short"
    attends: bool = True
    class_tokens: int = 0
    feature: int | None = None
    attention: str | None = None
    mlp: str | None = None
    attention_norm: str | None = None
    mlp_norm: str | None = None


@dataclass(frozen=True)
class Layout:
    """Where the visual tokens of a prompt lie. B batch, S prompt length.

    Attributes:
        visual: [B, S] bool.
        coord: [B, S, 3] (frame, row, column) in the token's own image or video; -1 off the grid and for text.
        image: [B, S] which image or video of the row, 0-based; -1 for text.
    """

    visual: Tensor
    coord: Tensor
    image: Tensor


@runtime_checkable
class Host(Protocol):
    """A model as the engine sees it; `btp.models.lvlm.LVLM` is one."""

    @property
    def model(self) -> nn.Module:
        """The root module, whose forward takes input_ids."""
        ...

    @property
    def decoder(self) -> nn.Module:
        """The language model, which builds masks and RoPE and loops over the layers."""
        ...

    @property
    def towers(self) -> Mapping[str, Tower]:
        """By name; "llm" is always there."""
        ...

    @property
    def vision(self) -> nn.Module | None:
        """The vision tower; None without one."""
        ...

    @property
    def projector(self) -> nn.Module | None:
        """Takes the vision tower's features [pictures, tokens, C] to the language model; None without one."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width of the language model's hidden states."""
        ...

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        ...

    @property
    def rotary(self) -> nn.Module | None:
        """The decoder's RoPE module, (hidden, position_ids) -> (cos, sin); None where it has none."""
        ...

    @property
    def norm(self) -> nn.Module | None:
        """The decoder's final norm; None where it has none."""
        ...

    def layout(self, inputs: Mapping[str, Any]) -> Layout:
        """Where the visual tokens of a forward's inputs lie."""
        ...

    def picture_grid(self, pixels: Tensor) -> tuple[int, int]:
        """(rows, columns) of the vision tower's tokens for pictures [P, 3, height, width]."""
        ...
