"""Signals that a pruner may ask for (hidden states, attention, queries, keys ...), and their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from btp.core.check_settings import check_one_of
from btp.core.site import Site

KINDS = (
    *("hidden", "attention", "preview", "queries", "keys", "values", "rotary", "update", "change", "pixels", "scan"),
    "projected",
)
ROWS = {
    "hidden": (None, "text", "start", "cls"),
    "attention": ("last", "text", "mean", "cls", "fixed", "window", "decayed"),
    "preview": ("last", "text"),
    "queries": (None, "text", "all"),
    "keys": (None, "text", "all"),
    "values": (None, "text", "all"),
    "rotary": (None, "text"),
    "update": (None,),
    "change": (None, "all"),
    "pixels": (None,),
    "scan": ("both", "forward", "backward"),
    "projected": (None,),
}
BLOCKS = ("layer", "attention", "mlp")
FORMS = {
    "hidden": (None, "normed"),
    "attention": ("probs", "logits"),
    "preview": ("probs", "logits"),
    "queries": (None,),
    "keys": (None,),
    "values": (None,),
    "rotary": (None,),
    "update": BLOCKS,
    "change": BLOCKS,
    "pixels": (None,),
    "scan": (None,),
    "projected": (None,),
}
COUNTED = ("text", "all", "start", "window")  # rows of which some may be padding
CACHED = {"attention": ("last", "window", "decayed"), "keys": (None,), "values": (None,)}  # at llm.cache.N


@dataclass(frozen=True)
class Signal:
    """One thing a pruner asks to see. Only what is declared is computed, and only for the rows asked.

    B batch, N visual tokens alive at the asking stage, T text rows, S rows of the layer, H query heads, Hkv key
    heads, d head size.

    | kind | what | rows | form | tensor |
    |---|---|---|---|---|
    | hidden | states in front of the site | None, text, start; cls | None; normed (final norm) | [B, N, T or 1, D] |
    | attention | inside that layer | last, text, mean; cls, fixed, mean | probs, logits | [B, H, R, N] |
    | preview | what the coming layer would attend to | last, text | probs, logits | [B, H, R, N] |
    | queries | inside that layer, behind RoPE, scaled | None, text, all | | [B, H, N, T or S, d] |
    | keys, values | inside that layer, behind RoPE | None, text, all | | [B, Hkv, N, T or S, d] |
    | rotary | RoPE of the tokens in that layer | None, text | | [2, B, N or T, d]: cos, sin |
    | update | a layer, or a block of it | None | layer, attention, mlp | [2, B, N, D]: in, out |
    | change | the same in two numbers | None, all | layer, attention, mlp | [2, B, N or S]: see below |
    | pixels | the pictures, as the vision tower gets them, at vision.output or vision.layer.0 | | | [B, 3, h, w] |
    | projected | frames of all videos behind the projector, before the host pools them, at llm.input | | | [F, P, D] |
    | scan | what the scans of a state space layer put out, gated | both, forward, backward | | [B, N, E] |

    Rows: None are the visual tokens alive; `text` the text tokens behind the first image, padded at the end; `last`
    the last token of the prompt; `start` (at llm.input) every visual token that entered the language model, whatever
    went since; `mean` the mean over all real query rows of the layer (probs alone); `cls` the class
    token of a vision tower; `fixed` the mean over its rows that are no patches (class, register and detection tokens),
    over all where there are none (probs alone); `all` every row of the layer in sequence order, as it ran, whatever
    went since (`Tokens.row` says which row of the layer in front of the stage a token is). `Signals.rows_valid` says
    which of `text`, `all` and `start` are real. Hidden states at `vision.feature` are those behind the layer.

    A scan's directions are summed: all of them, the forward or the backward ones, without the halving that a mean of
    two would mean.

    probs are normalised over ALL keys, text and class token too, and then restricted to the visual columns; logits
    are scaled by the layer's own factor, and -inf where the mask forbids. Queries are scaled by it too, so that
    queries @ keys^T are the logits. A block's input is what enters attention or MLP (behind their norm), its output
    what they add to the residual. `change` is |out| / |in| and the cosine of the two, in float32.

    At `llm.cache.N` a stage of that cache sees its own layer, n slots of which the last are those of this forward:

    | kind | what | rows | tensor |
    |---|---|---|---|
    | keys, values | of all slots, as they lie in the cache | | [B, Hkv, n, d] |
    | attention | of the prompt's (or step's) last row | last | [B, H, 1, n] |
    | attention | of the last `window` rows of the prompt, padded in front; not in decode | window | [B, H, window, n] |
    | attention | sum over all rows of this forward of decay^(rows behind it) times its probs | decayed | [B, H, 1, n] |

    probs of slots are normalised over all slots that the row sees.

    In the vision tower B counts pictures; at stages of the language model such a signal still comes per picture, over
    all of a picture's tokens (`Tokens.picture`, `Tokens.slot`), with zeros for those that were gone.

    Attributes:
        kind: see the table.
        site: `llm.layer.N`, `vision.layer.N` or `vision.feature`; `llm.input` and `vision.output` for hidden alone.
        rows: see the table.
        form: see the table; None takes the first one.
        window: rows of a signal with rows window, 1 or more.
        decay: factor in [0, 1] of a signal with rows decayed.

    Raises:
        ValueError: kind, rows or form are unknown, or the site is not a layer.
    """

    kind: str
    site: Site
    rows: str | None = None
    form: str | None = None
    window: int | None = None
    decay: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", Site.parse(self.site))
        check_one_of("kind", self.kind, KINDS)
        if self.form is None:
            object.__setattr__(self, "form", FORMS[self.kind][0])
        check_one_of(f"rows of a {self.kind} signal", self.rows, ROWS[self.kind])
        check_one_of(f"form of a {self.kind} signal", self.form, FORMS[self.kind])
        self._check_rows()
        if self.site.kind == "cache":
            self._check_cached()
            return
        inside = self.site.kind in ("layer", "feature")
        if self.kind == "projected" and str(self.site) != "llm.input":
            raise ValueError(f"A projected signal cannot be seen at {self.site}. Ask at llm.input.")
        state = self.kind in ("hidden", "projected") and self.site.kind in ("input", "output")
        picture = self.kind == "pixels" and (self.site.kind == "output" or str(self.site) == "vision.layer.0")
        if not (picture or state or (inside and self.kind != "pixels")) or (self.rows == "start" and not state):
            raise ValueError(f"A {self.kind} signal cannot be seen at {self.site}. Ask at a layer, as llm.layer.1.")
        odd = self.kind in ("preview", "rotary", "update", "change") or self.rows in ("last", "text", "start")
        if self.site.tower == "vision" and (odd or self.form == "normed"):
            raise ValueError(
                f"{self} cannot be seen in a vision tower, which has no text, no RoPE table and no final norm there. "
                "Ask for hidden, attention (rows cls or mean), queries, keys or values."
            )
        if self.site.tower == "llm" and self.kind == "scan":
            raise ValueError(f"{self} cannot be seen: scans are followed in vision towers. Ask for hidden or update.")
        if self.site.tower == "llm" and self.rows in ("cls", "fixed"):
            raise ValueError(f"{self} cannot be seen: a language model has no class token. Use rows last or text.")
        if self.rows in ("mean", "fixed") and self.form != "probs":
            raise ValueError(f"{self} has no meaning: only probs can be averaged over rows. Use form probs.")

    def _check_rows(self) -> None:
        """A window and a decay for the rows that have one, and for no others."""
        if (self.rows == "window") != (self.window is not None) or (self.window is not None and self.window < 1):
            raise ValueError(f"{self} has window {self.window}. Rows window take a number of rows, others none.")
        if (self.rows == "decayed") != (self.decay is not None) or not 0.0 <= (self.decay or 0.0) <= 1.0:
            raise ValueError(f"{self} has decay {self.decay}. Rows decayed take a factor in [0, 1], others none.")
        if self.rows in ("window", "decayed") and self.site.kind != "cache":
            raise ValueError(f"{self} cannot be seen: rows {self.rows} are those of a cache. Ask at llm.cache.N.")

    def _check_cached(self) -> None:
        rows = CACHED.get(self.kind, ())
        if self.rows not in rows or self.form not in (None, "probs"):
            raise ValueError(
                f"A {self.kind} signal with rows {self.rows} cannot be seen at {self.site}, in a cache. There are "
                f"keys, values, and attention with form probs and rows {', '.join(map(str, CACHED['attention']))}."
            )

    def __str__(self) -> str:
        detail = ", ".join(f"{name} {value}" for name, value in (("rows", self.rows), ("form", self.form)) if value)
        return f"{self.kind} at {self.site}" + (f" ({detail})" if detail else "")

    @property
    def at_input(self) -> bool:
        """True where it exists before its layer runs, so that a stage at the same site may use it."""
        in_cache = self.site.kind == "cache"  # whose stage decides behind the attention of its layer
        early = self.kind in ("preview", "pixels", "projected")
        return in_cache or early or (self.kind == "hidden" and self.site.kind != "feature")

    def ready_for(self, site: Site) -> bool:
        """The one-way rule: may a stage at `site` use this signal?"""
        return self.site <= site if self.at_input else self.site < site


class Signals(Mapping[Signal, Tensor]):
    """Values of signals: declared signal -> tensor over the visual tokens alive now, in the order of Tokens."""

    def __init__(
        self, seen: Mapping[Signal, Tensor] | None = None, rows_valid: Mapping[Signal, Tensor] | None = None
    ) -> None:
        """
        Args:
            seen: tensors shaped as `Signal` says; padded visual tokens hold arbitrary finite values.
            rows_valid: [B, T], [B, S] or [B, N] bool for signals with rows text, all or start.
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
        """[B, R] bool: which rows of a signal with rows text, all or start are real and which are padding."""
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
