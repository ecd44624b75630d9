"""Tables of measured costs: Markdown for a reader, CSV for a program."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

Cell = Mapping[str, Any]
COUNTS = ("tokens_avg", "flops_visual_pdrop", "flops_prefill", "flops_prefill_measured", "kv_mib", "kv_mib_measured")
TIMES = ("vision_ms", "selection_ms", "prefill_ms", "per_token_ms")
PARTS = ("median", "p10", "p90")
NO_MEMORY = "not measured"


def promised(cell: Cell) -> float:
    """Prefill speed-up that operations promise: unpruned over pruned, vision tower and selection included."""
    return cell["unpruned"]["flops_prefill"] / cell["costs"]["flops_prefill"]


def reached(cell: Cell) -> float:
    """Prefill speed-up that was measured: median over the pairs that ran side by side."""
    return 1 / cell["costs"]["prefill_ratio"]["median"]


def csv_text(cells: Iterable[Cell]) -> str:
    """One line for each method, batch and budget; times in milliseconds of the whole batch, counts per sample."""
    sides = [f"{side}_{name}_{part}" for side in ("pruned", "unpruned") for name in TIMES for part in PARTS]
    counts = [f"{side}_{name}" for side in ("pruned", "unpruned") for name in (*COUNTS, "peak_memory_mib")]
    head = ["model", "pruner", "share", "batch", "visual", "words", "output", "repeats", "refused", *counts, *sides]
    head += ["prefill_speedup", "prefill_speedup_low", "prefill_speedup_high", "promised", "reached_of_promised"]
    head += ["per_token_speedup", "selection_share", "hardware"]
    out = io.StringIO()
    writer = csv.DictWriter(out, head, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for cell in cells:
        writer.writerow({**cell, **_flat(cell)} if "costs" in cell else cell)
    return out.getvalue()


def _flat(cell: Cell) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for side, costs in (("pruned", cell["costs"]), ("unpruned", cell["unpruned"])):
        out |= {f"{side}_{name}": costs[name] for name in (*COUNTS, "peak_memory_mib")}
        for name in TIMES:
            out |= {f"{side}_{name}_{part}": value for part, value in (costs[name] or {}).items()}
    quotient, step = cell["costs"]["prefill_ratio"], cell["costs"]["per_token_ratio"]["median"]
    low, high = (None if quotient[end] is None else 1 / quotient[end] for end in ("high", "low"))
    out |= {"prefill_speedup": reached(cell), "prefill_speedup_low": low, "prefill_speedup_high": high}
    out |= {"promised": promised(cell), "reached_of_promised": reached(cell) / promised(cell)}
    return out | {"per_token_speedup": step and 1 / step, "selection_share": cell["costs"]["selection_share"]}


def markdown(found: Mapping[str, Any]) -> str:
    """Two tables for each machine, model, batch and budget: what is counted, and what was timed."""
    cells = list(found["cells"].values())
    lines = [f"`{found['command']}`"]
    keys = ("hardware", "model", "batch", "share", "visual", "words", "output", "repeats", "schedule_of")
    for group in dict.fromkeys(tuple(cell.get(key) for key in keys) for cell in cells):
        mine = [cell for cell in cells if tuple(cell.get(key) for key in keys) == group]
        lines += ["", *_group(dict(zip(keys, group, strict=True)), mine)]
    return "\n".join(lines) + "\n"


def _group(what: Mapping[str, Any], cells: Sequence[Cell]) -> list[str]:
    done = [cell for cell in cells if "costs" in cell]
    schedule = "published schedules" if what["schedule_of"] == "paper" else f"budget {what['share']:g}"
    lines = [
        f"**{what['model']}, batch {what['batch']}, {schedule}**: {what['visual']} visual and "
        f"{what['words']} text tokens, {what['output']} output tokens, {what['repeats']} rounds. {what['hardware']}."
    ]
    if done:
        lines += ["", *_counted(done), "", *_timed(done)]
    for cell in cells:
        if "refused" in cell:
            lines += ["", f"`{cell['pruner']}` does not apply: {cell['refused']}"]
    return lines


def _line(*entries: str) -> str:
    return f"| {' | '.join(entries)} |"


def _counted(cells: Sequence[Cell]) -> list[str]:
    scale, unit = (1e12, "T") if cells[0]["unpruned"]["flops_prefill"] > 1e11 else (1e9, "G")
    names = ["pruner", "tokens_avg", *(f"{name}, {unit}" for name in COUNTS[1:4]), *COUNTS[4:], "peak_memory_mib"]
    lines = [_line(*names), "|" + "---|" * len(names)]
    for name, costs in [("unpruned", cells[0]["unpruned"]), *((cell["pruner"], cell["costs"]) for cell in cells)]:
        held = [NO_MEMORY if costs[key] is None else f"{costs[key]:.4g}" for key in ("kv_mib", "kv_mib_measured")]
        memory = NO_MEMORY if costs["peak_memory_mib"] is None else f"{costs['peak_memory_mib']:.0f}"
        flops = [f"{costs[key] / scale:.4g}" for key in COUNTS[1:4]]
        lines.append(_line(name, f"{costs['tokens_avg']:.1f}", *flops, *held, memory))
    return lines


def _timed(cells: Sequence[Cell]) -> list[str]:
    names = [f"{name} median (p10 to p90)" for name in TIMES]
    names = ["pruner", *names, "prefill speed-up", "promised by FLOPs", "reached of promised", "selection share"]
    lines = [_line(*names), "|" + "---|" * len(names)]
    shown = [_time(_middle([cell["unpruned"][name] for cell in cells])) for name in TIMES]
    lines.append(_line("unpruned", *shown, "", "", "", ""))
    for cell in cells:
        costs, quotient = cell["costs"], cell["costs"]["prefill_ratio"]
        ends = "" if quotient["low"] is None else f" ({1 / quotient['high']:.2f} to {1 / quotient['low']:.2f})"
        figures = [f"{reached(cell):.2f}{ends}", f"{promised(cell):.2f}", f"{reached(cell) / promised(cell):.2f}"]
        times = [_time(costs[name]) for name in TIMES]
        lines.append(_line(cell["pruner"], *times, *figures, f"{costs['selection_share']:.1%}"))
    return lines


def _middle(spreads: Sequence[Mapping[str, float] | None]) -> dict[str, float] | None:
    """Of the unpruned sides of several methods, the median of each figure."""
    known = [spread for spread in spreads if spread]
    return {part: median(spread[part] for spread in known) for part in PARTS} if known else None


def _time(spread: Mapping[str, Any] | None) -> str:
    if not spread:
        return "-"
    middle, low, high = (f"{spread[part]:.0f}" if spread[part] >= 100 else f"{spread[part]:.3g}" for part in PARTS)
    return f"{middle} ({low} to {high})"
