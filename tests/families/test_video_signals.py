"""Signals of the vision tower on videos whose frames are pooled by interpolation, held against the tower's own, blended
plainly; and methods that choose by them: removing equals hiding, merging equals features that were merged by hand.
"""

import copy
import functools

import pytest
import torch
from oracle import steps, withdrawn
from test_detach import fingerprint
from toys import Content, Watch, plan
from transformers import LlavaOnevisionForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.models.families.llava_onevision import LlavaOneVision
from btp.models.video.clip_features import encode_clips
from btp.pruners.aim import AIM
from btp.pruners.fastervlm import FasterVLM
from btp.pruners.fastvid import FastVID
from btp.pruners.hiprune import HiPrune
from btp.pruners.holitom import HoliTom
from btp.pruners.holov import HoloV
from btp.pruners.patch_attention import PatchAttention
from btp.pruners.prumerge import PruMerge
from btp.pruners.scope import Scope
from btp.pruners.tome import ToMe
from btp.pruners.vflowopt import VFlowOpt
from btp.pruners.visionzip import VisionZip
from btp.pruners.vispruner import VisPruner
from btp.runner.calibration.reference import Watch as Watching
from btp.runner.calibration.reference import reference
from families import kit
from families.hiding import hiding
from families.test_clips import Frames, prompts

NAME = "llava_onevision"
RECEIVED, EARLY = (Signal("attention", site, "mean") for site in ("vision.feature", "vision.layer.0"))
KEYS, QUERIES = Signal("keys", "vision.feature"), Signal("queries", "vision.feature", "all")
OUT = Signal("hidden", "vision.output")
ALL = (RECEIVED, EARLY, KEYS, QUERIES, OUT)
# two rows of unequal videos, one of two videos, one of text: the short ones are padded on the left
ROWS = [
    ([], [Frames(5, 10), Frames(2, 20)], "what is left of the blue circle"),
    ([], [Frames(3, 40)], "yes or no?"),
    ([], [], "a single word"),
]
EACH = 4  # tokens of a frame of 3 x 3 patches
TOTALS = (5 * EACH + 1 + 2 * EACH + 1, 3 * EACH + 1, 0)

VFLOWOPT = VFlowOpt(
    t=1.0, alpha=0.0, m=2, rows="mean", entropy="paper", mean=[0.5] * 3, std=[0.5] * 3,
    recycle=False, recycle_several=False, exact=True,
)  # fmt: skip
OBJECT = {"object": "vision.layer.0"}
REMOVING = {
    "fastervlm": (FasterVLM(heads="mean", score="received"), {}),
    "vispruner": (VisPruner(important=0.5, step=2, score="received"), {}),
    "hiprune": (HiPrune(alpha=0.3), OBJECT),
    "scope": (Scope(alpha=1.0, combine="multiply", score="received"), {}),
    "holov": (HoloV(crops=4, beta=0.09, rank="attention", scale="crop", score="received"), {}),
    "vflowopt": (VFLOWOPT, {}),
}
MERGING = {
    "visionzip": functools.partial(VisionZip, score="received", contextual=0.3, cls=False, merge="official"),
    "aim": functools.partial(AIM, metric="vision.feature", mean="official", tau=0.1, iterations=5, damping=0.0),
    "tome": functools.partial(ToMe, class_token=False, proportional_attention=False),
}
PRUMERGE = {"layer": "vision.feature", "count": "exact", "spatial": 0.0, "neighbours": 3, "order": "raster"}
FASTVID = {"segments": 2, "threshold": 0.9, "salient": 0.6, "every": 2, "neighbours": 2, "share": 0.6}
FRAMED = {
    "fastvid": FastVID(**FASTVID, salience="received"),
    "holitom": HoliTom(threshold=0.3, window=99, salience="received"),
    "prumerge": PruMerge(score="received", **PRUMERGE, merge="mean", extra=True),
}


@functools.cache
def sided(side):
    """A tiny model of frames of side x side patches, whose attention can be read off."""
    config = copy.deepcopy(kit.loaded(NAME).host.config)
    config.vision_config.image_size = side * config.vision_config.patch_size
    torch.manual_seed(side)
    model = LlavaOnevisionForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.12)
    model.generation_config.eos_token_id = None
    return LlavaOneVision(model)


