"""What the engine needs to know about a model: its towers, where its visual tokens lie, what is wrapped around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

FixedRows = Callable[[int], Sequence[int]]

PROMPT_TOKENS = "prompt tokens"  # unit of hosts that take no pictures


def front_rows(count: int) -> FixedRows:
    """The first `count` rows, whatever there is behind them: class and register tokens of most towers."""
    return lambda rows: tuple(range(count))


_MANY = 1 << 20  # rows of a tower that is longer than any
_NONE = front_rows(0)


@dataclass(frozen=True)
class Tower:
    """A stack of layers that tokens walk through; an encoder and a language model are the same thing here.

    Attributes:
        name: "llm" or "vision", the first word of its sites.
        layers: Layers in order; each takes the hidden states as the first parameter of `forward`.
        token_axis: axis of the hidden states along which tokens lie: 1 for [B, S, D], 0 for packed [T, D].
        companions: parameters of a layer's `forward` that carry a token axis and must be taken along a cut.
        exit: "short" hands on fewer tokens, "restore" needs the original length back behind the last layer.
        attends: False for towers without attention (state-space), where attention signals are refused.
        fixed: number of rows -> the rows that are no patches and never leave, ascending: a class token in front or in
            the middle, detection tokens at the end.
        places: its layers take `places`, `length`, `gap` and `conv` behind a cut: a scan must know which rows are
            missing.
        directions: path inside a layer of the module that joins the directions of a scan, called with the gate and
            each direction, forward and backward in turn, [N, B, E]; None without a scan.
        feature: layer whose output the projector reads; None where there is none, or more than one.
        pooled: what joins several of its tokens into one visual token ("a pixel shuffle"), so that no stage or
            signal can stand in it; empty where nothing does.
        attention, mlp: names of the two blocks inside a layer; None where they are not told apart.
        attention_norm, mlp_norm: names of the norms in front of the two.
        attention_exit, mlp_exit: names of modules behind the two, through which what they add passes; None without.
        mlp_sum: name of the module that adds the MLP's output to the residual, which is its second argument; None where
            the layer adds them itself.
    """

    name: str
    layers: Sequence[nn.Module]
    token_axis: int = 1
    companions: tuple[str, ...] = ("attention_mask", "position_ids", "position_embeddings")
    exit: str = "short"
    attends: bool = True
    fixed: FixedRows = _NONE
    places: bool = False
    directions: str | None = None
    feature: int | None = None
    pooled: str = ""
    attention: str | None = None
    mlp: str | None = None
    attention_norm: str | None = None
    mlp_norm: str | None = None
    attention_exit: str | None = None
    mlp_exit: str | None = None
    mlp_sum: str | None = None

    @property
    def class_tokens(self) -> int:
        """Fixed rows in front of the patches."""
        return next(i for i, row in enumerate([*self.fixed(_MANY), _MANY]) if row != i)

    @property
    def fixed_count(self) -> int:
        """Fixed rows, wherever they stand."""
        return len(self.fixed(_MANY))


@dataclass(frozen=True)
class Layout:
    """Which tokens of a prompt may be withdrawn, and where they lie. B batch, S prompt length.

    Attributes:
        visual: [B, S] bool, tokens that may be withdrawn: the visual ones; of a text model all but padding and the
            last.
        coord: [B, S, 3] (frame, row, column) in the token's own image or video; -1 off the grid and for text.
        image: [B, S] which image or video of the row, 0-based; -1 for text.
        source: [B, S] which of the vision tower's output tokens each visual token is (picture * tokens per picture +
            slot, pictures of the batch in the order in which they pass the tower); -1 where it is none of them and for
            text. None: in order, one to one.
        check: refuses the visual tokens of each row by a ValueError, once they are known to the host; None where that
            was done.
    """

    visual: Tensor
    coord: Tensor
    image: Tensor
    source: Tensor | None = None
    check: Callable[[Sequence[int]], None] | None = None


@dataclass(frozen=True)
class Packed:
    """One entry of what an encoder hands to the language model: a picture, a video, or one frame of a video.

    Attributes:
        coord: [T, 3] (frame, row, column) of its T tokens in the picture or video; -1 off the grid.
        source: [T] as `Layout.source`.
        begins: it is a picture or video of its own, and not a later frame of the one before.
    """

    coord: Tensor
    source: Tensor
    begins: bool = True


@dataclass(frozen=True, eq=False)
class Encoding:
    """Pictures or videos that a generate() encoded before it called the model.

    Attributes:
        arguments: what the encoder was called with; pixels without their content (device meta).
        which: which of the encoded entries the prompt was given, in its order; beams repeat them.
    """

    arguments: Mapping[str, Any]
    which: tuple[int, ...]


@runtime_checkable
class Host(Protocol):
    """A model as the engine sees it; `btp.models.lvlm.LVLM` and `btp.models.text.TextLM` are."""

    @property
    def unit(self) -> str:
        """What a token that may be withdrawn is called: "visual tokens", PROMPT_TOKENS, "patches", "tubes"."""
        ...

    @property
    def model(self) -> nn.Module:
        """The root module, whose forward takes input_ids."""
        ...

    @property
    def decoder(self) -> nn.Module | None:
        """The language model, which builds masks and RoPE and loops over the layers; None without one."""
        ...

    @property
    def towers(self) -> Mapping[str, Tower]:
        """By name: "llm", "vision"."""
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
        """Width of the language model's hidden states; of the vision tower's without one."""
        ...

    @property
    def num_layers(self) -> int:
        """Decoder layers; 0 without a language model."""
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
        """Where the visual tokens of a forward's inputs lie.

        Behind a generate() the inputs hold `encoded`: kind ("image", "video") -> Encoding, in place of pixels, sizes
        and grids.
        """
        ...

    def packing(self, kind: str, arguments: Mapping[str, Any]) -> Sequence[Packed] | None:
        """What becomes of the pictures ("image") or videos ("video") of an encoder's arguments; None where the tokens
        of the vision tower are handed on in order, one to one, or there are none.
        """
        ...

    def picture_grid(self, pixels: Tensor) -> tuple[int, ...]:
        """(rows, columns) of the vision tower's tokens for pictures [P, 3, height, width]; (frames, rows, columns) for
        clips [P, frames, 3, height, width] of a tower that takes them whole.
        """
        ...


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that computes, inside of whatever wraps it; the module itself where nothing does.

    Raises:
        ValueError: the wrapper does more than to call it, as peft's prompt learning does.
    """
    while (inside := _inside(model)) is not None:
        model = inside
    return model


def _inside(model: nn.Module) -> nn.Module | None:
    parts = getattr(model, "_modules", {})
    if "_orig_mod" in parts:  # torch.compile
        return parts["_orig_mod"]
    if isinstance(model, DataParallel | DistributedDataParallel):
        return model.module
    if type(model).__module__.partition(".")[0] != "peft" and not hasattr(type(model), "get_base_model"):
        return None
    kind = getattr(model, "active_peft_config", None)
    if getattr(kind, "is_prompt_learning", False):
        raise ValueError(
            f"{type(model).__name__} holds an adapter of kind {type(kind).__name__}, which puts learned tokens into "
            "every prompt, where nothing says which tokens are the picture's. Use one that changes weights, such as "
            "LoRA, or the model without it."
        )
    return parts.get("base_model", parts.get("model"))  # peft's wrapper, and its tuner inside
