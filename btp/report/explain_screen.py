"""One sample's life in a terminal: the picture's tokens as a small grid per stage, a letter for why each one stays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from btp.report.explained import Life, Said, StageLife, places
from btp.report.load import View
from btp.report.palette import looks

_MARK = {"right": "[green]✓[/]", "wrong": "[red]✗[/]", "partly": "[yellow]~[/]"}
_GONE, _DROPPED = " ", "·"


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
        yield Text()
        for at, view in enumerate(life.views):
            title = f"{view.name}: " if view.name else ""
            yield Text(f"{title}{view.grid[0]} x {view.grid[1]} visual tokens", style="dim")
            yield Columns([self._panel(panel) for panel in self._panels(at, view)], padding=(0, 3))
            yield Text()
        if not life.views:
            yield Text("No visual token of this model has a place on the picture, so none are drawn.", style="dim")
        yield self._legend()
        yield Text()
        yield self._stages()
        yield Text()
        if all(stage.same for stage in life.stages):
            yield Text("✓ Every stage kept the same tokens as in the run.", style="green")
        else:
            for stage in life.stages:
                style = "green" if stage.same else "yellow"
                yield Text(f"{'✓' if stage.same else '!'} {stage.site}: {stage.against_run()}", style=style)
        yield self._layers()
        for note in life.notes:
            yield Text(f"! {note}", style="yellow")

    def _answers(self) -> Table:
        life = self.life
        table = Table.grid(padding=(0, 2))
        full, cut = f"{life.total} tokens", f"{life.average:.1f} tokens on average"
        for title, tokens, said in (("without pruning", full, life.unpruned), (f"with {life.arm}", cut, life.pruned)):
            table.add_row(title, Text(tokens, style="dim"), _MARK[said.mark], Text(_quoted(said.text)), _first(said))
            if not said.same:
                table.add_row("", "", "", Text(f"in the run: {_quoted(said.recorded)}", style="yellow"), "")
        return table

    def _panels(self, at: int, view: View) -> Iterator[tuple[str, Text]]:
        if at == 0:
            yield "picture", _colors(self.life.picture, view)
        for stage in self.life.stages:
            yield f"{stage.site}  {len(stage.alive)} → {len(stage.kept)}", self._grid(stage, view)

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

    def _legend(self) -> Text:
        parts: list = []
        for name in self.life.rules:
            parts += [(f" {self.life.letters[name]} ", f"bold #10141a on {self.colors[name]}"), f" {name}   "]
        merged = ["+ others flowed in   "] if any(stage.merged for stage in self.life.stages) else []
        return Text.assemble(*parts, *merged, (f"{_DROPPED} dropped at this stage, blank: before", "dim"))

    def _stages(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for title in ("stage", "plan", "tokens", *self.life.rules):
            table.add_column(title, justify="right" if title in ("tokens", *self.life.rules) else "left")
        for stage in self.life.stages:
            counts = [str(len(stage.rules.get(name, ())) or "") for name in self.life.rules]
            table.add_row(stage.site, stage.plan, f"{len(stage.alive)} → {len(stage.kept)}", *counts)
        return table

    def _layers(self) -> Text:
        shown = "  ".join(map(str, self.life.layers))
        return Text.assemble(("visual tokens per layer  ", "dim"), shown)


def _first(said: Said) -> Text:
    likely = ", ".join(f"{token.strip() or repr(token)} {100 * p:.0f}%" for token, p in said.first)
    return Text(f"first token: {likely}", style="dim")


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
