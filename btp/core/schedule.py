"""Where tokens are withdrawn, how many stay, and what that costs on average."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol, overload

from torch import Tensor

from btp.core.check_settings import check_one_of
from btp.core.keep import Keep, check_keep, fit_times, is_fit, keep_count
from btp.core.site import Site

PART = "by"  # the setting that says which part of a composed method a stage belongs to
_KEYS = ("site", "keep", "positions", "phase", "of")
_POSITIONS = ("original", "renumber")
_PHASES = ("prefill", "decode", "both")
_OF = ("total", "alive")
IN_DECODE = ("revive", "protect", "first", "scope")  # settings that the engine reads at a stage that acts in decode


class Solver(Protocol):
    """Says how many tokens a stage keeps, where each sample is solved for its own number of tokens."""

    def count(self, site: Site, total: int) -> int:
        """Tokens that the stage at `site` keeps of `total`."""
        ...


@dataclass(frozen=True)
class Stage:
    """Stage of a schedule: a site, how many tokens stay there, and the method's settings for it.

    Attributes:
        site: Site; text is parsed.
        keep: what stays. int = tokens per sample, float in [0, 1] = share of the ORIGINAL visual tokens,
            0 withdraws them all (no method is asked), "fit" is solved from the run's budget, "fit*X" is X times
            what the first stage with "fit" keeps (of the same part, where methods are composed).
            Mind that 1 is one token and 1.0 is all of them.
        positions: "original" leaves every token its position id, "renumber" closes the gaps behind the cut.
        phase: "prefill", "decode" or "both".
        settings: the method's own knobs at this stage, such as BTP's balance.
        solver: where keep is "fit", what solves it for each sample's own number of tokens; None leaves it unsolved.
        of: what a share is of: "total" (the ORIGINAL tokens) or "alive" (those in front of the stage: it drops that
            share of them, rounded down).
    """

    site: Site
    keep: Keep
    positions: str = "original"
    phase: str = "prefill"
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    solver: Solver | None = None
    of: str = "total"

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", Site.parse(self.site))
        object.__setattr__(self, "settings", dict(self.settings))
        check_keep(self.keep, "keep")
        check_one_of("positions", self.positions, _POSITIONS)
        check_one_of("phase", self.phase, _PHASES)
        check_one_of("of", self.of, _OF)

    @overload
    def count(self, total: int) -> int: ...
    @overload
    def count(self, total: Tensor) -> Tensor: ...
    def count(self, total: int | Tensor) -> int | Tensor:
        """Tokens that stay of `total` original visual tokens, as `solver` or else `keep_count` says."""
        if self.solver is None or not is_fit(self.keep):
            return keep_count(self.keep, total)
        if isinstance(total, Tensor):
            counts = [self.solver.count(self.site, n) for n in total.flatten().tolist()]
            return total.new_tensor(counts).view_as(total)
        return self.solver.count(self.site, total)

    def kept(self, total: int, alive: int) -> int:
        """Tokens that stay of `alive` ones, where there were `total` before any pruning."""
        if self.of == "alive" and isinstance(self.keep, float):
            return alive - int(alive * (1 - self.keep) + 1e-6)
        return min(self.count(total), alive)

    @property
    def in_decode(self) -> bool:
        """True where it stands between layers and acts in decode steps (too): what left may come back."""
        return self.site.kind == "layer" and self.site.tower == "llm" and self.phase != "prefill"

    @property
    def is_free(self) -> bool:
        """True where a budget still has to say how many stay."""
        return is_fit(self.keep) and self.solver is None

    @property
    def withdraws_all(self) -> bool:
        """True where nothing is left to decide, because nothing stays."""
        return self.keep == 0

    @property
    def moves_prefill(self) -> bool:
        """True where it shortens the prompt for the layers behind it (a cache or decode stage does not)."""
        return self.site.kind != "cache" and self.phase != "decode"

    def to_config(self) -> dict[str, Any]:
        """The stage as its config would write it; `Schedule.from_config` reads it back."""
        return {
            "site": str(self.site),
            "keep": self.keep,
            "positions": self.positions,
            "phase": self.phase,
            **({} if self.of == "total" else {"of": self.of}),
        } | dict(self.settings)


@dataclass(frozen=True)
class Schedule(Sequence[Stage]):
    """Stages at strictly increasing sites, each keeping no more than the one before.

    Raises:
        ValueError: sites do not increase, a stage keeps more than are alive, or a stage changes nothing.
    """

    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        for i, (a, b) in enumerate(pairwise(self.stages), start=1):
            if not a.site < b.site:
                raise ValueError(
                    f"schedule.{i}.site is {b.site}, but schedule.{i - 1}.site is {a.site}. "
                    "Sites must strictly increase; reorder the stages or merge the two into one."
                )
        self._check_nested(None)
        self._check_times()

    @classmethod
    def from_config(cls, config: Sequence[Mapping[str, Any]]) -> Schedule:
        """Read stages from mappings; keys other than site, keep, positions, phase and of are the method's
        settings of that stage.

        Raises:
            ValueError: names the config key, as in `schedule.0.site`.
        """
        stages = []
        for i, entry in enumerate(config):
            if not isinstance(entry, Mapping):
                raise ValueError(f"schedule.{i} is {entry!r}. Write a mapping with at least site and keep.")
            for key in ("site", "keep"):
                if key not in entry:
                    near = difflib.get_close_matches(key, [str(k) for k in entry], 1)
                    hint = f" Did you mean it by {near[0]!r}?" if near else ""
                    both = " A stage has a site and a keep, as {site: llm.layer.2, keep: fit}."
                    raise ValueError(f"schedule.{i}.{key} is missing.{hint}{both}")
            fields = {key: entry[key] for key in _KEYS if key in entry}
            settings = {key: value for key, value in entry.items() if key not in _KEYS}
            for key, read in (("site", Site.parse), ("keep", lambda keep: check_keep(keep, "keep"))):
                try:
                    read(fields[key])
                except ValueError as error:
                    raise ValueError(f"schedule.{i}.{key}: {error}") from None
            try:
                stages.append(Stage(**fields, settings=settings))
            except ValueError as error:
                raise ValueError(f"schedule.{i}.{error}") from None
        return cls(tuple(stages))

    def to_config(self) -> list[dict[str, Any]]:
        """The schedule as its config would write it."""
        return [stage.to_config() for stage in self.stages]

    @overload
    def __getitem__(self, index: int) -> Stage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Stage]: ...
    def __getitem__(self, index: int | slice) -> Stage | Sequence[Stage]:
        return self.stages[index]

    def __len__(self) -> int:
        return len(self.stages)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def check(self, num_layers: int, num_vision_layers: int | None = None) -> None:
        """Refuse a schedule that does not fit a model.

        Args:
            num_layers: decoder layers.
            num_vision_layers: layers of the vision tower; None where it is not known.

        Raises:
            ValueError: a site lies outside the model, or a `fit` was left unsolved.
        """
        self.check_sites(num_layers, num_vision_layers)
        for i, stage in enumerate(self.stages):
            if stage.is_free:
                raise ValueError(
                    f"schedule.{i}.keep is still {stage.keep}. Solve it from a budget (solve_fit) or write a number."
                )

    def check_sites(self, num_layers: int, num_vision_layers: int | None = None) -> None:
        """Refuse sites outside the model; the first half of `check`."""
        for i, stage in enumerate(self.stages):
            depth = num_layers if stage.site.tower == "llm" else num_vision_layers
            if depth is not None and stage.site.layer >= depth:
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but the {stage.site.tower} tower has {depth} "
                    "layers. "
                    f"Choose a layer from 0 to {depth - 1}."
                )

    def tokens_avg(self, total: int, num_layers: int, tower: str = "llm") -> float:
        """Planned visual tokens, averaged over the layers, for a sample with `total` of them.

        Args:
            total: visual tokens before any stage.
            num_layers: Number of layers of the tower.
            tower: over whose layers: "llm", or "vision" of a model without a language model.

        Raises:
            ValueError: a site lies outside the model, a `fit` was left unsolved, or a stage keeps more than are alive.
        """
        return sum(self.tokens_per_layer(total, num_layers, tower)) / num_layers

    def tokens_per_layer(self, total: int, num_layers: int, tower: str = "llm") -> list[int]:
        """Planned visual tokens that enter each layer, checked as `tokens_avg` is."""
        self.check(num_layers)
        self._check_nested(total)
        return self._alive(total, num_layers, tower)

    def reached(self, total: int, num_layers: int, tower: str = "llm") -> float:
        """As `tokens_avg`, unchecked: a stage that would keep more than are alive changes nothing, as in the engine."""
        return sum(self._alive(total, num_layers, tower)) / num_layers

    def _alive(self, total: int, num_layers: int, tower: str) -> list[int]:
        alive = [total] * num_layers
        count = total
        for stage in self.stages:
            if stage.moves_prefill:
                count, first = stage.kept(total, count), stage.site.first_of(tower)
                alive[first:] = [count] * (num_layers - first)
        return alive

    @property
    def has_fit(self) -> bool:
        """True where a budget has something to solve."""
        return any(stage.is_free for stage in self.stages)

    def _check_times(self) -> None:
        """Refuse a `fit*X` that could only keep more than the fit before it."""
        before: dict[Any, tuple[int, float]] = {}
        plain = set()
        for i, stage in enumerate(self.stages):
            part, times = stage.settings.get(PART), fit_times(stage.keep)
            if not stage.is_free or (times is None and part in plain):
                continue
            if times is None:
                plain.add(part)
                times = 1.0
            if part in before and times > before[part][1]:
                j = before[part][0]
                raise ValueError(
                    f"schedule.{i}.keep is {stage.keep} at {stage.site}, more than are alive: schedule.{j}.keep at "
                    f"{self[j].site} leaves {self[j].keep}. Stages cannot bring tokens back; lower schedule.{i}.keep."
                )
            before[part] = i, times

    def _check_nested(self, total: int | None) -> None:
        chain = [(i, s) for i, s in enumerate(self.stages) if s.moves_prefill]
        for (i, a), (j, b) in pairwise(chain):
            if is_fit(a.keep) or is_fit(b.keep) or "alive" in (a.of, b.of):
                continue
            if total is None and type(a.keep) is not type(b.keep) and 0 not in (a.keep, b.keep):
                continue
            before, after = (a.keep, b.keep) if total is None else (a.count(total), b.count(total))
            if after > before:  # type: ignore[operator]
                raise ValueError(
                    f"schedule.{j}.keep is {b.keep} at {b.site}, more than are alive: schedule.{i}.keep at "
                    f"{a.site} "
                    f"leaves {a.keep}. keep counts from the original tokens, so lower schedule.{j}.keep."
                )
            if total is None and after == before and not (a.keep == 1.0 and isinstance(a.keep, float)):
                raise ValueError(
                    f"schedule.{j}.keep is {b.keep} at {b.site}, the same as schedule.{i}.keep at {a.site}, "
                    "so the "
                    f"stage changes nothing. Lower it or remove the stage."
                )
