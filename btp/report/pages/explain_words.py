"""A text's life in a terminal: its words as layers hold them, a strip for each key head, and rows per decode step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.table import Table
from rich.text import Text

from btp.report.pages.explain_data import short_site
from btp.report.pages.explain_held import HeldLayer, StepLife, ends, named, strip
from btp.report.terminal import literal

MOST_WORDS = 240  # of a prompt
MOST_HEADS = 8  # of a layer
MOST_STEPS = 12
MOST_SITES = 3
_WIDTH = 60  # of a strip
_BACK = 3  # words that are named


def layers_of(layers: Sequence[HeldLayer], words: Sequence[str], width: int) -> Iterator[Text]:
    """Each layer: the words that it holds, that some of its heads hold, and how many are gone; then its heads.

    Args:
        words: Words of the prompt; empty where it is not of words alone, and heads say all.
        width: columns of the terminal.
    """
    if words and not layers:
        yield Text("Every layer holds the whole prompt.\n", style="dim")
    for layer in layers:
        yield Text(layer.title, style="bold")
        if words:
            yield _shaded(ends(words, MOST_WORDS), ends(layer.shares, MOST_WORDS))
        if layer.evicts:
            yield from _heads(layer, width)
        yield Text()
    if layers:
        yield Text(f"{'; '.join(_legend(layers, words))}\n", style="dim")


def _heads(layer: HeldLayer, width: int) -> Iterator[Text]:
    """A line for each key head: what it holds, from the first token to the last."""
    rows = list(zip(layer.heads, layer.counts, layer.later, strict=True))
    for head, (held, count, later) in enumerate(rows[:MOST_HEADS]):
        steps = f", {later} left in steps" if later else ""
        yield Text(f"head {head:<2} |{strip(held, min(_WIDTH, width - 36))}| {count}{steps}", no_wrap=True)
    if len(rows) > MOST_HEADS:
        yield Text(f"{len(rows) - MOST_HEADS} more heads are not shown", style="dim")
    if layer.ranked:
        yield Text(f"score: {layer.ranked}", style="dim")


def _legend(layers: Sequence[HeldLayer], words: Sequence[str]) -> Iterator[str]:
    if words:
        some = ", ~word by some" if any(0 < share < 100 for layer in layers for share in layer.shares) else ""
        yield f"word: held by all heads{some}, ·3: three words that none holds"
    if any(layer.evicts for layer in layers):
        yield "head: the prompt from left to right, # held, blank gone, . : + in part"
    if len(words) > MOST_WORDS:
        yield f"{len(words) - MOST_WORDS} words in the middle are not shown"


def steps_of(steps: Sequence[StepLife], words: Sequence[str]) -> Iterator[Table | Text]:
    """Rows that the layers behind each stage computed in each forward, who came back, and how many stayed behind."""
    sites = list(dict.fromkeys(step.site for step in steps))
    if not sites:
        return
    shown = sites if len(sites) <= MOST_SITES else [sites[0], sites[len(sites) // 2], sites[-1]]
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("step")
    for site in shown:
        for title in (f"{short_site(site)} rows", "back", "parked"):
            table.add_column(title, justify="right")
    table.add_column("came back", no_wrap=True, overflow="ellipsis")
    forwards = [list(group) for _, group in groupby(steps, key=lambda step: step.step)]
    for forward in forwards[:MOST_STEPS]:
        mine = {step.site: step for step in forward}
        counts = [str(n) for site in shown for n in (mine[site].computed, mine[site].revived, mine[site].parked)]
        back = sorted({at for step in forward for at in step.back})
        number = str(forward[0].step) if forward[0].step else "prompt"
        table.add_row(number, *counts, literal(named(words, back, _BACK), "dim"))
    yield table
    more = len(forwards) - MOST_STEPS
    parts = [f"{more} more steps are not shown"] if more > 0 else []
    parts += [f"stages between {shown[0]} and {shown[-1]} are not all shown"] if len(shown) < len(sites) else []
    parts += [f"{steps[-1].waiting} states wait behind {short_site(steps[-1].site)} at the end"]
    yield Text(f"{'; '.join(parts)}\n", style="dim")


def _shaded(words: Sequence[str], shares: Sequence[int]) -> Text:
    text = Text()
    for share, run in groupby(zip(words, shares, strict=True), key=lambda pair: pair[1]):
        mine = [word for word, _ in run]
        if share == 0:
            text.append(f" ·{len(mine)}", style="dim")
        elif share == 100:
            text.append_text(literal("".join(mine)))
        else:
            text.append_text(literal("".join(f" ~{word.strip()}" for word in mine), "yellow"))
    return text
