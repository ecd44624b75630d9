"""Cuts in state space models: a scan with gaps is the whole scan in which what is missing puts nothing in.

The whole length is walked here step by step; nothing of the engine, and no line of the mixers' own scans, is used.
"""

import pytest
import torch
import torch.nn.functional as F
from backbones import pictures, shared
from toys import Content, Count, Watch, plan

from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.models.plainmamba import paths
from btp.pruners.ssm import GAPS, SSM

TWO = plan(("vision.layer.1", 6), ("vision.layer.2", 4))


def walk(order, alive, row, gap, resting, rate, skip):
    """What a direction puts out at the rows that are alive, {row: [E]}.

    Args:
        order: the row of each step.
        alive: rows that put something in.
        row: step -> (size of the step, u, vector that puts in, vector that reads out).
    """
    state, found = torch.zeros_like(rate), {}
    there = [t for t, place in enumerate(order) if place in alive]
    mean = torch.stack([row(t)[0] for t in there]).mean(0)
    for t, place in enumerate(order):
        if place in alive:
            delta, u, put, read = row(t)
            state = torch.exp(delta[:, None] * rate) * state + (delta * u)[:, None] * put
            found[place] = state @ read + u * skip
            continue
        later, before = [s for s in there if s > t], [s for s in there if s < t]
        if not later or not before or gap == "none":
            continue
        size = {"own": later[0], "prev": before[-1]}.get(gap)
        delta = row(size)[0] if size is not None else mean if gap == "mean" else resting
        state = torch.exp(delta[:, None] * rate) * state
    return found


def vim_mixer(mixer, h, alive, gap, conv):
    """[T, C] of normed rows [T, C]; what is not alive may hold anything."""
    T = len(h)
    alive = sorted(alive)
    x, z = mixer.in_proj(h).chunk(2, -1)
    masked = torch.zeros(T, 1, dtype=h.dtype)
    masked[alive] = 1
    x, total = x * masked, 0
    for suffix, order in (("", list(range(T))), ("_b", list(range(T))[::-1])):
        taps, project, step = (getattr(mixer, f"{name}{suffix}") for name in ("conv1d", "x_proj", "dt_proj"))
        rows = [r for r in order if r in alive] if conv == "closed" else order
        u = F.silu(taps(x[rows].T[None])[0, :, : len(rows)].T)
        at = {r: u[i] for i, r in enumerate(rows)}

        def row(t, order=order, at=at, project=project, step=step):
            low, put, read = project(at[order[t]]).split([mixer.rank, mixer.states, mixer.states], -1)
            return F.softplus(step(low)), at[order[t]], put, read

        rate = -getattr(mixer, f"A{suffix}_log").exp()
        everyone = range(T) if gap == "masked" else alive
        y = walk(order, everyone, row, gap, F.softplus(step.bias), rate, getattr(mixer, f"D{suffix}"))
        total = total + torch.stack([y.get(r, torch.zeros_like(rate[:, 0])) for r in range(T)])
    return mixer.out_proj(total * F.silu(z) / 2)


def plain_mixer(mixer, h, alive, gap, conv, side=3):
    T, alive = len(h), sorted(alive)
    x, z = mixer.in_proj(h).chunk(2, -1)
    whole = torch.zeros_like(x)
    whole[alive] = x[alive]
    u = F.silu(mixer.conv2d(whole.T.view(1, -1, side, side))).flatten(2)[0].T
    low, put, read = mixer.x_proj(u).split([mixer.rank, mixer.states, mixer.states], -1)
    delta, total = F.softplus(mixer.dt_proj(low) + mixer.dt_proj.bias), 0
    for order, codes in zip(*(x.tolist() for x in paths(side, side)), strict=True):
        compact = [r for r in order if r in alive]
        own = {r: r for r in order} if mixer.permute_params else dict(zip(order, range(T), strict=True))
        if not mixer.permute_params and gap == "none":
            own = dict(zip(compact, alive, strict=True))

        def row(t, order=order, codes=codes, own=own):
            of = own[order[t]]
            return delta[of], u[order[t]], put[of] + mixer.direction_Bs[codes[t]], read[of]

        everyone = range(T) if gap == "masked" else alive
        rate = -mixer.A_log.exp()
        y = walk(order, everyone, row, gap, F.softplus(2 * mixer.dt_proj.bias), rate, mixer.D)
        total = total + torch.stack([y.get(r, torch.zeros_like(rate[:, 0])) for r in range(T)])
    return mixer.out_proj(total * F.silu(z))


def by_hand(host, pixels, alive, gap, conv):
    """Logits of one picture; `alive` [layer] are the rows that are left in each."""
    model = host.model
    if host.config.model_type == "btp_vim":
        x = model.patch_embed(pixels)[0]
        x = torch.cat([x[: model.middle], model.cls_token[0], x[model.middle :]]) + model.pos_embed[0]
        for layer, left in zip(model.layers, alive, strict=True):
            x = x + vim_mixer(layer.mixer, layer.norm(x), left, gap, conv)
        return model.head(model.norm_f(x)[model.middle])
    x = model.patch_embed(pixels)[0] + model.pos_embed[0]
    for layer, left in zip(model.layers, alive, strict=True):
        x = x + plain_mixer(layer.mamba, layer.norm(x), left, gap, conv)
        if layer.dw is not None:
            there = torch.zeros(len(x), 1, dtype=x.dtype)
            there[sorted(left)] = 1
            x = layer.dw((x * there).T.view(1, -1, 3, 3)).flatten(2)[0].T
    return model.head(model.norm1(x)[sorted(alive[-1])].mean(0))


