"""VisionZip: the patches that the class token looks at stay, and a few more gather what the others hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.check_settings import check_flag, check_one_of
from btp.core.keep import keep_count, on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import MergePlan, Selection
from btp.core.signals import Signal, Signals
from btp.core.topk import top_k
from btp.ops.merge import merge_states
from btp.pruners.patch_attention import FEATURE, by_token, check_sites, is_patch

SCORES = ("cls", "received")
ORDERS = ("official", "raster")
MERGES = ("official", "mean")


class VisionZip(Pruner):
    """Dominant and contextual tokens.

    Of the k tokens that a picture keeps, c are contextual. The class token and the k - c - 1 patches that get most
    attention are dominant. Of the rest, c patches at even distances become contextual tokens, and each other one
    joins the contextual token whose keys, averaged over heads, are most like its own. Question-independent. A picture
    of which everything stays is left as it is.

    At `llm.input`, for towers whose tokens are pooled, all pictures or frames of a prompt share one count, what the
    tower shows of patches is put together for each visual token, and these merge behind the projector.

    The class token takes the place of the first patch that is neither dominant nor contextual. That patch's content
    flows into its contextual token as any other's, but plan and trace show it where the class token stands.

    Setting of a stage: `contextual`, in place of the method's.

    Args:
        score: cls, attention from the class token in the block that the projector reads, summed over heads |
            received, the mean attention from all rows, for towers without class token (later work's substitute).
        contextual: tokens that gather the rest: a share of those kept, as 0.15625, or their number, as 10.
        cls: the class token is one of the kept; false takes a patch more instead.
        merge: official, a contextual token is its own patch plus the mean of those that join it, about twice as long
            as others | mean, of all of them, as the paper's text has it.
        order: official, class token, dominant, contextual | raster, all in their places. Where a picture passes the
            tower in tiles, official has tile after tile (the released code has the dominant patches of all tiles first,
            row by row of the picture), and raster is the picture's own order.

    Source: Yang et al. 2025, arXiv:2412.04467, and its released code, where `dominant` counts the class token.
    """

    stage_settings = frozenset({"contextual"})

    def __init__(self, *, score: str, contextual: int | float, cls: bool, merge: str, order: str) -> None:
        for key, value, known in (("score", score, SCORES), ("merge", merge, MERGES), ("order", order, ORDERS)):
            check_one_of(f"pruner.method.{key}", value, known)
        check_flag("pruner.method.cls", cls)
        self.contextual = _count_or_share("pruner.method.contextual", contextual)
        self.score, self.cls, self.merge, self.order = score, cls, merge, order

    def check(self, schedule: Schedule) -> None:
        """Refuse other sites, more contextual tokens than are kept, and a new order where positions stay."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if stage.withdraws_all:
                if stage.settings:
                    raise ValueError(f"schedule.{i}.contextual has no effect: keep is 0. Remove it.")
                continue
            check_sites(Schedule((stage,)), self.name, i)
            if self.cls and stage.site.kind == "input":
                raise ValueError(
                    f"schedule.{i}.site is llm.input, where no class token comes. Set schedule.{i}.site to "
                    "vision.output, or pruner.method.cls=false."
                )
            own = "contextual" in stage.settings
            key = f"schedule.{i}.contextual" if own else "pruner.method.contextual"
            asked = _count_or_share(key, stage.settings.get("contextual", self.contextual))
            if isinstance(asked, int) and isinstance(stage.keep, int) and asked + self.cls > stage.keep:
                raise ValueError(
                    f"{key} is {asked}, more than schedule.{i}.keep={stage.keep} has room for"
                    f"{' beside the class token' if self.cls else ''}. Lower it, or raise schedule.{i}.keep."
                )
            if self.order == "official" and stage.positions != "renumber":
                raise ValueError(
                    f"schedule.{i}.positions is {stage.positions}, but pruner.method.order=official gives the tokens "
                    f"a new order. Set schedule.{i}.positions to renumber, or pruner.method.order=raster."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Attention and keys of the block that the projector reads; the class token where it is kept."""
        if stage.withdraws_all:
            return ()
        block, rows = FEATURE, "cls" if self.score == "cls" else "mean"
        signals = (Signal("attention", block, rows, "probs"), Signal("keys", block))
        return (*signals, Signal("hidden", stage.site, "cls")) if self.cls else signals

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Dominant patches by attention, contextual ones at even distances, the others join these."""
        counts = tokens.keep_counts(stage)
        alive = tokens.host_alive or tuple(tokens.valid.sum(1).tolist())
        asked = stage.settings.get("contextual", self.contextual)
        split = [self._split(k, n, asked) for k, n in zip(counts, alive, strict=True)]
        dominant, contextual, class_tokens = (tuple(column) for column in zip(*split, strict=True))
        attention, keys, *state = (signals[signal] for signal in self.needs(stage))
        scores, keys = attention.float().sum((1, 2)), keys.float().mean(1)
        if stage.site.kind == "input":  # of pictures, for the tokens of a prompt
            lowest = torch.finfo(scores.dtype).min
            scores, keys = by_token(scores, tokens).masked_fill(~is_patch(tokens), lowest), by_token(keys, tokens)
        chosen = top_k(scores, dominant, tokens.valid)
        chosen = _marked(chosen, tokens.valid.shape[1])  # [B, N]
        rest = tokens.valid & ~chosen
        gathers = _evenly(rest, contextual, [n - d for n, d in zip(alive, dominant, strict=True)])
        joins = rest & ~gathers
        index = torch.arange(rest.shape[1], device=rest.device).expand_as(rest)
        target = torch.where(joins, nearest_mark(keys, gathers, contextual), index)
        target = target.masked_fill(~tokens.valid, -1)

        carries = joins & (joins.cumsum(1) == 1) & _column(class_tokens, rest).bool()
        keep = self._in_order(carries, chosen, gathers, index, counts)
        plan = MergePlan(target, self._weights(target, joins, gathers), "sum")
        states = None
        if any(class_tokens):
            states = merge_states(tokens.hidden, keep, plan)
            stands = carries.gather(1, keep.clamp(min=0)) & (keep >= 0)
            states = torch.where(stands[..., None], state[0].to(states.dtype), states)
            plan = MergePlan(torch.where(carries, index, target), plan.weight, "sum")
        merge, ordered = plan if counts != alive else None, self.order == "official"
        return Selection(keep, merge, states, ordered=ordered, scores=scores)

    def _split(self, k: int, n: int, asked: int | float) -> tuple[int, int, int]:
        """Dominant patches, contextual tokens and class tokens among k kept of n."""
        if k == n:
            return n, 0, 0
        lead = int(self.cls and k > 0)
        contextual = min(keep_count(asked, k), k - lead)
        return k - contextual - lead, contextual, lead

    def _weights(self, target: Tensor, joins: Tensor, gathers: Tensor) -> Tensor:
        """[B, N] weight of each token in the sum that its target becomes."""
        into = target.clamp(min=0)
        flows = (joins & (target >= 0)).float()
        members = torch.zeros_like(flows).scatter_add_(1, into, flows).gather(1, into)
        if self.merge == "mean":
            return 1 / (members + 1)
        return torch.where(joins, 1 / members.clamp(min=1), 1.0)

    def _in_order(
        self, carries: Tensor, chosen: Tensor, gathers: Tensor, index: Tensor, counts: Sequence[int]
    ) -> Tensor:
        """[B, max(counts)] the tokens that stay, -1 padded."""
        N = index.shape[1]
        place = index
        if self.order == "official":
            place = index + N * torch.where(carries, 0, torch.where(chosen, 1, 2))
        place = place.masked_fill(~(carries | chosen | gathers), 3 * N)
        keep = place.argsort(dim=1, stable=True)[:, : max(counts, default=0)]
        return keep.masked_fill(place.gather(1, keep) == 3 * N, -1)


def nearest_mark(x: Tensor, marks: Tensor, counts: Sequence[int]) -> Tensor:
    """The marked token that each token is most like.

    Args:
        x: [B, N, D], any scale.
        marks: [B, N] bool.
        counts: marks of each row.

    Returns:
        [B, N] index of the mark with the highest cosine, ties to the lowest; -1 in a row without marks.
    """
    N = x.shape[1]
    if not any(counts):
        return torch.full_like(marks, -1, dtype=torch.long)
    index = torch.arange(N, device=x.device)
    among = torch.where(marks, index, N).sort(dim=1).values[:, : max(counts)]  # [B, C]
    unit = normalize(x, dim=-1)
    marked = unit.gather(1, among.clamp(max=N - 1)[..., None].expand(-1, -1, x.shape[2]))
    alike = (unit @ marked.mT).masked_fill(among[:, None] == N, -torch.inf)  # [B, N, C]
    found = among.gather(1, alike.argmax(2))
    return found.masked_fill(found == N, -1)


def _evenly(rest: Tensor, counts: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """[B, N] bool: `counts` of the `sizes` tokens of `rest`, every (size // count)-th from the first on."""
    steps = _column([max(1, n // max(c, 1)) for c, n in zip(counts, sizes, strict=True)], rest)
    rank = rest.cumsum(1) - 1
    return rest & (rank % steps == 0) & (rank // steps < _column(counts, rest))


def _marked(index: Tensor, width: int) -> Tensor:
    """[B, width] bool, true at the indices; -1 marks nothing."""
    marks = torch.zeros(len(index), width + 1, dtype=torch.bool, device=index.device)
    return marks.scatter_(1, index.masked_fill(index < 0, width), True)[:, :width]


def _column(numbers: Sequence[int], like: Tensor) -> Tensor:
    return on_device(tuple(numbers), like.device)[:, None]


def _count_or_share(key: str, value: object) -> int | float:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, float) and 0 <= value < 1:
        return value
    raise ValueError(f"{key} is {value!r}. Write a number of tokens, or a share of those kept in [0, 1).")
