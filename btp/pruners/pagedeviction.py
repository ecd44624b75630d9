"""PagedEviction: drops single slots behind the prompt and whole pages in decode, by the norms of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.cache_pruner import SCORE, CachePruner
from btp.core.check_settings import check_one_of
from btp.core.keep import on_device
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal, Signals
from btp.core.slots import Slots, SlotSelection
from btp.core.topk import keep_best
from btp.ops.slots import page_of, page_sums

EPSILON = 1e-8
SCORES = ("v_over_k", "value", "inv_key", "v_plus_k")
HEADS = ("mean", "concat", "each")


class PagedEviction(CachePruner):
    """A slot's score is the norm of its value over that of its key; it is made once, when the slot is written.

    Behind the prompt the best slots stay before they are cut into pages of `page` slots. In decode, whenever the newest
    page is full and the cache is over its budget, the page with the lowest mean score leaves. A budget is rounded down
    to whole pages.

    Source: Chitty-Venkata et al. 2025, arXiv:2509.04377, by readers' notes; protection, heads and the partial page are
    not in them. The first author's code protects, and scores by the norm of values.

    Args:
        score: v_over_k | value | inv_key | v_plus_k.
        heads: mean | concat | each: the mean of the heads' scores, one norm over all heads' vectors, or every head by
            itself, with pages of its own.
        page: slots of a page.
        candidates: all | how many of the oldest pages (behind the first, where that is protected) may leave in decode.
        protect: the first page and the newest full one never leave, and behind the prompt as many slots stay beyond the
            budget as do not fill a page, so that pages end where the sequence's do.
    """

    adaptive = True
    accumulates = True

    def __init__(self, *, score: str, heads: str, page: int, candidates: str | int, protect: bool) -> None:
        for key, given, known in (("score", score, SCORES), ("heads", heads, HEADS)):
            check_one_of(f"pruner.method.{key}", given, known)
        for key, given in (("page", page), ("candidates", candidates)):
            if given != "all" and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
                raise ValueError(f"pruner.method.{key} is {given!r}. Write a number, 1 or more.")
        if page == "all" or not isinstance(protect, bool):
            raise ValueError(
                f"pruner.method.page is {page!r} and protect {protect!r}. Write a number, and true or false."
            )
        self.how, self.heads, self.page, self.candidates, self.protect = score, heads, page, candidates, protect

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Keys and values."""
        return Signal("keys", stage.site), Signal("values", stage.site)

    def evict(self, slots: Slots, signals: Signals, stage: Stage) -> SlotSelection:
        """Slots behind the prompt, a page of each row in decode, and the scores of all."""
        keys, values = (signals[signal][:, :, -slots.new :] for signal in self.needs(stage))
        fresh, before = self.score(keys, values), slots.carried.get(SCORE)
        score = fresh if before is None else torch.cat([before[:, : fresh.shape[1], : -slots.new], fresh], dim=2)
        carried = {SCORE: score}
        if not slots.due:
            return SlotSelection(None, slots.host_alive, carried, score)
        budget = self._budget(slots, stage)
        keep, counts = self._of_prompt(slots, score, budget) if slots.prefill else self._page(slots, score, budget)
        return SlotSelection(keep, counts, carried, score)

    def score(self, keys: Tensor, values: Tensor) -> Tensor:
        """[B, Hkv or 1, n] scores of keys and values [B, Hkv, n, d], higher = keep."""
        if self.heads == "concat":
            keys, values = (x.transpose(1, 2).flatten(2)[:, None] for x in (keys, values))
        k, v = (x.float().norm(dim=-1) for x in (keys, values))
        if self.heads == "mean" and self.how != "v_over_k":  # of the norms; only ratios are made head by head
            k, v = (x.mean(1, keepdim=True) for x in (k, v))
        made = {
            "v_over_k": lambda: v / (k + EPSILON),
            "value": lambda: v,
            "inv_key": lambda: 1.0 / (k + EPSILON),
            "v_plus_k": lambda: v + k,
        }[self.how]()
        return made.mean(1, keepdim=True) if self.heads == "mean" else made

    def check(self, schedule: Schedule) -> None:
        """A budget holds the pages that never leave, and one more."""
        super().check(schedule)
        for stage in schedule:
            if isinstance(stage.keep, int) and not stage.withdraws_all:
                self._whole(stage.keep, stage)

    def _budget(self, slots: Slots, stage: Stage) -> tuple[int, ...]:
        return tuple(self._whole(count, stage) for count in slots.budget(stage))

    def _whole(self, count: int, stage: Stage) -> int:
        """A budget in whole pages."""
        least = (3 if self.protect else 1) * self.page
        if count < least:
            raise ValueError(
                f"pruner {self.name!r} keeps {count} slots at {stage.site}, but needs {least}: pages have {self.page} "
                f"slots{', and the first and the newest never leave' if self.protect else ''}. Raise the stage's keep "
                "(or the budget), or lower pruner.method.page."
            )
        return count // self.page * self.page

    def _of_prompt(self, slots: Slots, score: Tensor, budget: tuple[int, ...]) -> tuple[Tensor | None, tuple[int, ...]]:
        alive, page = slots.host_alive, self.page
        rest = tuple(n % page if self.protect else 0 for n in alive)
        counts = tuple(min(n, b + r) if n > b else n for n, b, r in zip(alive, budget, rest, strict=True))
        if counts == alive:
            return None, counts
        if self.protect:
            rank = slots.valid[:, : score.shape[1]].cumsum(2) - 1
            last = on_device([n - page - r for n, r in zip(alive, rest, strict=True)], rank.device)
            score = score.masked_fill((rank < page) | (rank >= last[:, None, None]), torch.inf)
        return keep_best(score, counts, slots.valid, alive), counts

    def _page(self, slots: Slots, score: Tensor, budget: tuple[int, ...]) -> tuple[Tensor | None, tuple[int, ...]]:
        alive, page, heads = slots.host_alive, self.page, score.shape[1]
        full = [n % page == 0 and n > b for n, b in zip(alive, budget, strict=True)]
        if not any(full):
            return None, alive
        counts = tuple(n - page * fills for n, fills in zip(alive, full, strict=True))
        valid = slots.valid[:, :heads]
        victim = self.victim(page_sums(score, valid, page) / page, [n // page for n in alive])
        victim = victim.masked_fill(~on_device(full, victim.device)[:, None], -1)
        stay = valid & (page_of(valid, page) != victim[..., None])
        n = stay.shape[2]
        index = torch.arange(n, device=stay.device).masked_fill(~stay, n).sort(2).values[..., : max(counts)]
        return index.masked_fill(index == n, -1), counts

    def victim(self, means: Tensor, pages: list[int]) -> Tensor:
        """[B, H] number of the page that leaves.

        Args:
            means: [B, H, P] mean scores of pages.
            pages: full pages of each row.
        """
        number = torch.arange(means.shape[2], device=means.device)
        ends = on_device(pages, means.device)[:, None, None]
        first = int(self.protect)
        may = (number >= first) & (number < ends - first)
        if self.candidates != "all":
            may = may & (number < first + int(self.candidates))
        return means.masked_fill(~may, torch.inf).argmin(2)
