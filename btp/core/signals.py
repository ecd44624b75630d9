"""What a pruner may ask to see, and what was seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from btp.core.site import Site

KINDS = ("hidden", "attention", "preview", "keys", "values", "update")
ROWS = {
    "hidden": (None, "text"),
    "attention": ("last", "text", "cls"),
    "preview": ("last", "text", "cls"),
    "keys": (None, "text"),
    "values": (None, "text"),
    "update": (None,),
}
FORMS = {
    "hidden": (None, "normed"),
    "attention": ("probs", "logits"),
    "preview": ("probs", "logits"),
    "keys": (None,),
    "values": (None,),
    "update": ("layer", "attention", "mlp"),
}


@dataclass(frozen=True)
class Signal:
    """One thing a pruner asks to see. Only what is declared is computed, and only for the rows asked.

    B batch, N visual tokens alive at the asking stage, T text rows, H query heads, Hkv key heads, d head
    size.

    | kind | site | rows | form | tensor |
    |---|---|---|---|---|
    | hidden | states in front of it | None: visual; text | None; normed (final norm) | [B, N or T, D] |
    | attention | inside that layer | last, text; cls (vision) | probs, logits | [B, H, R, N] |
    | preview | what the coming layer would attend to | as attention | as attention | [B, H, R, N] |
    | keys, values | inside that layer, behind RoPE | None: visual; text | None | [B, Hkv, N or T, d] |
    | update | that layer, or a block of it | None | layer, attention, mlp | [2, B, N, D]: in, out |

    `text` are the text tokens behind the first image, padded at the end (`Signals.rows_valid`); `last` is
    the last token of the prompt, R = 1. probs are normalised over ALL keys, text too, and then restricted to
    the visual columns; logits are scaled by the layer's own factor, and -inf where the mask forbids.

    Attributes:
        kind: see the table.
        site: `llm.layer.N` or `vision.layer.N`; text is parsed.
        rows: see the table.
        form: see the table; None takes the first one.

    Raises:
        ValueError: kind, rows or form are unknown, or the site is not a layer.
    """

    kind: str
    site: Site
    rows: str | None = None
    form: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", Site.parse(self.site))
        _one_of("kind", self.kind, KINDS)
        if self.form is None:
            object.__setattr__(self, "form", FORMS[self.kind][0])
        _one_of(f"rows of a {self.kind} signal", self.rows, ROWS[self.kind])
        _one_of(f"form of a {self.kind} signal", self.form, FORMS[self.kind])
        if self.site.kind == "cache" or (self.site.kind == "input" and self.kind != "hidden"):
            raise ValueError(f"A {self.kind} signal cannot be seen at {self.site}. Ask at a layer, as llm.layer.1.")

    def __str__(self) -> str:
        detail = ", ".join(f"{name} {value}" for name, value in (("rows", self.rows), ("form", self.form)) if value)
        return f"{self.kind} at {self.site}" + (f" ({detail})" if detail else "")

    @property
    def at_input(self) -> bool:
        """True where it exists before its layer runs, so that a stage at the same site may use it."""
        return self.kind in ("hidden", "preview")

    def ready_for(self, site: Site) -> bool:
        """The one-way rule: may a stage at `site` use this signal?"""
        return self.site <= site if self.at_input else self.site < site


class Signals(Mapping[Signal, Tensor]):
    """What was seen: declared signal -> tensor over the visual tokens alive now, in the order of Tokens."""

    def __init__(
        self, seen: Mapping[Signal, Tensor] | None = None, rows_valid: Mapping[Signal, Tensor] | None = None
    ) -> None:
        """
        Args:
            seen: tensors shaped as `Signal` says; padded visual tokens hold arbitrary finite values.
            rows_valid: [B, R] or [B, T] bool for signals with rows text.
        """
        self._seen = dict(seen or {})
        self._rows_valid = dict(rows_valid or {})

    def __getitem__(self, signal: Signal) -> Tensor:
        """The tensor of a declared signal.

        Raises:
            KeyError: it was not declared by `Pruner.needs`; the message lists what was.
        """
        if signal not in self._seen:
            raise KeyError(self._missing(signal))
        return self._seen[signal]

    def rows_valid(self, signal: Signal) -> Tensor:
        """[B, R] bool: which rows of a signal with rows text are real and which are padding."""
        if signal not in self._rows_valid:
            raise KeyError(self._missing(signal))
        return self._rows_valid[signal]

    def __iter__(self) -> Iterator[Signal]:
        return iter(self._seen)

    def __len__(self) -> int:
        return len(self._seen)

    def _missing(self, signal: Signal) -> str:
        seen = "; ".join(str(key) for key in self._seen) or "nothing"
        return f"{signal} was not declared. Declared: {seen}. Add it to the pruner's needs()."


def _one_of(name: str, value: object, known: tuple) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}. Choose from: {', '.join(map(str, known))}.")
