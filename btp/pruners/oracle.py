"""Control: keeps what is known to matter, and lets another method spend the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals

Target = int | Sequence[float]
_TOKENS = ("hidden", "position", "coord", "image", "size", "index", "picture", "slot", "row")
_AXES = {  # of batch and tokens in a signal
    "hidden": (0, 1),
    "attention": (0, 3),
    "preview": (0, 3),
    "keys": (0, 2),
    "values": (0, 2),
    "queries": (0, 2),
    "update": (1, 2),
    "change": (1, 2),
    "rotary": (1, 2),
}


class Oracle(Pruner):
    """Force-keeps the targets of each sample, as long as they fit.

    Where the targets alive are no more than k, all of them stay, and `inner` chooses the others among the
    rest with what is left of k. Where they are more, `inner` chooses k of the targets. `inner` sees only the
    tokens it may choose from. Keeps the targets of the current batch; reads them on the host, so it waits for
    the device at every stage.

    Args:
        inner: the other method. Its stage settings are this one's.
    """

    def __init__(self, *, inner: Pruner) -> None:
        if not isinstance(inner, Pruner) or isinstance(inner, Oracle):
            raise ValueError(f"pruner.method.inner is {inner!r}. Give it the _target_ of another pruner.")
        self.inner = inner
        self.targets: list[list[Target]] | None = None
        self.forced: list[set[int]] = []

    @property
    def stage_settings(self) -> frozenset[str]:  # type: ignore[override]
        """Those of the other method."""
        return self.inner.stage_settings

    def set_targets(self, targets: Sequence[Sequence[Target]]) -> None:
        """Say what to keep in the coming batch; call before each one.

        Args:
            targets: per row any number of targets: the index of a visual token; or a box (x0, y0, x1, y1) in
                shares of the sides of the row's first image; or (x0, y0, x1, y1, image). A box means each
                token whose cell it covers in part, in every frame of the image: each frame of a video, and each
                view that shows all of a picture (the whole and its mosaic). Tokens off the grid (newlines) lie in
                no box.

        Raises:
            ValueError: a box is not one.
        """
        rows = [list(row) for row in targets]
        for r, row in enumerate(rows):
            for target in row:
                if not isinstance(target, int):
                    _check_box(r, target)
        self.targets, self.forced = rows, []

    def check(self, schedule: Schedule) -> None:
        """As the other method."""
        self.inner.check(schedule)

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """As the other method."""
        return self.inner.needs(stage)

    def needs_grid(self, stage: Stage) -> bool:
        """As the other method: targets may be indices of tokens as well as boxes."""
        return self.inner.needs_grid(stage)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """The targets, and around them what the other method chooses.

        Raises:
            RuntimeError: no targets were set for this batch, or not one list per row.
        """
        counts = tokens.keep_counts(stage)
        index, valid = tokens.index.tolist(), tokens.valid.tolist()
        forced = self._forced(tokens, index, valid)
        keep: list[list[int]] = []
        pools: list[list[int]] = []
        for row, count in enumerate(counts):
            alive = [i for i, real in enumerate(valid[row]) if real]
            mine = [i for i in alive if index[row][i] in forced[row]]
            fits = len(mine) <= count
            keep.append(mine if fits else [])
            pools.append([i for i in alive if index[row][i] not in forced[row]] if fits else mine)
        rest = tuple(count - len(mine) for count, mine in zip(counts, keep, strict=True))
        scores = None
        if any(rest):
            picks, scores = self._ask(tokens, signals, stage, pools, rest)
            for row, chosen in enumerate(picks):
                keep[row] = sorted(keep[row] + chosen)
        return Selection(_padded(keep, tokens.index.device), scores=scores)

    def _forced(self, tokens: Tokens, index: list[list[int]], valid: list[list[bool]]) -> list[set[int]]:
        """Per row the original indices of its targets; found while all tokens are there."""
        if self.targets is None:
            raise RuntimeError(
                "pruner 'oracle' has no targets. Call set_targets(boxes per row) before each batch, or "
                "choose a task whose samples carry boxes."
            )
        rows = len(index)
        if not self.targets or rows % len(self.targets):
            raise RuntimeError(
                f"pruner 'oracle' got targets for {len(self.targets)} rows, but the batch has {rows}. Call "
                "set_targets with one list per row before each batch."
            )
        whole = [sum(row) for row in valid] == tokens.total.tolist()
        if whole or len(self.forced) != rows:
            places = torch.cat([tokens.image[..., None], tokens.coord], dim=-1).tolist()  # [B, N, 4]
            beams = rows // len(self.targets)
            self.forced = [
                {index[r][i] for i in _covered(self.targets[r // beams], index[r], places[r]) if valid[r][i]}
                for r in range(rows)
            ]
        return self.forced

    def _ask(
        self, tokens: Tokens, signals: Signals, stage: Stage, pools: list[list[int]], counts: tuple[int, ...]
    ) -> tuple[list[list[int]], Tensor | None]:
        """Let the other method choose `counts` tokens of each row's pool: indices into the full N, and its scores."""
        pool = _padded(pools, tokens.index.device)  # [B, P]
        every = {f.name: getattr(tokens, f.name) for f in fields(Tokens)}
        every |= {name: _narrow(every[name], pool, 0, 1) for name in _TOKENS if every[name] is not None}
        every |= {"valid": pool >= 0, "host_alive": tuple(map(len, pools))}
        mine = {s for s in signals if _over_tokens(s) and s.site.tower == stage.site.tower}
        seen = {s: _narrow(v, pool, *_AXES[s.kind]) if s in mine else v for s, v in signals.items()}
        rows_valid = {s: signals.rows_valid(s) for s in signals if s.rows == "text"}
        chosen = self.inner.select(_Pool(**every, counts=counts), Signals(seen, rows_valid), stage)
        scores = chosen.scores
        if scores is not None:
            n = tokens.valid.shape[1]
            whole = scores.new_zeros(len(pool), n + 1)
            scores = whole.scatter(1, pool.masked_fill(pool < 0, n), scores)[:, :n]
        picks = [[pools[row][i] for i in found if i >= 0] for row, found in enumerate(chosen.keep.tolist())]
        return picks, scores


