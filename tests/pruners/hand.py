"""Tokens and signals made by hand, for tests of pruners."""

from dataclasses import fields, replace
from pathlib import Path

import torch
import yaml

import btp
from btp.core.pruner import Tokens
from btp.core.schedule import Stage
from btp.core.signals import COUNTED, Signals
from btp.schedules.place import place_stages

CONF = Path(btp.__file__).parents[1] / "conf"
D, HEADS, TEXT, LEAD = 16, 4, 5, 1


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
        picture=torch.arange(B)[:, None].expand(B, N).masked_fill(~valid, -1),
        slot=index.masked_fill(~valid, -1),
        row=(index + LEAD).masked_fill(~valid, -1),
        host_total=tuple(total or alive),
        host_alive=alive,
    )


def video(frames, rows, columns, hidden=None, newlines=0, generator=0):
    """One video of random tokens, or of these [N][D], with newlines behind it."""
    n = frames * rows * columns
    at = torch.cartesian_prod(torch.arange(frames), torch.arange(rows), torch.arange(columns))
    coord = torch.cat([at.view(n, 3), torch.full((newlines, 3), -1)])
    seen = replace(tokens(n + newlines, generator=generator), coord=coord[None])
    return seen if hidden is None else replace(seen, hidden=torch.tensor(hidden)[None])


def signals(pruner, seen, stage, generator=1):
    """Random values for everything the pruner declares: LEAD rows in front of the tokens, TEXT rows behind."""
    random = torch.Generator().manual_seed(generator)
    declared = tuple(dict.fromkeys(pruner.needs(stage)))
    values = {s: _value(s, seen, random) for s in declared}
    valid = {"text": _text_valid(len(seen.valid)), "all": _all_valid(seen), "start": seen.valid}
    return Signals(values, {s: valid[s.rows] for s in declared if s.rows in valid and s.site.tower == "llm"})


def _text_valid(B):
    return torch.arange(TEXT) < torch.arange(TEXT, TEXT - B, -1).clamp(min=1)[:, None]


def _all_valid(seen):
    lead = torch.ones(len(seen.valid), LEAD, dtype=torch.bool)
    return torch.cat([lead, seen.valid, _text_valid(len(seen.valid))], dim=1)


def _value(signal, seen, random):
    B, N, width = seen.hidden.shape
    behind = TEXT if signal.site.tower == "llm" else 0
    rows = {None: N, "start": N, "text": TEXT, "all": LEAD + N + behind}.get(signal.rows, 1)
    heads = HEADS if signal.kind in ("attention", "preview", "queries") else 2
    if signal.site.tower == "vision":
        heads = HEADS
    if signal.site.tower == "vision" and signal.kind in ("queries", "keys"):  # zeros behind a picture's last patch
        lead = torch.ones(B, LEAD if signal.rows == "all" else 0, dtype=torch.bool)
        real = torch.cat([lead, seen.valid], dim=1)
        return torch.randn(B, heads, rows, 8, generator=random) * real[:, None, :, None]
    if signal.kind in ("attention", "preview"):
        raw = torch.randn(B, heads, rows, N, generator=random)
        return raw.softmax(-1) / 2 if signal.form == "probs" else raw
    if signal.kind == "change":
        return torch.stack([torch.rand(B, rows, generator=random), 2 * torch.rand(B, rows, generator=random) - 1])
    shape = {
        "hidden": (B, rows, width),
        "queries": (B, heads, rows, 8),
        "keys": (B, heads, rows, 8),
        "values": (B, heads, rows, 8),
        "rotary": (2, B, rows, 8),
        "update": (2, B, rows, width),
        "scan": (B, N, 2 * width),
        "pixels": (B, 3, 64, 64),
        "projected": (0, 4, width),  # the tokens are of pictures
    }[signal.kind]
    return torch.randn(shape, generator=random)


def row(b, seen, values):
    """Row `b` of tokens and signals, alone and without its padding."""
    n = int(seen.valid[b].sum())
    aside = ("total", "text", "text_valid", "picture", "carried")
    aside += ("host_total", "host_alive", "host_grid", "host_keep")
    cut = {f.name: getattr(seen, f.name)[b : b + 1, :n] for f in fields(Tokens) if f.name not in aside}
    alone = replace(
        seen,
        **cut,
        picture=torch.zeros(1, n, dtype=torch.long),
        total=seen.total[b : b + 1],
        host_total=None,
        host_alive=None,
    )
    real = _all_valid(seen)[b]

    def narrow(signal, value):
        if signal.kind == "projected":
            return value
        batch = 1 if signal.kind in ("update", "change", "rotary") else 0
        value = value.narrow(batch, b, 1)
        if signal.kind in ("attention", "preview"):
            return value[..., :n]
        if signal.kind == "pixels":
            return value
        axis = 1 if signal.kind in ("hidden", "scan") else 2
        if signal.rows == "all":
            kept = real[: value.shape[axis]].nonzero().flatten()
            return value.index_select(axis, kept)
        over_tokens = signal.kind == "scan" or signal.rows in (None, "start")
        return value.narrow(axis, 0, n) if over_tokens else value

    valid = {s: values.rows_valid(s)[b : b + 1] for s in values if s.rows in COUNTED and s.site.tower == "llm"}
    valid = {s: v if s.rows == "text" else v[:, v[0]] for s, v in valid.items()}
    return alone, Signals({s: narrow(s, v) for s, v in values.items()}, valid)


def stage(site="llm.layer.2", keep=0.5, **settings):
    return Stage(site, keep, settings=settings)


def published(name, setting, model="llava15", layers=32):
    """Stages of a method's published schedule, at the sites of a model of this depth."""
    table = yaml.safe_load((CONF / "pruner" / f"{name}.yaml").read_text())["published"][model]
    return place_stages({str(k): v for k, v in table.items()}[setting]["stages"], layers)