def blended(x, side):
    """[F, n, ...] of [F, side * side, ...] by the rule of the family: half as many rows and columns, rounded up."""
    grid = x.flatten(2).unflatten(1, (side, side)).permute(0, 3, 1, 2)
    half = (side + 1) // 2
    found = torch.nn.functional.interpolate(grid, size=(half, half), mode="bilinear")
    return found.flatten(2).transpose(1, 2).unflatten(2, x.shape[2:])


def own(lvlm, inputs, at):
    """Attention [F, H, T, T], keys, queries [F, H, T, d] and features [F, T, C] as a layer makes them itself."""
    got, layer = {}, lvlm.towers["vision"].layers[at]
    block = layer.self_attn
    hooks = [
        block.register_forward_hook(lambda module, args, output: got.update(probs=output[1])),
        block.k_proj.register_forward_hook(lambda module, args, output: got.update(keys=output)),
        block.q_proj.register_forward_hook(lambda module, args, output: got.update(queries=output * block.scale)),
        layer.register_forward_hook(
            lambda module, args, output: got.update(out=output[0] if isinstance(output, tuple) else output)
        ),
    ]
    with torch.no_grad():
        lvlm.model.get_video_features(pixel_values_videos=inputs["pixel_values_videos"])
    for hook in hooks:
        hook.remove()
    heads = got["probs"].shape[1]
    return {k: x.unflatten(2, (heads, -1)).transpose(1, 2) if k in ("keys", "queries") else x for k, x in got.items()}


