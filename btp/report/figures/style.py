"""One colour and marker per arm, the same in every plot and on the page; told apart by the colour-blind too.

The hues are those of Okabe and Ito 2008, darkened for white paper and lightened for a dark screen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_NEUTRAL = ("#59616d", "#aab3c0")
_HUES = (
    ("#0068a8", "#58b2f2"),  # blue
    ("#d07800", "#f2ab3c"),  # orange
    ("#00825e", "#35c79c"),  # bluish green
    ("#b04c8a", "#e391c3"),  # reddish purple
    ("#c04000", "#ff8f57"),  # vermilion
    ("#7d6c00", "#e6d755"),  # olive
    ("#4b47ad", "#aaa5ff"),  # violet
)
_MARKERS = "sD^vPX*"
_CONTROLS = (
    ("#1d2430", "#e7ebf1"),  # ink
    ("#6b7280", "#98a2b3"),  # grey
    ("#85705a", "#cdb795"),  # sand
)
_HOLLOW = "ov<d>^p"


@dataclass(frozen=True)
class Look:
    """How an arm is drawn: its colour on white, its colour on dark, matplotlib's marker."""

    light: str
    dark: str
    marker: str

    def color(self, theme: str) -> str:
        """The colour for the theme "light" or "dark"."""
        return self.dark if theme == "dark" else self.light


@dataclass(frozen=True)
class Theme:
    """Colours of paper, ink and lines of a plot."""

    name: str
    paper: str
    ink: str
    soft: str
    line: str

    def style(self) -> dict[str, Any]:
        """matplotlib settings of this theme."""
        return {
            "text.parse_math": False,  # names of data hold dollar signs
            "font.size": 10,
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "figure.facecolor": self.paper,
            "savefig.facecolor": self.paper,
            "axes.facecolor": self.paper,
            "axes.edgecolor": self.line,
            "axes.labelcolor": self.ink,
            "axes.labelsize": 9.5,
            "axes.titlesize": 10.5,
            "axes.titlecolor": self.ink,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": self.line,
            "grid.linewidth": 0.7,
            "text.color": self.ink,
            "xtick.color": self.line,
            "ytick.color": self.line,
            "xtick.labelcolor": self.soft,
            "ytick.labelcolor": self.ink,
            "legend.frameon": False,
            "legend.fontsize": 9,
        }


LIGHT = Theme("light", "#ffffff", "#1d2430", "#59616d", "#dfe3e9")
DARK = Theme("dark", "#171c24", "#e7ebf1", "#aab3c0", "#343d4b")


def looks(arms: Sequence[tuple[str, str]]) -> dict[str, Look]:
    """A look per arm.

    Args:
        arms: (arm, role) in the order of the table. The baseline is grey; others take hues in turn, and a new
            marker with every hue, so that more arms than hues still differ.
    """
    out, taken = {}, 0
    for arm, role in arms:
        if role == "baseline":
            out[arm] = Look(*_NEUTRAL, marker="o")
            continue
        turn, hue = divmod(taken, len(_HUES))
        out[arm] = Look(*_HUES[hue], marker=_MARKERS[(hue + turn) % len(_MARKERS)])
        taken += 1
    return out


_OWN = ("btp", "fastv", "divprune", "dart", "attention", "diversity", "oracle")  # a hue each, wherever they are drawn


def looks_apart(series: Sequence[tuple[str, str]]) -> dict[str, Look]:
    """A look per series of a comparison, where many methods need the hues: controls go without, in hollow marks.

    Some methods have a hue of their own; others take those that are left, in turn.

    Args:
        series: (name, role) in their order; methods keep their looks whatever controls there are.
    """
    methods = [name for name, role in series if role == "method"]
    others = [name for name in methods if name not in _OWN]
    hues = [name if name in methods or not others else others.pop(0) for name in _OWN]
    found = looks([(name, "method") for name in [*hues, *others]] + [x for x in series if x[1] == "baseline"])
    out = {name: found[name] for name, role in series if role != "control"}
    for i, name in enumerate(name for name, role in series if role == "control"):
        out[name] = Look(*_CONTROLS[i % len(_CONTROLS)], marker=_HOLLOW[i % len(_HOLLOW)])
    return out
