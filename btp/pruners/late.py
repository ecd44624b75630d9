"""Control: a method whose choice was made for another question about the same pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Stage
from btp.core.selection import Selection
from btp.core.signals import Signals
from btp.core.wrapper import Around
from btp.pruners.replay import Replay


class Late(Around):
    """A late question finds the keys and values of the visual tokens that an earlier one has left of its pictures.

    Visual tokens stand in front of the text and do not see it, so that they are those of any question. Inside
    `listening` the method decides, behind it the same tokens stay whatever is asked. Before that it is the method.

    Args:
        inner: the method. One that merges, exchanges or reorders tokens is refused: what it makes is no choice.
    """

    def __init__(self, *, inner: Pruner) -> None:
        super().__init__(inner)
        self._heard: dict[str, list[list[int]]] | None = None
        self._replay: Replay | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Meanwhile the method decides about earlier questions, and its choice is written down."""
        self._heard, self._replay = {}, None
        try:
            yield
            self._replay = Replay(self._heard)
        finally:
            self._heard = None

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """The method's choice, or the one that it has made.

        Raises:
            ValueError: what the method decides is more than a choice.
        """
        if self._replay is not None:
            again = self._replay.select(tokens, signals, stage)
            counts = tuple((again.keep >= 0).sum(1).tolist()) if self.adaptive else None
            return replace(again, counts=counts)
        found = self.pruner.select(tokens, signals, stage)
        if self._heard is None:
            return found
        if found.merge is not None or found.states is not None or found.ordered or stage.phase != "prefill":
            raise ValueError(
                f"pruner {self.name!r} does more than choose tokens of the prompt at {stage.site} (it merges, "
                "exchanges or reorders them, or chooses anew in decode steps), which no later question can find as it "
                "was. Run it without the arm late."
            )
        index = tokens.index.gather(1, found.keep.clamp(min=0).to(tokens.index.device)).tolist()
        rows = zip(index, found.keep.tolist(), strict=True)
        self._heard[str(stage.site)] = [[i for i, j in zip(*row, strict=True) if j >= 0] for row in rows]
        return found
