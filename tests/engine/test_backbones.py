"""Cuts in vision models without a language model: removing equals hiding, wherever their other rows stand."""

import pytest
import torch
from backbones import ATTENDING, MODELS, SCANNING, pictures, shared
from test_detach import fingerprint
from toys import Content, Count, Fold, Watch, plan
from unseen import gone_from, hiding

from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal
from btp.engine.attach import attach

SCHEDULES = {
    "layer 0": plan(("vision.layer.0", 5)),
    "mlp": plan(("vision.mlp.1", 4)),
    "last mlp": plan(("vision.mlp.3", 4)),
    "all": plan(("vision.layer.0", 7), ("vision.mlp.0", 6), ("vision.layer.2", 4), ("vision.mlp.2", 3)),
}


def outputs(host, inputs):
    """Logits, and boxes where there are."""
    with torch.no_grad():
        out = host(**inputs)
    return torch.cat([x.flatten(1) for x in (out.logits, getattr(out, "pred_boxes", None)) if x is not None], 1)


def compare(host, pruner, schedule, batch=2):
    """Prune, then hide."""
    inputs = pictures(host, batch)
    plain = outputs(host, inputs)
    with attach(host, pruner, schedule) as trace:
        pruned = outputs(host, inputs)
    rows = host.layout(inputs).visual.shape[1]
    with hiding(host, gone_from(host, trace, rows)):
        hid = outputs(host, inputs)
    assert (pruned - hid).abs().max() < 1e-10
    last = all(stage.site.kind == "mlp" and stage.site.layer == 3 for stage in schedule)
    if host.averaged is not None or not last:  # behind the last attention nothing but a mean reads them
        assert (pruned - plain).abs().max() > 1e-4, "nothing was withdrawn, so nothing was proved"
    return trace


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", ATTENDING)
def test_removing_equals_hiding(family, schedule):
    trace = compare(shared(family), Content(), SCHEDULES[schedule])
    assert len(trace) == 1
    assert all(stage.fired for stage in trace[0].stages)


@pytest.mark.parametrize("family", ["yolos_mid", "videomae"])
def test_eager_attention(family):
    compare(shared(family, "eager"), Content(), SCHEDULES["all"])
    compare(shared(family, "eager"), Count(), plan(("vision.layer.1", 0.5)), batch=4)


@pytest.mark.parametrize("family", ATTENDING)
def test_pictures_that_keep_unequal_numbers(family):
    """Padding stands in front of the detection tokens, is seen by nobody and is in no mean."""
    host, pruner = shared(family), Count()
    trace = compare(host, pruner, plan(("vision.layer.1", 0.5), ("vision.mlp.2", 0.4)), batch=4)
    assert len(set(trace[0].stages[0].after)) > 1
    inputs = pictures(host, 4)
    with attach(host, pruner, plan(("vision.layer.1", 0.5), ("vision.mlp.2", 0.4))):
        batch = outputs(host, inputs)
        alone = [outputs(host, {"pixel_values": inputs["pixel_values"][i : i + 1]}) for i in range(4)]
    assert (batch - torch.cat(alone)).abs().max() < 1e-10


@pytest.mark.parametrize("family", ATTENDING)
def test_another_order_of_tokens(family):
    """Positions were added at the input, so that the order of the patches changes nothing."""

    class Reversed(Content):
        def select(self, tokens, signals, stage):
            found = super().select(tokens, signals, stage)
            return type(found)(found.keep.flip(1), ordered=True)

    host, inputs = shared(family), pictures(shared(family))
    two = plan(("vision.layer.0", 6), ("vision.layer.2", 3), positions="renumber")
    with attach(host, Content(), two) as trace:
        straight = outputs(host, inputs)
    with attach(host, Reversed(), two) as other:
        turned = outputs(host, inputs)
    assert (straight - turned).abs().max() < 1e-10
    assert [row[::-1] for row in other[0].stages[0].kept] == trace[0].stages[0].kept


