"""Columns of the table: title, unit, meaning and number format of each quantity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import floor, isnan, log10
from typing import Any

from btp.report.text.token_names import in_unit

DASH = "–"
METRICS, ABILITY = "Benchmark metrics", "Accuracy by ability, %"
METRIC = "metric_"  # what keys of metrics begin with


@dataclass(frozen=True)
class Column:
    """A quantity of a table row.

    Attributes:
        key: column of the table's frame; `<key>_low` and `<key>_high` are the ends of its interval, if any.
        title: short heading.
        group: heading above several columns.
        kind: how numbers are written: text | count | tokens | percent | points | kl | p | flops | mib | ms | rate |
            times | metric.
        help: what it is, in one sentence.
        less: True where less is better, None where neither is.
    """

    key: str
    title: str
    group: str
    kind: str
    help: str
    less: bool | None = None

    def of(self, unit: str) -> Column:
        """The column with another name for visual tokens."""
        return replace(self, title=in_unit(self.title, unit), help=in_unit(self.help, unit))


METHOD = Column("method", "method", "Method", "text", "What decided which visual tokens stay.")
TOKENS = Column(
    "tokens_avg",
    "visual tokens",
    "Method",
    "tokens",
    "Visual tokens averaged over the layers, mean over the samples.",
    less=True,
)
SLOTS = Column(
    "slots",
    "KV slots",
    "Method",
    "tokens",
    "Slots of the K/V cache per key head, averaged over the decoder layers behind the prompt; over decode steps too "
    "where a method evicts in them. Mean over the samples.",
    less=True,
)
SAMPLES = Column("samples", "samples", "Method", "count", "Samples that were answered.")
MACRO = Column(
    "macro", "macro", "Accuracy, %", "percent", "Mean over the abilities, each counted the same.", less=False
)
RETAINED = Column(
    "retained",
    "retained",
    "Accuracy, %",
    "percent",
    "Macro over the unpruned model's macro in the same run, the share of its accuracy that is left.",
    less=False,
)
HARD = Column(
    "hard",
    "hard",
    "Accuracy, %",
    "percent",
    "Mean score on the samples that need the whole picture: the unpruned model scores higher there than with the "
    "down-sampled picture of the same run. Those two have no number, since the samples are chosen by them.",
    less=False,
)
EASY = Column(
    "easy",
    "easy",
    "Accuracy, %",
    "percent",
    "Mean score on all samples that are not hard, in the same way.",
    less=False,
)
READING = Column(
    "reading",
    "reading",
    "Accuracy, %",
    "percent",
    "Macro average of the abilities that read text in the picture.",
    less=False,
)
REST = Column("rest", "rest", "Accuracy, %", "percent", "Macro average of all other abilities.", less=False)
KL_STEPS = Column(
    "kl_steps",
    "KL per token, nats",
    "Against unpruned",
    "kl",
    "The same for every token of the answer, averaged, as long as the answer is the unpruned one word for word: the "
    "unpruned model's 64 likeliest tokens and all others as one. What acts in decode steps is seen here alone.",
    less=True,
)
ANSWERS = (
    Column(
        "agreement",
        "agreement, %",
        "Against unpruned",
        "percent",
        "Samples whose answer is the unpruned model's, right or wrong; of boxes the share (F1) that both have.",
        less=False,
    ),
    Column(
        "kl",
        "KL, nats",
        "Against unpruned",
        "kl",
        "Divergence of the distribution that answers are compared by from the unpruned one, mean over the samples: "
        "that of the first answer token, of the classes, or, mean of all, of the detection tokens.",
        less=True,
    ),
    KL_STEPS,
    Column(
        "p_unpruned",
        "p, unpruned",
        "Against unpruned",
        "p",
        "Paired test of the scores against the unpruned model's on the same samples.",
    ),
    Column(
        "p_random",
        "p, random",
        "Against controls",
        "p",
        "Paired test of the scores against the random control's on the same samples.",
    ),
    Column(
        "p_downsampled",
        "p, down-sampled",
        "Against controls",
        "p",
        "Paired test of the scores against the down-sampled picture's on the same samples.",
    ),
)
COST = (
    Column(
        "flops_visual_pdrop",
        "visual FLOPs",
        "Cost",
        "flops",
        "flops_visual_pdrop: sum over layers of 4nd² + 2n²d + 3ndm over visual tokens only, one multiply-add "
        "counted once (the formula of PyramidDrop, the field's TFLOPs).",
        less=True,
    ),
    Column(
        "flops_prefill",
        "prefill FLOPs",
        "Cost",
        "flops",
        "flops_prefill: all tokens, vision tower, projector and selection included, one multiply-add counted "
        "as two, by formula.",
        less=True,
    ),
    Column(
        "flops_prefill_measured",
        "prefill FLOPs, counted",
        "Cost",
        "flops",
        "The same as counted by the framework's operation counter while the model ran.",
        less=True,
    ),
    Column(
        "flops_decode",
        "decode FLOPs",
        "Cost",
        "flops",
        "flops_decode: of one decode step, mean over those measured: rows computed against the slots that they see, "
        "output head and selection included, one multiply-add counted as two, by formula.",
        less=True,
    ),
    Column(
        "flops_decode_measured",
        "decode FLOPs, counted",
        "Cost",
        "flops",
        "The same as counted by the framework's operation counter while the model ran.",
        less=True,
    ),
    Column("kv_mib", "KV, MiB", "Cost", "mib", "Key and value cache behind prefill, by formula.", less=True),
    Column(
        "kv_mib_measured",
        "KV held, MiB",
        "Cost",
        "mib",
        "The same as held in memory by the run.",
        less=True,
    ),
    Column(
        "flops_model",
        "FLOPs",
        "Cost",
        "flops",
        "flops_model: all rows of the tower, patch embedding, head and selection included, scans too, one multiply-add "
        "counted as two, by formula.",
        less=True,
    ),
    Column(
        "flops_model_measured",
        "FLOPs, counted",
        "Cost",
        "flops",
        "The same as counted by the framework's operation counter while the model ran; it sees no scan.",
        less=True,
    ),
    Column("gmacs", "GMACs", "Cost", "metric", "Half of FLOPs, in thousand millions: multiply-adds.", less=True),
    Column("per_second", "samples / s", "Cost", "rate", "Pictures or clips in a second, by the median.", less=False),
    Column("forward_ms", "forward, ms", "Cost", "ms", "One batch through the model; median (p10–p90).", less=True),
    Column(
        "forward_ratio",
        "forward ×",
        "Cost",
        "times",
        "Time of a forward over the unpruned model's, timed in alternation; median and its range. Grey: the range "
        "spans 1, or none is known, so that neither side is told to be faster.",
        less=True,
    ),
    Column("vision_ms", "vision, ms", "Cost", "ms", "Vision tower and projector; median (p10–p90).", less=True),
    Column("selection_ms", "selection, ms", "Cost", "ms", "Deciding what stays; median (p10–p90).", less=True),
    Column("decoder_ms", "decoder, ms", "Cost", "ms", "Decoder layers in prefill; median (p10–p90).", less=True),
    Column("prefill_ms", "prefill, ms", "Cost", "ms", "Time to the first token; median (p10–p90).", less=True),
    Column(
        "per_token_ms",
        "per token, ms",
        "Cost",
        "ms",
        "Each output token after the first; median (p10–p90).",
        less=True,
    ),
    Column(
        "prefill_ratio",
        "prefill ×",
        "Cost",
        "times",
        "Prefill time over the unpruned model's, timed in alternation; median and its range. Grey: the range spans 1, "
        "or none is known, so that neither side is told to be faster.",
        less=True,
    ),
    Column(
        "per_token_ratio",
        "per token ×",
        "Cost",
        "times",
        "Time per output token over the unpruned model's, timed in the same way.",
        less=True,
    ),
    Column("peak_memory_mib", "peak memory, MiB", "Cost", "mib", "Most memory held at once.", less=True),
)
RATIOS = ("prefill_ratio", "forward_ratio")  # of a time over the unpruned model's
SHOWN_COST = (
    *("flops_visual_pdrop", "kv_mib", "prefill_ratio", "per_token_ratio"),
    *("flops_model", "per_second", "forward_ratio"),
)
_PREFIX = {0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}


def ability_column(ability: str, n: int) -> Column:
    """The column of one ability."""
    return Column(
        key=f"accuracy_{ability}",
        title=ability,
        group=ABILITY,
        kind="percent",
        help=f"Mean score over {n} samples.",
        less=False,
    )


def metric_column(name: str) -> Column:
    """The column of a metric that the task itself reports, on the scale on which the task has it."""
    return Column(
        key=f"{METRIC}{name}",
        title=name.replace("_", " "),
        group=METRICS,
        kind="metric",
        help=f"{name}: of all answers together, as the task sums them up.",
    )


def number(value: Any, kind: str) -> str:
    """Write a number of a kind; a dash where there is none."""
    if kind == "text":
        return str(value)
    if value is None or isnan(value):
        return DASH
    if kind == "percent":
        return f"{100 * value:.1f}"
    if kind == "points":
        return f"{100 * value:+.1f}".replace("-", "−")
    if kind == "p":
        return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"
    if kind == "kl":
        return "0" if value == 0 else f"{value:.1e}" if value < 0.0005 else f"{value:.3f}"
    if kind == "flops":
        return _scaled(value)
    if kind == "count":
        return f"{value:.0f}"
    if kind == "tokens":
        return f"{value:.1f}"
    if kind == "metric":
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
    if kind == "times":
        return f"{value:.2f}"
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}" if value >= 1 else f"{value:.2g}"


def spread(row: Mapping[str, Any], column: Column) -> str:
    """The interval of a quantity in a row as text, "" where it has none."""
    return spread_of(row, column.key, column.kind)


def spread_of(row: Mapping[str, Any], key: str, kind: str) -> str:
    """As `spread`, of a quantity that is no column."""
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if low is None or high is None or isnan(low) or isnan(high):
        return ""
    if kind == "percent":
        return f"{100 * low:.0f}–{100 * high:.0f}"
    between = " to " if kind == "points" else "–"
    return f"{number(low, kind)}{between}{number(high, kind)}"


def told_from_one(row: Mapping[str, Any], key: str) -> bool:
    """Whether the interval of a ratio lies on one side of 1; without an interval nobody can tell."""
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if low is None or high is None or isnan(low) or isnan(high):
        return False
    return high < 1 or low > 1


def _scaled(value: float) -> str:
    if value <= 0:
        return "0"
    step = min(max(3 * floor(log10(value) / 3), 0), 15)
    scaled = value / 10**step
    return f"{scaled:.3g} {_PREFIX[step]}" if scaled < 999.5 else f"{scaled:.0f} {_PREFIX[step]}"