def rows_alive(host, trace, b):
    """Rows of picture `b` that are left in each layer."""
    fixed = host.towers["vision"].fixed(9 + host.towers["vision"].fixed_count)
    patches = [r for r in range(9 + len(fixed)) if r not in fixed]
    found, left = [], set(range(9))
    for layer in range(4):
        for record in trace[0].stages:
            if record.site.layer == layer:
                left = set(record.kept[b])
        found.append({*fixed, *(patches[i] for i in left)})
    return found


CASES = [("vim", gap, conv) for gap in GAPS for conv in ("aligned", "closed") if (gap, conv) != ("masked", "closed")]
CASES += [("plainmamba_own", gap, "aligned") for gap in GAPS]
CASES += [("plainmamba", gap, "aligned") for gap in ("masked", "none")]


@pytest.mark.parametrize("pruner", [Content, Count])
@pytest.mark.parametrize(("family", "gap", "conv"), CASES)
def test_removing_equals_hiding(family, gap, conv, pruner):
    """Equal numbers and unequal ones; every reading of a gap."""
    host, batch = shared(family), 3
    inputs, method = pictures(host, batch), pruner()
    method.alignment = {"gap": gap, "conv": conv}
    with torch.no_grad(), attach(host, method, TWO) as trace:
        logits = host(**inputs).logits
    assert pruner is Content or len(set(trace[0].stages[0].after)) > 1
    with torch.no_grad():
        plain = host(**inputs).logits
        expected = torch.stack(
            [
                by_hand(host, inputs["pixel_values"][b : b + 1], rows_alive(host, trace, b), gap, conv)
                for b in range(batch)
            ]
        )
        everyone = by_hand(host, inputs["pixel_values"][:1], rows_alive(host, [_Uncut], 0), gap, conv)
    assert (logits - expected).abs().max() < 1e-9
    assert (everyone - plain[0]).abs().max() < 1e-9
    assert (logits - plain).abs().max() > 1e-5, "nothing was withdrawn, so nothing was proved"


class _Uncut:
    stages = ()


@pytest.mark.parametrize("family", ["vim", "plainmamba_own"])
def test_what_a_scan_puts_out(family):
    """Both branches together, each alone: their sum, and what enters the last projection."""
    host, inputs = shared(family), pictures(shared(family))
    asked = [Signal("scan", "vision.layer.2", rows) for rows in ("both", "forward", "backward")]

    class Late(Watch):
        def needs(self, stage):
            return asked if stage.site.layer == 3 else ()

    watch, entered = Late(), []
    mixer = host.layers[2].get_submodule(host.towers["vision"].directions.split(".")[0])
    hook = mixer.out_proj.register_forward_pre_hook(lambda module, args: entered.append(args[0].transpose(0, 1)))
    with torch.no_grad(), attach(host, watch, plan(("vision.layer.1", 6), ("vision.layer.3", 3))):
        host(**inputs)
    hook.remove()
    _, tokens, seen = watch.seen[-1]
    both, forward, backward = (seen[signal] for signal in asked)
    assert torch.allclose(both, forward + backward)
    times = 2 if family == "vim" else 1  # Vim takes the mean of its two branches
    expected = entered[0].gather(1, tokens.row[..., None].expand(-1, -1, both.shape[2])) * times
    assert torch.allclose(both, expected)
    assert not torch.allclose(forward, backward)


def test_what_the_method_asks_for():
    """The engine hands its reading of gaps to the layers, and closing them all is the plain model on what is left."""
    host, inputs = shared("vim"), pictures(shared("vim"))
    found = {}
    for gap, conv in (("own", "aligned"), ("none", "closed")):
        method = SSM(score="clip", branch="both", gap=gap, conv=conv)
        with torch.no_grad(), attach(host, method, plan(("vision.layer.1", 5))) as trace:
            found[gap] = host(**inputs).logits
            kept = trace[0].stages[0].kept
    assert (found["own"] - found["none"]).abs().max() > 1e-4
    assert [len(row) for row in kept] == [5, 5]


@pytest.mark.parametrize(
    ("gap", "conv", "message"),
    [
        ("own", "aligned", r"takes its step size from another patch than it visits.*gap=masked"),
        ("none", "closed", r"conv is closed, but PlainMamba convolves over the grid"),
    ],
)
def test_gaps_that_a_mixer_cannot_take(gap, conv, message):
    host, method = shared("plainmamba"), SSM(score="clip", branch="both", gap=gap, conv=conv)
    with pytest.raises(ValueError, match=message), torch.no_grad(), attach(host, method, TWO):
        host(**pictures(host))