def signals(family):
    if family in SCANNING:
        return [Signal("scan", "vision.layer.0", rows) for rows in ("both", "forward", "backward")]
    more = [Signal(kind, "vision.layer.0") for kind in ("keys", "queries", "values")]
    return [*more, Signal("attention", "vision.layer.0", "mean")]


@pytest.mark.parametrize("family", MODELS)
def test_keeping_everything_changes_nothing(family):
    host, inputs = shared(family), pictures(shared(family))
    plain = outputs(host, inputs)
    watch = Watch(*signals(family), Signal("hidden", "vision.layer.1"), Signal("pixels", "vision.layer.0"))
    with attach(host, watch, plan(("vision.layer.1", 1.0), ("vision.layer.3", 1.0))) as trace:
        assert torch.equal(plain, outputs(host, inputs))
    with attach(host) as bare:
        assert torch.equal(plain, outputs(host, inputs))
    for call in (*trace, *bare):
        rows = call.vision[0][0]
        assert call.visual == [call.total] * 4
        assert call.text == (rows - call.total[0],) * 2
        assert call.tokens == [(rows, rows)] * 4


@pytest.mark.parametrize("family", MODELS)
def test_nothing_stays_behind(family):
    host, inputs = shared(family), pictures(shared(family))
    outputs(host, inputs)
    mark = fingerprint(host)
    with attach(host, Watch(*signals(family)), plan(("vision.layer.1", 3))):
        outputs(host, inputs)
        assert fingerprint(host) != mark
    assert fingerprint(host) == mark

    class Fails(Watch):
        def score(self, tokens, signals, stage):
            raise ArithmeticError("on purpose")

    with pytest.raises(ArithmeticError), attach(host, Fails(), plan(("vision.layer.1", 3))):
        outputs(host, inputs)
    assert fingerprint(host) == mark


