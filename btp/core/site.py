"""Sites: numbered places in a model at which tokens can be seen or pruned."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering

_TEXT = re.compile(
    r"^(?:(llm)\.(input)|(vision)\.(feature|output)|(vision|llm)\.(layer)\.(\d+)|(vision)\.(mlp)\.(\d+)|(llm)\.(cache)\.(\d+|\*))$"
)
_TOWERS = ("vision", "llm")
_KINDS = ("input", "layer", "mlp", "cache", "feature", "output")
_UNNUMBERED = ("input", "feature", "output")
_LAST = 1 << 30
EVERY = -1  # the layer of llm.cache.*


@total_ordering
@dataclass(frozen=True)
class Site:
    """A place where tokens can be seen or moved.

    `vision.layer.22` is in front of vision layer 22, `vision.mlp.22` inside it, between attention and MLP;
    `vision.feature` is the vision layer whose output the projector reads, whatever its number (for signals),
    `vision.output` is what enters the projector, `llm.input` what enters the language model,
    `llm.layer.2` is in front of decoder layer 2, `llm.cache.2` is layer 2's K/V cache after that layer's attention, and
    `llm.cache.*` that of every layer that the schedule does not name by itself; it comes behind all others.
    Layers are 0-based. Sites are ordered as a token meets them:
    vision.layer.0 < vision.mlp.0 < ... < vision.feature < vision.output < llm.input < llm.layer.0 < llm.cache.0 < ...

    Attributes:
        tower: "vision" or "llm".
        kind: "layer", "mlp", "feature" or "output" of the vision tower; "input", "layer" or "cache" of the llm.
        layer: 0-based layer, -1 where the kind has no number, and for `llm.cache.*`.
    """

    tower: str
    kind: str
    layer: int = -1

    def __post_init__(self) -> None:
        if not _TEXT.match(str(self)):
            raise ValueError(_message(str(self)))

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Read a site from its text; a Site is handed back as it is.

        Raises:
            ValueError: the text is not a site; the message lists the forms there are.
        """
        if isinstance(text, Site):
            return text
        found = _TEXT.match(text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(_message(text))
        tower, kind, *number = [part for part in found.groups() if part is not None]
        return cls(tower, kind, int(number[0]) if number and number[0] != "*" else -1)

    def __str__(self) -> str:
        number = "*" if self.every_layer else str(self.layer)
        return f"{self.tower}.{self.kind}" + (f".{number}" if self.kind not in _UNNUMBERED else "")

    @property
    def every_layer(self) -> bool:
        """True for `llm.cache.*`."""
        return self.kind == "cache" and self.layer == EVERY

    def of_layer(self, layer: int) -> Site:
        """The site of one layer that `llm.cache.*` stands for."""
        return Site(self.tower, self.kind, layer)

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Site):
            return NotImplemented
        return self._rank < other._rank

    @property
    def _rank(self) -> tuple[int, int, int]:
        last = self.kind in ("feature", "output") or self.every_layer  # behind every numbered layer of its tower
        return _TOWERS.index(self.tower), _LAST if last else self.layer, _KINDS.index(self.kind)

    @property
    def previous_layer(self) -> Site:
        """The layer a token left last on its way here: `llm.layer.1` for `llm.layer.2`.

        Raises:
            ValueError: no layer of this tower comes before the site.
        """
        if self.kind in ("output", "feature"):
            return Site(self.tower, "feature")
        before = self.layer if self.kind in ("cache", "mlp") else self.layer - 1
        if before < 0:
            raise ValueError(
                f"No layer of the {self.tower} tower comes before {self}, so there is nothing to look at "
                "there. "
                f"Choose a site at {self.tower}.layer.1 or later."
            )
        return Site(self.tower, "layer", before)

    @property
    def first_layer(self) -> int:
        """First decoder layer that sees the effect of moving tokens here (0 for the input and for vision)."""
        if self.tower == "vision" or self.kind == "input":
            return 0
        return self.layer + 1 if self.kind == "cache" else self.layer

    def first_of(self, tower: str) -> int:
        """First layer of a tower ("llm", or the "vision" of a model that has no other) that sees the effect."""
        if tower == "llm":
            return self.first_layer
        if self.tower == tower and self.kind in ("layer", "mlp"):
            return self.layer + (self.kind == "mlp")
        return _LAST


def _message(text: object) -> str:
    return (
        f"{text!r} is not a site. Write vision.layer.N, vision.mlp.N, vision.output, llm.input, llm.layer.N, "
        "llm.cache.N or llm.cache.* with a 0-based layer N, for example llm.layer.2 (docs/concepts.md draws them)."
    )