@dataclass(frozen=True)
class _Pool(Tokens):
    """Some of a stage's tokens, of which fewer are to be kept than the stage says."""

    counts: tuple[int, ...] = ()

    def keep_counts(self, stage: Stage) -> tuple[int, ...]:
        return self.counts


def _narrow(value: Tensor, pool: Tensor, batch: int, axis: int) -> Tensor:
    """`value` with only the tokens of `pool` [B, P] along `axis`; -1 takes the first one, as filling."""
    shape = [1] * value.dim()
    shape[batch], shape[axis] = pool.shape
    whole = list(value.shape)
    whole[axis] = pool.shape[1]
    return value.gather(axis, pool.clamp(min=0).view(shape).expand(whole))


def _over_tokens(signal: Signal) -> bool:
    return signal.kind in ("attention", "preview") or (signal.rows is None and signal.kind != "pixels")


def _covered(targets: Sequence[Target], index: list[int], places: list[list[int]]) -> set[int]:
    """Tokens that the targets mean, as indices into N."""
    sides: dict[tuple[int, int], list[int]] = {}  # each frame has a grid of its own
    for image, frame, row, column in places:
        side = sides.setdefault((image, frame), [0, 0])
        side[0], side[1] = max(side[0], row + 1), max(side[1], column + 1)
    found: set[int] = set()
    for target in targets:
        if isinstance(target, int):
            found |= {i for i, original in enumerate(index) if original == target}
            continue
        wanted = int(target[4]) if len(target) == 5 else 0
        found |= {
            i
            for i, (image, frame, row, column) in enumerate(places)
            if image == wanted and row >= 0 and _meets(target, row, column, *sides[image, frame])
        }
    return found


def _meets(box: Sequence[float], row: int, column: int, rows: int, columns: int) -> bool:
    """Whether a box covers a part of a cell."""
    x0, y0, x1, y1 = box[:4]
    across = column < x1 * columns and column + 1 > x0 * columns
    return across and row < y1 * rows and row + 1 > y0 * rows


def _check_box(row: int, box: Sequence[float]) -> None:
    if len(box) in (4, 5) and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1:
        return
    raise ValueError(
        f"Target {tuple(box)} of row {row} is not a box. Give (x0, y0, x1, y1) in shares of the picture's "
        "sides with x0 < x1 and y0 < y1 in [0, 1], and behind it the image's number if it is not the first."
    )


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """[B, longest] the rows, padded with -1 at the end."""
    width = max(map(len, rows))
    filled = [[*row, *[-1] * (width - len(row))] for row in rows]
    return on_device(filled, device, torch.long).view(len(rows), width)
