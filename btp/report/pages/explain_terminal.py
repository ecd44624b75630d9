"""Explanation of one sample in a terminal: a small grid of tokens per stage, a letter for why each one stays, or
the words of a text.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from btp.report.figures.style import looks
from btp.report.pages.explain_data import HIGHEST, KEPT, Life, Said, StageLife, places, short_site
from btp.report.pages.explain_words import layers_of, steps_of
from btp.report.terminal import literal
from btp.results.reader import View

_MARK = {"right": ("✓", "green"), "wrong": ("✗", "red"), "partly": ("~", "yellow")}
_GONE, _DROPPED = " ", "·"
_LIKELY = 0.005  # of a first token, below which it is not worth its place


class ScreenLife:
    """Prints a life, to hand to rich."""

    def __init__(self, life: Life):
        self.life = life
        self.colors = {name: look.dark for name, look in looks([(name, "method") for name in life.rules]).items()}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        life = self.life
        yield Text.assemble((life.sample, "bold"), f"  {life.ability}, {life.task}  ·  {life.arm} on {life.model}")
        yield Text.assemble((life.question, "bold"), ("   right answer  ", "dim"), life.reference)
        yield Text()
        yield self._answers()
        if life.boxes_said():
            yield Text(f"boxes {life.boxes_said()}", style="dim")
        yield Text()
        yield from layers_of(life.held, life.words, console.width)
        for at, view in enumerate(life.views):
            title = f"{view.name}: " if view.name else ""
            yield Text(f"{title}{view.grid[0]} x {view.grid[1]} {life.unit}{self._sites()}", style="dim")
            colored = at == 0 and console.color_system is not None and not console.no_color
            yield Columns([self._panel(panel) for panel in self._panels(colored, view)], padding=(0, 3))
            yield Text()
        if not life.views and not life.words:
            yield Text("No visual token of this model has a place on the picture, so none are drawn.", style="dim")
        if life.stages:
            yield self._legend()
            yield Text()
            yield self._stages()
            yield from self._spans()
            yield Text()
        yield from steps_of(life.steps, life.words)
        if life.stages and all(stage.same for stage in life.stages):
            yield Text("✓ Every stage kept the same tokens as in the run.", style="green")
        else:
            yield from (_checked(s.same, f"{short_site(s.site)}: {s.against_run()}") for s in life.stages)
        yield from (_checked(*check) for check in life.checks)
        yield self._layers()
        for note in life.notes:
            yield Text(f"! {note}", style="yellow")

    def _answers(self) -> Table:
        life = self.life
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for title in ("", life.unit, "", "answer", life.weighs):
            table.add_column(title)
        full, cut = str(life.total), f"{life.average:.1f} a layer"
        for title, tokens, said in (("without pruning", full, life.unpruned), (f"with {life.arm}", cut, life.pruned)):
            table.add_row(
                literal(title), Text(tokens, "dim"), Text(*_MARK[said.mark]), literal(_quoted(said.text)), _first(said)
            )
            if not said.same:
                table.add_row("", "", "", literal(f"in the run: {_quoted(said.recorded)}", "yellow"), "")
        return table

    def _panels(self, colored: bool, view: View) -> Iterator[tuple[str, Text]]:
        """The picture, where the terminal has colours, and every stage."""
        if colored and self.life.picture is not None:
            yield "picture", _colors(self.life.picture, view)
        for stage in self.life.stages:
            yield f"{short_site(stage.site)}  {len(stage.alive)} → {len(stage.kept)}", self._grid(stage, view)

    def _panel(self, panel: tuple[str, Text]) -> RenderableType:
        title, grid = panel
        return Group(Text(title, style="bold"), grid)

    def _grid(self, stage: StageLife, view: View) -> Text:
        """Two characters a token: why it stays, + where others flowed in; · where it goes, blank where it was gone."""
        text, alive, merged = Text(no_wrap=True), set(stage.alive), set(stage.merged)
        reason = {token: name for name, tokens in stage.rules.items() for token in tokens}
        for row, column, token in places(view):
            if row and not column:
                text.append("\n")
            if token in reason:
                letter = self.life.letters[reason[token]] + ("+" if token in merged else " ")
                text.append(letter, style=f"bold #10141a on {self.colors[reason[token]]}")
            else:
                text.append(f"{_DROPPED if token in alive else _GONE} ", style="dim")
        return text

    def _sites(self) -> str:
        """What the short names of sites stand for, by the example of the first."""
        short = [stage.site for stage in self.life.stages if short_site(stage.site) != stage.site]
        return f"; {short_site(short[0])} is {short[0]}" if short else ""

    def _legend(self) -> Text:
        parts: list = []
        for name in self.life.rules:
            parts += [(f" {self.life.letters[name]} ", f"bold #10141a on {self.colors[name]}"), f" {name}   "]
        merged = ["+ others flowed in   "] if any(stage.merged for stage in self.life.stages) else []
        dropped = [] if self.life.words else [(f"{_DROPPED} dropped here, blank: before", "dim")]
        return Text.assemble(*parts, *merged, *dropped)

    def _stages(self) -> Table:
        """A line a stage: tokens, how many each rule kept, by its letter, and the plan."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("stage")
        for title in ("tokens", *self.life.letters.values()):
            table.add_column(title, justify="right")
        table.add_column("plan")
        for stage in self.life.stages:
            counts = [str(len(stage.rules.get(name, ())) or "") for name in self.life.rules]
            table.add_row(
                short_site(stage.site), f"{len(stage.alive)} → {len(stage.kept)}", *counts, literal(stage.plan)
            )
        return table

    def _spans(self) -> Iterator[Text]:
        """What the score says, of methods that have one and name no rules."""
        if set(self.life.rules) <= {HIGHEST, KEPT}:
            for stage in self.life.stages:
                for part in stage.scores:
                    if said := stage.spans(part):
                        yield Text(f"{part} at {short_site(stage.site)}: {said}", style="dim")

    def _layers(self) -> Text:
        shown = "  ".join(map(str, self.life.layers))
        return Text.assemble((f"{self.life.unit} per layer  ", "dim"), shown)


def _checked(same: bool, said: str) -> Text:
    return Text(f"{'✓' if same else '!'} {said}", style="green" if same else "yellow")


def _first(said: Said) -> Text:
    likely = [f"{token.strip() or repr(token)} {100 * p:.0f}%" for token, p in said.first if p >= _LIKELY]
    return Text(", ".join(likely), style="dim")


def _quoted(text: str) -> str:
    return text or "(nothing)"


def _colors(picture: Image.Image, view: View) -> Text:
    """The picture itself, a mean colour per token."""
    rows, columns = view.grid
    small = np.asarray(picture.convert("RGB").resize((columns, rows), Image.Resampling.BOX))
    text = Text(no_wrap=True)
    for row in range(rows):
        if row:
            text.append("\n")
        for red, green, blue in small[row].tolist():
            text.append("  ", style=f"on rgb({red},{green},{blue})")
    return text