@pytest.mark.parametrize("family", ATTENDING)
def test_signals_are_those_of_the_patches(family):
    """Attention, keys and states of patches alone, at a stage behind a cut."""
    host, inputs = shared(family), pictures(shared(family))
    whole = [Signal(kind, "vision.layer.2", "all") for kind in ("queries", "keys")]
    looked = [Signal("attention", "vision.layer.2", rows) for rows in ("mean", "fixed")]
    asked = (Signal("keys", "vision.layer.2"), *looked, *whole)

    class Late(Watch):
        def needs(self, stage):
            return self._signals if stage.site.layer == 3 else ()

    watch = Late(*asked, Signal("hidden", "vision.layer.2"))
    projections = []
    inside = dict(host.layers[2].named_modules())
    name = next(n for n in inside if n.endswith(("k_proj", "attention.key", "key")))
    hook = inside[name].register_forward_hook(lambda module, args, output: projections.append(output))
    with attach(host, watch, plan(("vision.layer.1", 6), ("vision.layer.3", 3))):
        outputs(host, inputs)
    hook.remove()
    _, tokens, seen = watch.seen[-1]
    heads = host.config.num_attention_heads
    every = projections[0].view(2, -1, heads, 32 // heads).transpose(1, 2)
    keys = every.gather(2, tokens.row[:, None, :, None].expand(-1, heads, -1, 8))
    assert torch.equal(seen[asked[0]], keys)
    assert seen[asked[1]].shape == (2, heads, 1, 6)
    fixed = host.towers["vision"].fixed(6 + host.towers["vision"].fixed_count)
    assert not set(tokens.row.flatten().tolist()) & set(fixed)
    total = seen[asked[1]].sum(-1)
    assert (total < 1 - 1e-4).all() if fixed else torch.allclose(total, torch.ones(()).double())
    queries, keys = (seen[signal] for signal in whole)
    probs = (queries @ keys.mT).softmax(-1)
    at = tokens.row[:, None].expand(-1, heads, -1)
    for signal, rows in zip(looked, (range(probs.shape[2]), fixed or range(probs.shape[2])), strict=True):
        assert torch.allclose(seen[signal][:, :, 0], probs[:, :, list(rows)].mean(2).gather(2, at))


@pytest.mark.parametrize("family", ["vit", "videomae", "dinov2", "yolos"])
def test_merged_patches_count_as_what_they_stand_for(family):
    """Merging bit-identical patches changes nothing where a patch weighs by its size, in attention and in the mean."""
    host = shared(family)
    grid = host.example(1)["pixel_values"]
    patch = host.config.patch_size
    one = torch.randn(*grid.shape[:-2], patch, patch, dtype=grid.dtype)
    if family == "videomae":
        one = one[:, :1].expand_as(one)
    same = one.repeat(*[1] * (grid.dim() - 2), grid.shape[-2] // patch, grid.shape[-1] // patch)

    class Half(Fold):
        def select(self, tokens, signals, stage):
            found = super().select(tokens, signals, stage)
            target = torch.where(found.merge.target < 0, found.keep[:, :1], found.merge.target)
            return type(found)(found.keep, type(found.merge)(target, found.merge.weight))

    base = host.vision.embeddings
    places = {n: p for n, p in base.named_parameters() if "position" in n}
    kept = {n: p.detach().clone() for n, p in places.items()}
    sincos = getattr(base, "position_embeddings", None)
    with torch.no_grad():
        for p in places.values():
            p.zero_()
        if not places:
            kept["table"], base.position_embeddings = sincos, torch.zeros_like(sincos)
        plain = outputs(host, {"pixel_values": same})
        found = {}
        for proportional in (True, False):
            with attach(host, Half(proportional=proportional), plan(("vision.layer.1", 3))):
                found[proportional] = outputs(host, {"pixel_values": same})
        for n, p in places.items():
            p.copy_(kept[n])
        if not places:
            base.position_embeddings = kept["table"]
    assert (found[True] - plain).abs().max() < 1e-7  # logs of sizes are float32
    if host.towers["vision"].fixed_count:
        assert (found[False] - plain).abs().max() > 1e-5


MESSAGES = {
    "a language model": (plan(("llm.layer.1", 3)), "has no language model: its stages stand at vision.layer.0 to"),
    "an output": (plan(("vision.output", 3)), r"has no projector: its stages .* Set schedule\.0\.site"),
    "a layer too many": (plan(("vision.layer.9", 3)), "the vision tower has 4 layers"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_stages_that_cannot_be(case):
    schedule, message = MESSAGES[case]
    with pytest.raises(ValueError, match=message), attach(shared("vit"), Content(), schedule):
        pass


SIGNALS = {
    "attention of a scan": (
        "vim",
        Signal("keys", "vision.layer.0"),
        "has no attention. Use a method that asks for scan",
    ),
    "a scan of attention": ("vit", Signal("scan", "vision.layer.0", "both"), "are no state space models"),
    "a language model": ("vit", Signal("keys", "llm.layer.0"), "has no language model"),
    "an output": ("vit", Signal("hidden", "vision.output"), "has no projector"),
    "a class token": ("videomae", Signal("attention", "vision.layer.0", "cls"), "has no class token"),
}


@pytest.mark.parametrize("case", SIGNALS)
def test_signals_that_cannot_be(case):
    family, signal, message = SIGNALS[case]
    site = "vision.layer.1"
    with pytest.raises(ValueError, match=message), attach(shared(family), Watch(signal), plan((site, 3))):
        pass


def test_messages_while_running():
    host = shared("vit")
    with attach(host, Content(), plan(("vision.layer.1", 3))), pytest.raises(ValueError, match="hold no pixel_values"):
        host()
    none = Schedule((Stage("vision.layer.1", 0),))
    clips = attach(shared("videomae"), None, none)
    with pytest.raises(ValueError, match="leaves the layers of a vision tower without class token"), clips:
        pass
    with attach(host, None, none) as trace:
        outputs(host, pictures(host))
    assert trace[0].visual == [(9, 9), (0, 0), (0, 0), (0, 0)]
    with pytest.raises(ValueError, match="scans are followed in vision towers"):
        Signal("scan", "llm.layer.1", "both")
