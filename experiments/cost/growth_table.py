"""The growth of each method's choice as a table with fitted exponents, and as a plot of two logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

ALGORITHMS = Path(__file__).with_name("growth.yaml")
FITTED = 1000  # tokens from which on an exponent is fitted: below, the cost of calls hides it


def points(sizes: Mapping[str, Any]) -> tuple[list[int], list[float], list[float]]:
    """(tokens, median milliseconds, MiB) of one method, ascending."""
    tokens = sorted(int(n) for n in sizes)
    times = [1e3 * median(sizes[str(n)]["seconds"]) for n in tokens]
    return tokens, times, [sizes[str(n)]["peak_mib"] for n in tokens]


def exponent(tokens: list[int], values: list[float]) -> float | None:
    """Slope of the line through the logarithms from `FITTED` tokens on; None for fewer than three sizes."""
    known = [(n, value) for n, value in zip(tokens, values, strict=True) if n >= FITTED and value > 0]
    if len(known) < 3:
        return None
    x, y = np.log(np.array(known, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def table(found: Mapping[str, Any]) -> str:
    """Markdown: time and memory at the smallest and the largest size, both exponents, and what the algorithm has."""
    algorithms = yaml.safe_load(ALGORITHMS.read_text(encoding="utf-8"))
    done = {name: sizes for name, sizes in found["methods"].items() if "refused" not in sizes}
    every = sorted({int(n) for sizes in done.values() for n in sizes})
    shown = [n for n in every if n in (every[0], every[len(every) // 2], every[-1])]
    heads = ["pruner", *(f"{n}: ms" for n in shown), "exponent of time", *(f"{n}: MiB" for n in shown)]
    heads += ["exponent of memory", "algorithm's", "why"]
    lines = [f"`{found['command']}`. {found['hardware']}.", "", _row(heads), "|" + "---|" * len(heads)]
    for name, sizes in sorted(done.items()):
        tokens, times, peaks = points(sizes)
        at = {n: (time, peak) for n, time, peak in zip(tokens, times, peaks, strict=True)}
        cells = [name, *(f"{at[n][0]:.3g}" if n in at else "-" for n in shown), _power(exponent(tokens, times))]
        cells += [*(f"{at[n][1]:.3g}" if n in at else "-" for n in shown), _power(exponent(tokens, peaks))]
        known = algorithms.get(name, {"order": "-", "why": ""})
        lines.append(_row([*cells, known["order"], known["why"]]))
    refused = [name for name, sizes in sorted(found["methods"].items()) if "refused" in sizes]
    if refused:
        lines += ["", f"Without a choice of their own on this model: {', '.join(f'`{name}`' for name in refused)}."]
    return "\n".join(lines) + "\n"


def drawn(found: Mapping[str, Any], file: Path) -> None:
    """Both quantities of all methods over the number of tokens, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    marks = "os^vD*PX<>"
    for at, (name, sizes) in enumerate(sorted(found["methods"].items())):
        if "refused" in sizes:
            continue
        tokens, times, peaks = points(sizes)
        look = {"marker": marks[at // 10 % len(marks)], "markersize": 4, "linewidth": 1, "color": f"C{at % 10}"}
        power = _power(exponent(tokens, times))
        left.plot(tokens, times, label=f"{name} {power}", **look)
        right.plot(tokens, peaks, **look)
    for axes, title in ((left, "the choice, milliseconds"), (right, "its memory, MiB")):
        axes.set(xscale="log", yscale="log", xlabel="visual tokens N, of which N / 4 stay", title=title)
        axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper", fontsize=7, title="exponent of time", title_fontsize=7)
    figure.savefig(file, dpi=110)


def _power(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
