"""The contract of a method: it sees tokens and declared signals, and decides which tokens stay."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from btp.core.schedule import IN_DECODE, Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.topk import top_k, unscored


@dataclass(frozen=True)
class Tokens:
    """The visual tokens alive at a site. B batch, N most alive in a row, D hidden, T text rows.

    At a site of the vision tower a row is a picture, whichever prompt it belongs to, and a stage's `keep` counts
    tokens of a picture. Shorter rows are padded at the end; `valid` says which entries are real. Every index of a
    pruner is an index into N.

    Attributes:
        hidden: [B, N, D] states at the site; of padding, arbitrary finite values.
        position: [B, N] original place in the row's prompt, padding of the prompt not counted.
        coord: [B, N, 3] (frame, row, column) in the token's image or video; -1 for tokens off the grid
            (newlines).
        image: [B, N] which image or video of the row, 0-based.
        size: [B, N] original tokens each one stands for (1 until something is merged).
        valid: [B, N] bool.
        total: [B] visual tokens of the row before any pruning.
        index: [B, N] which of the row's `total` visual tokens it is, 0-based, in prompt order.
        text: [B, T, D] states of the text tokens behind the first image; only where the pruner declared a
            `hidden` signal with rows text at this site.
        text_valid: [B, T] bool.
        picture: [B, N] which of the batch's pictures it belongs to, counted over all rows; -1 where padded.
        slot: [B, N] which of the vision tower's tokens of that picture it is (class token not counted); -1 where
            padded. Signals of the vision tower are per picture: at a stage of the language model
            `value[tokens.picture, ..., tokens.slot]` is what was seen of a token.
        row: [B, N] which of the layer's rows it is (signals with rows all), -1 where padded.
        carried: [B, N] numbers by name that the method gave to these tokens (`Selection.carried`): at stages in front
            of this one, or, where the stage acts in decode, when it was last asked here. {} where it gave none; 0 for
            a token that was not shown then.
        host_total, host_alive: `total` and the valid counts as ints, where the maker knows them without a
            sync.
        host_grid: `coord` and `image` on the CPU, in front of a first stage that needs the grid (`needs_grid`).
        host_keep: how many of them each row keeps, where that is not what the stage says of `total` alone: at a stage
            that acts in decode, tokens that may not leave are not shown.
    """

    hidden: Tensor
    position: Tensor
    coord: Tensor
    image: Tensor
    size: Tensor
    valid: Tensor
    total: Tensor
    index: Tensor
    text: Tensor | None = None
    text_valid: Tensor | None = None
    picture: Tensor | None = None
    slot: Tensor | None = None
    row: Tensor | None = None
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    host_total: tuple[int, ...] | None = None
    host_alive: tuple[int, ...] | None = None
    host_grid: tuple[Tensor, Tensor] | None = None
    host_keep: tuple[int, ...] | None = None

    @property
    def padding(self) -> Tensor | None:
        """`valid`; None where it is known without a sync that nothing is padded, so that nothing needs to be hidden."""
        known = self.host_alive is not None and min(self.host_alive, default=0) == self.valid.shape[1]
        return None if known else self.valid

    def keep_counts(self, stage: Stage) -> tuple[int, ...]:
        """How many tokens each row keeps at this stage: the stage's count, capped by what is alive."""
        if self.host_keep is not None:
            return self.host_keep
        total = self.host_total if self.host_total is not None else tuple(self.total.tolist())
        alive = self.host_alive if self.host_alive is not None else tuple(self.valid.sum(1).tolist())
        return tuple(stage.kept(n, a) for n, a in zip(total, alive, strict=True))


class Pruner(ABC):
    """A method. It never sees a module, a mask, a cache or a config.

    Attributes:
        stage_settings: names of the settings it understands on a stage; others are refused.
        adaptive: it decides itself how many tokens each row keeps (`Selection.counts`); a stage's keep is then its
            aim.
    """

    stage_settings: ClassVar[frozenset[str]] = frozenset()
    adaptive: bool = False

    @property
    def name(self) -> str:
        """How messages and traces call it: the class name in lower case."""
        return type(self).__name__.lower()

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Signals to compute for this stage, each from a site before it (`stage.site.previous_layer`)."""
        return ()

    def reads_states(self, stage: Stage) -> bool:
        """Whether it looks at `Tokens.hidden` at this stage; at one that acts in decode there are none."""
        return True

    def needs_grid(self, stage: Stage) -> bool:
        """Whether this stage goes by where tokens lie in a picture (`Tokens.coord`), which those of a text do not."""
        return False

    @abstractmethod
    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Choose the tokens that stay; `tokens.keep_counts(stage)` says how many indices each row must return.

        Called once per stage and prefill, also where everything stays; not called where nothing is alive or
        nothing stays. At a stage of phase both it is called in every decode step too, at one of phase decode in these
        alone.
        """

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """Why `select` decides as it does with the same arguments; asked by who looks at a sample, never by a run.

        Returns:
            [B, N] tensors under names that a reader is shown. Floating ones are parts of the score, higher = keep, -inf
            where a part does not apply. Bool ones are rules: together they mark exactly the kept tokens, each once.
            Padded tokens may hold anything. {} says no more than the selection does.
        """
        return {}

    def check(self, schedule: Schedule) -> None:
        """Refuse settings that the method does not know; methods add their own ranges behind `super().check`.

        Raises:
            ValueError: names the config key and the nearest known setting.
        """
        for i, stage in enumerate(schedule):
            if stage.in_decode and stage.site.layer < 1:
                raise ValueError(
                    f"schedule.{i}.site is {stage.site} in phase {stage.phase}, but in front of layer 0 there are no "
                    f"keys to choose among. Set schedule.{i}.site to llm.layer.1 or later."
                )
            names = self.stage_settings | frozenset(IN_DECODE if stage.in_decode else ())
            if stage.site.kind == "cache" and stage.withdraws_all:
                names |= {"scope"}  # nobody is asked there
            for key in stage.settings:
                if key not in names:
                    known = ", ".join(sorted(names)) or "none"
                    near = difflib.get_close_matches(key, names, 1)
                    hint = f" Did you mean {near[0]}?" if near else " Remove it."
                    raise ValueError(
                        f"schedule.{i}.{key} is set, but pruner {self.name!r} has no such setting (known: "
                        f"{known})." + hint
                    )


class ScorePruner(Pruner):
    """A method that scores tokens and keeps the highest; ties go to the lowest index."""

    @abstractmethod
    def score(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] scores, finite, higher = keep; padded tokens may hold anything."""

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Keep the highest scores of each row.

        Raises:
            ValueError: `score` gave anything else than one number per token.
        """
        scores = self.score(tokens, signals, stage)
        if scores.shape != tokens.valid.shape:
            raise ValueError(
                f"{self.name}.score returned a tensor of shape {list(scores.shape)} at {stage.site}, but the visual "
                f"tokens there are [B, N] = {list(tokens.valid.shape)}. Return one score for each of them."
            )
        return Selection(top_k(scores, tokens.keep_counts(stage), tokens.padding), scores=scores)

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """The score; -inf of a token that has none."""
        return {"score": unscored(self.score(tokens, signals, stage).float())}
