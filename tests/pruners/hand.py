"""Tokens and signals made by hand, for tests of pruners."""

from dataclasses import fields, replace

import torch

from btp.core.pruner import Tokens
from btp.core.schedule import Stage
from btp.core.signals import Signals

D, HEADS, TEXT = 16, 3, 5


def grid(n, columns=4):
    """[n, 3] coordinates row by row."""
    at = torch.arange(n)
    return torch.stack([torch.zeros_like(at), at // columns, at % columns], dim=1)


def tokens(*alive, total=None, generator=0):
    """Random tokens with these counts per row, on grids of four columns."""
    N, B = max(alive), len(alive)
    index = torch.arange(N).expand(B, N)
    valid = index < torch.tensor(alive)[:, None]
    random = torch.Generator().manual_seed(generator)
    return Tokens(
        hidden=torch.randn(B, N, D, generator=random),
        position=index + 3,
        coord=grid(N).expand(B, N, 3).masked_fill(~valid[..., None], -1),
        image=torch.zeros_like(index),
        size=torch.ones_like(index),
        valid=valid,
        total=torch.tensor(total or alive),
        index=index,
        host_total=tuple(total or alive),
        host_alive=alive,
    )


def signals(pruner, seen, stage, generator=1):
    """Random values for everything the pruner declares."""
    B, N, width = seen.hidden.shape
    random = torch.Generator().manual_seed(generator)
    shapes = {
        "attention": lambda s: (B, HEADS, 1 if s.rows == "last" else TEXT, N),
        "hidden": lambda s: (B, TEXT if s.rows == "text" else N, width),
        "keys": lambda s: (B, 2, TEXT if s.rows == "text" else N, 8),
        "update": lambda s: (2, B, N, width),
    }
    declared = pruner.needs(stage)
    values = {s: torch.randn(shapes[s.kind](s), generator=random) for s in declared}
    real = torch.arange(TEXT) < torch.arange(TEXT, TEXT - B, -1).clamp(min=1)[:, None]
    return Signals(values, {s: real for s in declared if s.rows == "text"})


def row(b, seen, values):
    """Row `b` of tokens and signals, alone and without its padding."""
    n = int(seen.valid[b].sum())
    cut = {
        f.name: getattr(seen, f.name)[b : b + 1, :n]
        for f in fields(Tokens)
        if f.name not in ("total", "text", "text_valid", "host_total", "host_alive")
    }
    alone = replace(seen, **cut, total=seen.total[b : b + 1], host_total=None, host_alive=None)

    def narrow(signal, value):
        if signal.kind == "update":
            return value[:, b : b + 1, :n]
        value = value[b : b + 1]
        if signal.kind in ("attention", "preview"):
            return value[..., :n]
        return value if signal.rows == "text" else value[..., :n, :]

    return alone, Signals(
        {s: narrow(s, v) for s, v in values.items()},
        {s: values.rows_valid(s)[b : b + 1] for s in values if s.rows == "text"},
    )


def stage(site="llm.layer.2", keep=0.5, **settings):
    return Stage(site, keep, settings=settings)
