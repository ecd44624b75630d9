"""DART: a few pivots, and the visual tokens that repeat them least."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.check_settings import check_flag, check_one_of, check_whole
from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.topk import top_k
from btp.ops.pivots import even_quota, least_alike, longest_keys, set_order

ORDERS = ("norm", "cpython")
COUNTS = ("exact", "quota")


class DART(Pruner):
    """Keeps the visual tokens with the longest keys as pivots; then these, and text tokens with the longest keys,
    take in turn the visual tokens least like them.

    Text pivots come from the text behind the first image. Where a prompt has fewer, the others take more. All visual
    tokens of a prompt are chosen from at once.

    Args:
        image_pivots: visual tokens that are kept and take others, 1 or more.
        text_pivots: text tokens that take visual ones, 0 or more.
        final_norm: compare the states behind the decoder's final norm, as the released code does and the paper does
            not say.
        visit_order: norm (visual pivots, then text, each by falling norm) | cpython (as the released code: the order
            of a Python set of the pivots' places, which is arbitrary but fixed; waits for the device, and knows only
            prompts whose visual tokens lie in one run).
        count: exact (as many as the stage keeps) | quota (the pivots, and for each of them the stage's count over the
            number of pivots, rounded down: 196 where the stage keeps 192, as the released code).

    Source: Wen et al. 2025, arXiv:2502.11494, and its released code. Its layer 2 is `llm.layer.2` here.
    """

    def __init__(self, *, image_pivots: int, text_pivots: int, final_norm: bool, visit_order: str, count: str) -> None:
        for key, number, least in (("image_pivots", image_pivots, 1), ("text_pivots", text_pivots, 0)):
            check_whole(f"pruner.method.{key}", number, f"an integer of {least} or more", least=least)
        check_flag("pruner.method.final_norm", final_norm)
        for key, value, known in (("visit_order", visit_order, ORDERS), ("count", count, COUNTS)):
            check_one_of(f"pruner.method.{key}", value, known)
        self.image_pivots, self.text_pivots = image_pivots, text_pivots
        self.form = "normed" if final_norm else None
        self.visit_order = visit_order
        self.adaptive = count == "quota"

    def check(self, schedule: Schedule) -> None:
        """Refuse a stage that has no decoder layer before it."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if stage.withdraws_all:
                continue
            if stage.site.tower != "llm" or stage.site.kind == "cache" or stage.site.layer < 1:
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner 'dart' finds its pivots by the keys of the decoder "
                    f"layer before the stage, and there is none. Set schedule.{i}.site to llm.layer.1 or later."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Keys of the layer before and states at the stage, of visual tokens and of text."""
        before = stage.site.previous_layer
        return (
            Signal("keys", before),
            Signal("keys", before, "text"),
            Signal("hidden", stage.site, None, self.form),
            Signal("hidden", stage.site, "text", self.form),
        )

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Pivots, then what is least like each."""
        keys, text_keys, states, text_states = self.needs(stage)
        counts = tokens.keep_counts(stage)
        if isinstance(stage.keep, float) and stage.keep == 1:  # a quota would fall short of all
            every = top_k(torch.zeros_like(tokens.valid, dtype=torch.float32), counts, tokens.valid)
            return Selection(every, counts=counts if self.adaptive else None)
        device, N = tokens.hidden.device, tokens.valid.shape[1]
        wanted = on_device(counts, device)
        image = longest_keys(signals[keys], tokens.valid, self.image_pivots)  # [B, Pi]
        if not self.adaptive:
            image = image.masked_fill(torch.arange(image.shape[1], device=device) >= wanted[:, None], -1)
        text = longest_keys(signals[text_keys], signals.rows_valid(text_keys), self.text_pivots)  # [B, Pt]
        pivots = torch.cat([_rows(signals[states], image), _rows(signals[text_states], text)], dim=1)
        real = torch.cat([image, text], dim=1) >= 0  # [B, P]
        if self.visit_order == "cpython":
            turn = _walk(tokens, image, text).to(device)
            pivots, real = _rows(pivots, turn), real.gather(1, turn)
        if self.adaptive:
            quota = real * (wanted // (self.image_pivots + self.text_pivots))[:, None]
        else:
            quota = even_quota(wanted - (image >= 0).sum(1), real)
        kept = torch.zeros(len(counts), N + 1, dtype=torch.bool, device=device)
        kept = kept.scatter(1, image.masked_fill(image < 0, N), True)[:, :N]
        kept = kept | least_alike(signals[states], tokens.valid & ~kept, pivots, quota)
        if not self.adaptive:
            return Selection(top_k(kept.float(), counts, tokens.valid))
        counts = tuple(kept.sum(1).tolist())
        return Selection(top_k(kept.float(), counts, tokens.valid), counts=counts)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """[B, K, D] rows of [B, N, D]; any row where the index is -1."""
    if x.shape[1] == 0:
        return x.new_zeros(*index.shape, x.shape[2])
    return x.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, x.shape[2]))


def _walk(tokens: Tokens, image: Tensor, text: Tensor) -> Tensor:
    """[B, P] on the host: the turns of visual and text pivots, as a Python set of their places has them.

    Raises:
        ValueError: the visual tokens of a row do not lie in one run, so that places of text are not known.
    """
    start = tokens.position - tokens.index  # [B, N], the same for all of one run
    first = start[:, :1]
    one_run = ((start == first) | ~tokens.valid).all()
    place = tokens.position.gather(1, image.clamp(min=0)).masked_fill(image < 0, -1)
    behind = (text + first + tokens.total[:, None]).masked_fill(text < 0, -1)
    flag = one_run.long().expand(len(place), 1)
    turns = []
    for one, *places in torch.cat([flag, place, behind], dim=1).tolist():  # one host sync
        if not one:
            raise ValueError(
                "pruner.method.visit_order is cpython, which reproduces code for prompts with one run of visual "
                "tokens, but this prompt has several. Set pruner.method.visit_order to norm."
            )
        real = [i for i, p in enumerate(places) if p >= 0]
        turn = [real[i] for i in set_order([places[i] for i in real])]
        turns.append(turn + [i for i, p in enumerate(places) if p < 0])
    return torch.tensor(turns, dtype=torch.long).view(len(place), -1)