@pytest.mark.parametrize("side", [2, 3, 4, 5, 9])
def test_signals_are_blended_as_features_are(side):
    """Two rows of one video each, frames of even and odd grids; nothing else changes, and nothing stays behind."""
    lvlm, half = sided(side), (side + 1) // 2
    inputs = lvlm.example(2, 4, 1, 1, frames=3)
    pruner, plain, before = Watch(*ALL), steps(lvlm, inputs), fingerprint(lvlm)
    with attach(lvlm, pruner, plan(("llm.input", 1.0))):
        same = steps(lvlm, inputs)
    assert torch.equal(plain[1], same[1])
    assert fingerprint(lvlm) == before
    _, tokens, seen = pruner.seen[0]
    feature = lvlm.towers["vision"].feature
    for signal, at in ((RECEIVED, feature), (EARLY, 0)):
        received = own(lvlm, inputs, at)["probs"].mean(2)  # [F, H, T]
        wanted = blended(received.transpose(1, 2), side).transpose(1, 2)
        torch.testing.assert_close(seen[signal][:, :, 0], wanted, atol=1e-6, rtol=1e-5)
    mine = own(lvlm, inputs, feature)
    for signal, name in ((KEYS, "keys"), (QUERIES, "queries")):
        wanted = blended(mine[name].transpose(1, 2), side).transpose(1, 2)
        torch.testing.assert_close(seen[signal], wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(seen[OUT], blended(mine["out"], side), atol=1e-6, rtol=1e-5)
    assert seen[RECEIVED].shape[-1] == seen[KEYS].shape[2] == seen[OUT].shape[1] == half**2
    assert bool(seen.rows_valid(QUERIES).all())
    _check_places(tokens, half, [3, 3])


def _check_places(tokens, half, frames):
    """Each token knows its frame, counted over the batch, and its place there; newlines know neither."""
    number = 0
    for b, count in enumerate(frames):
        mine = tokens.valid[b] & (tokens.coord[b, :, 1] >= 0)
        frame, row, column = tokens.coord[b, mine].unbind(1)
        image = tokens.image[b, mine]
        starts = torch.cat([torch.zeros(1), ((frame[1:] != frame[:-1]) | (image[1:] != image[:-1])).cumsum(0)])
        assert torch.equal(tokens.picture[b, mine], number + starts.long()[: len(frame)])
        assert torch.equal(tokens.slot[b, mine], row * half + column)
        assert (tokens.picture[b, ~mine] == -1).all()
        assert (tokens.slot[b, ~mine] == -1).all()
        number += count


def run(method, schedule, rows=ROWS, chunk=2):
    """Tokens and logits of a batch whose videos are encoded some frames at a time, the trace, and the inputs."""
    host = kit.loaded(NAME)
    inputs, clips = prompts(NAME, rows)
    with attach(host.host, method, schedule) as trace:
        ready = encode_clips(host.host, host.processor, clips, chunk) if clips else {}
        found = steps(host.host, inputs | ready)
    return found, trace, inputs


def test_chunks_show_what_one_pass_shows():
    """Videos of 5, 2 and 3 frames, one, two, or all frames at a time; no more are opened together."""
    found = []
    for chunk in (1, 2, 16):
        watch = Watch(*ALL)
        rows = [([], [Frames(len(c), c.seeds[0]) for c in clips], question) for _, clips, question in ROWS]
        run(watch, plan(("llm.input", 1.0)), rows, chunk)
        assert max(clip.most for _, clips, _ in rows for clip in clips) == min(chunk, 5)
        _, tokens, seen = watch.seen[0]
        _check_places(tokens, 2, [7, 3, 0])
        found.append(seen)
    assert found[0][RECEIVED].shape[0] == 10
    for signal in ALL:
        for other in found[1:]:
            torch.testing.assert_close(other[signal], found[0][signal], atol=1e-6, rtol=1e-5)


def test_beams_repeat_their_frames():
    """Each beam's tokens show their own row's video."""
    lvlm, plain, beams = sided(3), Watch(RECEIVED), Watch(RECEIVED)
    inputs = lvlm.example(2, 4, 1, 1, frames=3)
    for watch, number in ((plain, 1), (beams, 2)):
        with attach(lvlm, watch, plan(("llm.input", 1.0))):
            lvlm.generate(**inputs, num_beams=number, do_sample=False, max_new_tokens=2)
    (_, tokens, seen), (_, one, alone) = beams.seen[0], plain.seen[0]
    assert tokens.picture.shape == (4, 13)
    for b in range(4):
        mine = seen[RECEIVED][tokens.picture[b, :12], :, 0, tokens.slot[b, :12]]
        assert torch.equal(mine, alone[RECEIVED][one.picture[b // 2, :12], :, 0, one.slot[b // 2, :12]])


@pytest.mark.parametrize("method", REMOVING)
def test_removing_equals_hiding(method):
    """Rows of unequal videos padded on the left, prefill and decode; a row in a batch keeps what it keeps alone."""
    pruner, settings = REMOVING[method]
    schedule = Schedule((Stage("llm.input", 0.5, settings=settings),))
    (tokens, logits), trace, inputs = run(pruner, schedule)
    assert trace[0].total == TOTALS
    assert trace[0].stages[0].after == tuple(round(n / 2) for n in TOTALS)
    lvlm = kit.loaded(NAME).host
    gone = withdrawn(inputs, lvlm.visual_mask(inputs), trace[0])
    with hiding(lvlm, inputs, gone):
        (hidden_tokens, hidden_logits), _, _ = run(None, Schedule())
    torch.testing.assert_close(logits, hidden_logits, atol=3e-6, rtol=3e-6)
    assert torch.equal(tokens, hidden_tokens)
    for b in (0, 1):
        alone = run(pruner, schedule, ROWS[b : b + 1], chunk=16)[1]
        assert alone[0].stages[0].kept[0] == trace[0].stages[0].kept[b]


def test_attention_chooses():
    """FasterVLM keeps the tokens of a video with most attention, whatever their frame; the newline goes."""
    (_, trace, _), watch = run(FasterVLM(heads="mean", score="received"), plan(("llm.input", 5))), Watch(RECEIVED)
    run(watch, plan(("llm.input", 1.0)))
    _, tokens, seen = watch.seen[0]
    for b in (0, 1):
        score = seen[RECEIVED][:, :, 0].mean(1)[tokens.picture[b], tokens.slot[b]]
        score = score.masked_fill(tokens.picture[b] < 0, -1)
        assert trace[0].stages[0].kept[b] == sorted(score.topk(5).indices.tolist())


def record(method):
    """A pruner that remembers what it decided, and of which tokens."""

    class Recorded(method.func):
        made = None

        @property
        def name(self):
            return method.func.__name__.lower()

        def select(self, tokens, signals, stage):
            found = super().select(tokens, signals, stage)
            self.made = (tokens, found)
            return found

    return Recorded(**method.keywords, order="raster")


@pytest.mark.parametrize("method", MERGING)
def test_merging_is_merging_by_hand(method):
    """The rest of the model answers as if it had been given the merged features: prefill, decode, unequal videos."""
    pruner = record(MERGING[method])
    (tokens, logits), trace, inputs = run(pruner, plan(("llm.input", 0.6), positions="renumber"))
    shown, found = pruner.made
    lvlm, video = kit.loaded(NAME).host, kit.loaded(NAME).processor.video_token_id
    counts, rows, features = trace[0].stages[0].after, [], []
    assert all(0 < k < n for k, n in zip(counts[:2], TOTALS[:2], strict=True))
    for b, count in enumerate(counts):
        weight, target = found.merge.weight[b], found.merge.target[b]
        for k in found.keep[b, :count].tolist():
            members = (target == k).nonzero().flatten()
            share = weight[members] * (shown.size[b, members] if found.merge.combine == "mean" else 1)
            share = share / share.sum() if found.merge.combine == "mean" else share
            features.append((shown.hidden[b, members] * share[:, None]).sum(0))
        ids = inputs["input_ids"][b][inputs["attention_mask"][b].bool()]
        places = (ids == video).nonzero().flatten().tolist()
        kept = set(trace[0].stages[0].kept[b])
        gone = [place for i, place in enumerate(places) if i not in kept]
        rows.append(torch.tensor([x for i, x in enumerate(ids.tolist()) if i not in gone]))
    most = max(map(len, rows))
    ids = torch.stack([torch.cat([torch.zeros(most - len(row)).long(), row]) for row in rows])
    mask = torch.stack([torch.cat([torch.zeros(most - len(row)), torch.ones(len(row))]).long() for row in rows])
    plain = {"mm_encoder_outputs": {"video": BaseModelOutputWithPooling(pooler_output=torch.stack(features)[None])}}
    again, others = steps(lvlm, {"input_ids": ids, "attention_mask": mask} | plain)
    torch.testing.assert_close(logits, others, atol=2e-5, rtol=2e-5)
    assert torch.equal(tokens[:, -3:], again[:, -3:])


@pytest.mark.parametrize("method", FRAMED)
def test_a_row_in_a_batch_merges_as_alone(method):
    """FastVID and HoliTom by the tower's attention, as published, and PruMerge; of the first two newlines stay."""
    schedule = plan(("llm.input", 0.5))
    (_, logits), trace, _ = run(FRAMED[method], schedule)
    kept, sizes = trace[0].stages[0].kept, trace[0].stages[0].sizes
    assert torch.isfinite(logits).all()
    if method != "prumerge":
        assert {20, 29} <= set(kept[0])
        assert 12 in kept[1]
    for b in (0, 1):
        assert 0 < len(kept[b]) <= int(sizes[b].sum()) <= TOTALS[b]
        (_, alone), trace_alone, _ = run(FRAMED[method], schedule, ROWS[b : b + 1])
        assert trace_alone[0].stages[0].kept[0] == kept[b]
        torch.testing.assert_close(logits[:, b : b + 1], alone, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("method", ["fastvid", "holitom"])
def test_salience_matters(method):
    """Whatever the tower looks at least, in place of most: other tokens stay."""

    class Least(PatchAttention):
        def of(self, tokens, signals, stage):
            assert signals[RECEIVED].shape == (10, 2, 1, EACH)
            found = super().of(tokens, signals, stage)
            return found if bool((tokens.coord[..., 1] < 0).all()) else -found.clamp(min=0)

    turned = copy.copy(FRAMED[method])
    turned.attention = Least("received")
    found = [run(pruner, plan(("llm.input", 0.5)))[1][0].stages[0].kept for pruner in (FRAMED[method], turned)]
    assert found[0] != found[1]


def test_what_cannot_be_put_together_is_refused():
    """Before the tower runs, with what can be: cuts in the tower, values, pixels, a class token."""
    lvlm, ran = kit.loaded(NAME).host, []
    hook = lvlm.towers["vision"].layers[0].register_forward_hook(lambda *_: ran.append(1))
    cut = r"schedule\.0\.site is vision\.\S+: the stage works .* interpolation of a video's frames joins several"
    for site in ("vision.output", "vision.layer.1", "vision.mlp.0"):
        with pytest.raises(ValueError, match=rf"{cut}.*pruner\.schedule\.0\.site=llm\.input"):
            run(Content(), plan((site, 3)))
    can = r"pruner 'watch' asks for {}.*What can be put together for these: attention \(rows mean, form probs\)"
    for signal in (
        Signal("values", "vision.feature"),
        Signal("pixels", "vision.output"),
        Signal("hidden", "vision.layer.1"),
    ):
        with pytest.raises(ValueError, match=can.format(signal.kind)):
            run(Watch(signal), plan(("llm.input", 3)))
    hook.remove()
    assert not ran
    for pruner in (FasterVLM(heads="mean", score="cls"), VisPruner(important=0.5, step=2, score="cls")):
        with pytest.raises(ValueError, match=r"has no class token.*score=received"):
            run(pruner, plan(("llm.input", 3)))
    with pytest.raises(ValueError, match=r"has no class token that could be kept. Set pruner\.method\.cls=false"):
        run(
            VisionZip(score="received", contextual=1, cls=True, merge="mean", order="raster"),
            plan(("vision.output", 3)),
        )


def test_videos_that_were_not_seen():
    """Features from outside the attach, a second prompt with the same ones, pictures and videos in one batch."""
    host, watch, at = kit.loaded(NAME), Watch(RECEIVED), plan(("llm.input", 3))
    inputs, clips = prompts(NAME, ROWS)
    outside = inputs | encode_clips(host.host, host.processor, clips)
    with pytest.raises(RuntimeError, match="but 0 were encoded inside the attach"), attach(host.host, watch, at):
        steps(host.host, outside)
    cut = r"schedule\.0\.site is vision\.output.*interpolation of a video's frames"
    with pytest.raises(ValueError, match=cut), attach(host.host, Content(), plan(("vision.output", 3))):
        steps(host.host, outside)
    with attach(host.host, watch, at), torch.no_grad():
        ready = inputs | encode_clips(host.host, host.processor, clips)
        host.host(**ready)
        with pytest.raises(RuntimeError, match="since the prompt before"):
            host.host(**ready)
        host.host(**inputs | encode_clips(host.host, host.processor, clips))
    assert len(watch.seen) == 2
    both = kit.batch(NAME, kit.rows(NAME)["video beside a picture"])
    with attach(host.host, watch, at), torch.no_grad():
        for go in (lambda: host.host(**both), lambda: host.host.generate(**both, max_new_tokens=1)):
            with pytest.raises(ValueError, match="The batch has pictures and videos"):
                go()
    with attach(host.host, Content(), at):
        steps(host.host, both)
    assert run(watch, at, ROWS[2:])[1][0].total == (0,)


def test_a_search_sees_frames():
    """A reference whose inputs are made inside of its attach shows a watched method what it asks for."""
    host = kit.loaded(NAME)
    inputs, clips = prompts(NAME, ROWS)
    with torch.no_grad():
        kept = reference(host.host, lambda: inputs | encode_clips(host.host, host.processor, clips), Watching(VFLOWOPT))
    assert [x.shape[0] for x in kept.signals.values()] == [10, 10]
    assert VFLOWOPT.most_received(kept.signals) > 1


def test_pictures_are_as_they_were():
    """A batch of pictures behind one of videos, in the same attach."""
    host = kit.loaded(NAME)
    pictures = kit.batch(NAME, kit.rows(NAME)["left padded, unequal pictures"])
    alone, behind = Watch(*ALL), Watch(*ALL)
    with attach(host.host, alone, plan(("llm.input", 4))):
        plain = steps(host.host, pictures)
    inputs, clips = prompts(NAME, ROWS)
    with attach(host.host, behind, plan(("llm.input", 4))):
        steps(host.host, inputs | encode_clips(host.host, host.processor, clips, chunk=2))
        again = steps(host.host, pictures)
    assert torch.equal(plain[1], again[1])
    for signal in ALL:
        assert torch.equal(alone.seen[0][2][signal], behind.seen[1][2][signal])
