"""Trace of a run: what each stage did, read from the tensors that ran, not from the plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from btp.core.site import Site


@dataclass
class StageRecord:
    """One stage of one prefill.

    Attributes:
        site: Site of the stage.
        before, after: visual tokens alive, per row.
        indices: [B, K] original visual indices that stayed, -1 padded at the end; read it through `kept`. Where tokens
            were put in a new order, in that order.
        sizes: [B, K] original tokens that each stands for; None where nothing was merged here.
    """

    site: Site
    before: tuple[int, ...]
    after: tuple[int, ...]
    indices: Tensor
    sizes: Tensor | None = None

    @property
    def fired(self) -> bool:
        """True where at least one row lost a token."""
        return self.before != self.after

    @property
    def kept(self) -> list[list[int]]:
        """Original visual indices that stayed, per row. Syncs with the device on first reading."""
        self.settle()
        return [row[:n] for row, n in zip(self.indices.tolist(), self.after, strict=True)]

    @property
    def merged(self) -> list[list[int]]:
        """Of those that stayed, the original indices of tokens that others flowed into, here or before."""
        if self.sizes is None:
            return [[] for _ in self.after]
        self.settle()
        rows = zip(self.kept, self.sizes.tolist(), strict=True)
        return [[i for i, size in zip(kept, sizes, strict=False) if size > 1] for kept, sizes in rows]

    def settle(self) -> None:
        """Move the indices off the device."""
        self.indices = self.indices.cpu()
        self.sizes = None if self.sizes is None else self.sizes.cpu()


@dataclass
class StepRecord:
    """What a stage that acts in decode did in one forward: a prefill, or a decode step. B rows of the batch.

    A position counts the real tokens of the prompt, and behind them those of the answer.

    Attributes:
        site: Site of the stage.
        entered: rows that the layers in front of it computed, per row of the batch.
        computed: the same of the layers behind it.
        revived: Of those, how many had stayed behind before.
        parked: rows that stay behind here and may come back.
        waiting: states of such rows that are held behind this forward.
        unseen: tokens seen in front of it and not behind it, in this forward.
        rows: [B, T] bool, the positions computed behind it.
        seen: [B, T] bool, the positions that these see, each up to its own.
    """

    site: Site
    entered: tuple[int, ...]
    computed: tuple[int, ...]
    revived: tuple[int, ...]
    parked: tuple[int, ...]
    waiting: tuple[int, ...]
    unseen: tuple[int, ...]
    rows: Tensor
    seen: Tensor

    @property
    def computed_at(self) -> list[list[int]]:
        """Positions computed behind it, per row of the batch. Syncs with the device on first reading."""
        self.settle()
        return [row.nonzero().flatten().tolist() for row in self.rows]

    @property
    def seen_at(self) -> list[list[int]]:
        """Positions seen behind it, per row of the batch. Syncs with the device on first reading."""
        self.settle()
        return [row.nonzero().flatten().tolist() for row in self.seen]

    def settle(self) -> None:
        """Move the positions off the device."""
        self.rows, self.seen = self.rows.cpu(), self.seen.cpu()


@dataclass
class Evicted:
    """Record of an eviction: slots that left one layer's K/V cache in one forward.

    Attributes:
        site: Site of the layer.
        step: 0 behind the prompt, then the decode step, counted from 1.
        before, after: slots per row and key head; of the stage's scope alone.
        gone: [B, Hkv or 1, G] places in the row's unpruned sequence of the slots that left, padding not counted; -1
            padded anywhere.
    """

    site: Site
    step: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    gone: Tensor

    def settle(self) -> None:
        """Move the places off the device."""
        self.gone = self.gone.cpu()


@dataclass
class Call:
    """One prefill and the decode steps behind it: one generate() call, or one forward where no cache is used.

    B rows, L decoder layers. Under beam search each beam is a row.

    Attributes:
        total: visual tokens before any pruning, per row.
        text: real text tokens of the prompt, per row.
        visual: visual tokens that entered each layer in prefill: L tuples of B.
        tokens: the same for all real tokens.
        stages: what each stage did, in order.
        slots: K/V slots of each layer behind prefill (of the longest row); empty without a cache.
        cache_bytes: bytes of those slots over all rows, keys and values; empty without a cache.
        decode_steps: forwards behind the prefill.
        steps: what each stage that acts in decode did, in each forward; empty where there is none.
        evicted: what left the K/V cache, by forward and layer, in order; empty without a stage at llm.cache.
        held: tokens that each layer's cache holds per row and key head, behind the prompt: L tuples of B; empty
            without a cache.
        held_sum: the same behind the prompt and behind each decode step, summed: L tuples of B.
        held_by_forward: the same of each forward, the prompt's first, averaged over layers: tuples of B.
        vision: (tokens that attended, tokens that passed the MLP) in each vision layer, class tokens included, per
            picture; empty where no stage stands in the vision tower.
        projected: tokens of each picture that the projector took; empty likewise.
    """

    total: tuple[int, ...]
    text: tuple[int, ...]
    visual: list[tuple[int, ...]] = field(default_factory=list)
    tokens: list[tuple[int, ...]] = field(default_factory=list)
    stages: list[StageRecord] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    cache_bytes: list[int] = field(default_factory=list)
    decode_steps: int = 0
    steps: list[list[StepRecord]] = field(default_factory=list)
    evicted: list[Evicted] = field(default_factory=list)
    held: list[tuple[int, ...]] = field(default_factory=list)
    held_sum: list[tuple[int, ...]] = field(default_factory=list)
    held_by_forward: list[tuple[float, ...]] = field(default_factory=list)
    vision: list[tuple[int, int]] = field(default_factory=list)
    projected: tuple[int, ...] = ()

    @property
    def tokens_avg(self) -> tuple[float, ...]:
        """Visual tokens averaged over the decoder layers, per row."""
        return tuple(sum(layer) / len(self.visual) for layer in zip(*self.visual, strict=True))

    @property
    def slots_avg(self) -> tuple[float, ...]:
        """Slots averaged over layers and forwards (behind the prompt, and behind each decode step), per row."""
        forwards = self.decode_steps + 1
        return tuple(sum(layer) / (len(self.held_sum) * forwards) for layer in zip(*self.held_sum, strict=True))

    def slots_over(self, row: int, forwards: int) -> float:
        """Slots of one row averaged over layers and its first forwards: steps behind its answer's end do not count."""
        held = [counts[row] for counts in self.held_by_forward[:forwards]]
        return sum(held) / len(held)

    @property
    def slots_prefill(self) -> tuple[float, ...]:
        """Slots averaged over layers behind the prompt, per row."""
        return tuple(sum(layer) / len(self.held) for layer in zip(*self.held, strict=True))

    @property
    def fired(self) -> dict[str, bool]:
        """Which stages withdrew something, by site."""
        found = {str(stage.site): stage.fired for stage in self.stages} | {str(e.site): True for e in self.evicted}
        for record in (record for step in self.steps for record in step if any(record.unseen)):
            found[str(record.site)] = True
        return found

    def gone(self, site: Site | str, step: int | None = None) -> list[list[set[int]]]:
        """Places in the unpruned sequence that left a layer's cache up to a forward, per row and key head.

        Args:
            site: `llm.cache.N`.
            step: 0 for the prompt's forward, or a decode step; None for the last one.
        """
        mine = [e for e in self.evicted if e.site == Site.parse(site) and (step is None or e.step <= step)]
        heads = max((e.gone.shape[1] for e in mine), default=1)
        found: list[list[set[int]]] = [[set() for _ in range(heads)] for _ in self.total]
        for record in mine:
            record.settle()
            for row, places in zip(found, record.gone.expand(-1, heads, -1).tolist(), strict=True):
                for lost, head in zip(row, places, strict=True):
                    lost.update(place for place in head if place >= 0)
        return found

    def settle(self) -> None:
        """Move what is still on the device off it."""
        steps = (record for step in self.steps for record in step)
        for record in (*self.stages, *self.evicted, *steps):
            record.settle()


@dataclass
class Trace(Sequence[Call]):
    """Every call since the engine was attached, in order.

    Attributes:
        method: name of the pruner, "none" without one.
        calls: oldest first.
    """

    method: str
    calls: list[Call] = field(default_factory=list)

    def __getitem__(self, index):
        return self.calls[index]

    def __len__(self) -> int:
        return len(self.calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls)

    @property
    def last(self) -> Call:
        """The latest call.

        Raises:
            IndexError: the model did not run yet.
        """
        if not self.calls:
            raise IndexError("The trace is empty: the model has not run inside this attach yet.")
        return self.calls[-1]

    @property
    def tokens_avg(self) -> list[float]:
        """Layer-averaged visual tokens of every row of every call, in order."""
        return [value for call in self.calls for value in call.tokens_avg]

    @property
    def fired(self) -> dict[str, bool]:
        """Which stages withdrew something in at least one call, by site."""
        sites: dict[str, bool] = {}
        for call in self.calls:
            for site, fired in call.fired.items():
                sites[site] = sites.get(site, False) or fired
        return sites
