"""How papers count the operations of a prefill: one function, and a convention as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from btp.measure.architecture import Architecture, Stack
from btp.measure.flops import vision
from btp.measure.segments import square


@dataclass(frozen=True)
class Convention:
    """What a published count holds; n tokens, d hidden, m width inside the MLP, h heads.

    Attributes:
        multiply_add: a multiply-add counts as 1 or 2.
        matrices: of the MLP that are counted: 3 (gate, up, down) or 2.
        grouped: keys and values are as narrow as the model makes them; False takes four d x d projections.
        text: text tokens count, and visual tokens see them.
        softmax: operations per head and pair of tokens beside the two products of attention.
        vision: the vision tower counts, every picture or tile once; the projector never does.
        mean: Mean of the layers, in place of their sum.
    """

    multiply_add: int = 1
    matrices: int = 3
    grouped: bool = False
    text: bool = False
    softmax: int = 0
    vision: bool = False
    mean: bool = False

    @property
    def formula(self) -> str:
        """Of one layer, as a paper would print it."""
        kv = "2n(d_q + d_kv)d" if self.grouped else "4nd^2"
        terms = f"{kv} + 2n^2d + {self.matrices}ndm"
        softmax = f" + {self.softmax}n^2h" if self.softmax else ""
        return f"{self.multiply_add}({terms}){softmax}" if self.multiply_add > 1 else terms + softmax

    @property
    def left_out(self) -> tuple[str, ...]:
        """What a reader might expect in it, and is not."""
        missing = {
            "text": not self.text,
            "vision tower": not self.vision,
            "third MLP matrix": self.matrices < 3,
            "softmax": not self.softmax,
        }
        return (*(what for what, absent in missing.items() if absent), "projector", "selection", "output head")


def count(
    convention: Convention,
    sizes: Architecture,
    visual: Sequence[float],
    text: float = 0,
    pictures: int = 1,
    modules: float = 0,
) -> float:
    """Operations of a prefill as a paper counts them.

    Args:
        convention: Convention of the paper.
        sizes: Sizes of the model.
        visual: visual tokens that enter each decoder layer; means over a benchmark may be fractions.
        text: text tokens of the prompt; left out where the convention leaves them out.
        pictures: Pictures that pass the vision tower, tiles one by one.
        modules: multiply-adds of modules that a method adds and its paper counts.

    Raises:
        ValueError: another number of layers than the architecture has, or a vision tower is to be counted and there
            is none.
    """
    if len(visual) != sizes.decoder.layers:
        raise ValueError(
            f"visual has {len(visual)} layers, but the architecture has {sizes.decoder.layers}. Give every layer's "
            "visual tokens."
        )
    if convention.vision and sizes.vision is None:
        raise ValueError("The convention counts the vision tower, but the architecture has none. Give it its Encoder.")
    length = [n + text if convention.text else n for n in visual]
    total = sum(_layer(convention, sizes.decoder, n) for n in length)
    if convention.mean:
        total /= len(visual)
    total += convention.multiply_add * modules
    if convention.vision:
        assert sizes.vision is not None  # refused above
        tower = replace(sizes, projector=())
        total += vision(tower, square(sizes.vision, pictures)) * convention.multiply_add / 2
    return total


def _layer(convention: Convention, stack: Stack, n: float) -> float:
    d, inner = stack.hidden, stack.heads * stack.head_dim
    width = 2 * inner + 2 * stack.kv_heads * stack.head_dim if convention.grouped else 4 * d
    products = n * d * width + 2 * n**2 * inner + convention.matrices * n * d * stack.ffn
    return convention.multiply_add * products + convention.softmax * n**2 * stack.heads


def cache_bytes(stack: Stack, tokens: Sequence[float], itemsize: int = 2, *, grouped: bool = True) -> float:
    """Bytes of keys and values that hold `tokens` in each layer, as papers report them.

    Args:
        stack: the decoder.
        tokens: held in each layer, visual ones alone or all, as the paper has it.
        itemsize: bytes of a number.
        grouped: False counts as many key and value heads as query heads, as if none were shared.
    """
    heads = stack.kv_heads if grouped else stack.heads
    return 2 * heads * stack.head_dim * itemsize * sum(tokens)
