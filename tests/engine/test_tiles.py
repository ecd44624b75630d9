"""Cuts and signals in the tower of families that pack tiles: removing equals hiding, tile by tile and in the prompt."""

import pytest
import torch
from crossings import one_by_one
from families import kit
from families.llava_onevision import resized
from oracle import blinding, hiding, steps
from toys import Content, Fold, Watch, plan

from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.models.families.llava_onevision import LlavaOneVision

TILED = ("llava_next", "llava_onevision", "llava_next_video")
PADDED, MANY = "left padded, unequal pictures", "all that sites offer"
ROWS = ("one row", PADDED, "text beside pictures")
SCHEDULES = {
    "layer 0": plan(("vision.layer.0", 6)),
    "mlp 0": plan(("vision.mlp.0", 5)),
    "output": plan(("vision.output", 4)),
    "share at the output": plan(("vision.output", 0.5)),
    "tower and decoder": plan(("vision.layer.1", 7), ("vision.output", 5), ("llm.layer.2", 0.2)),
    "all that sites offer": plan(
        ("vision.layer.0", 8),
        ("vision.mlp.1", 6),
        ("vision.output", 3),
        ("llm.input", 0.3),
        ("llm.layer.1", 0.2),
        ("llm.layer.3", 0),
    ),
    "none at the output": plan(("vision.output", 0)),
}
VISION = [
    Signal("keys", "vision.feature"),
    Signal("attention", "vision.feature", "mean"),
    Signal("hidden", "vision.output"),
]


class Noting(Content):
    """Remembers which tokens of each tile stay, by stage of the tower."""

    def __init__(self):
        self.stayed = []

    def select(self, tokens, signals, stage):
        found = super().select(tokens, signals, stage)
        if stage.site.tower == "vision":
            slots = tokens.slot.gather(1, found.keep.clamp(min=0)).masked_fill(found.keep < 0, -1)
            self.stayed.append((stage.site, [[s for s in row if s >= 0] for row in slots.tolist()]))
        return found


def facts(lvlm, inputs):
    """Per row the (tile, slot) of each visual token, None where it has none; tests/models proves them."""
    layout = lvlm.layout(inputs)
    each = lvlm.picture_grid(inputs["pixel_values"])[0] ** 2
    sources = [row[mask].tolist() for row, mask in zip(layout.source, layout.visual, strict=True)]
    return layout.visual, each, [[divmod(s, each) if s >= 0 else None for s in row] for row in sources]


def gone(lvlm, inputs, pruner, schedule, call):
    """(vision layer, per tile what no query sees) and (decoder layer, places) of what was withdrawn."""
    visual, each, sources = facts(lvlm, inputs)
    places = [row.nonzero().flatten().tolist() for row in visual]
    unseen, hidden = [], []
    stayed = pruner.stayed
    if any(s.site.tower == "vision" and s.withdraws_all for s in schedule):
        stayed = [*stayed, (schedule[-1].site, [[]] * 1000)]
    for site, tiles in stayed:
        if site.kind != "output":
            missing = [[s for s in range(each) if s not in row] for row in tiles]
            unseen.append((site.layer + (site.kind == "mlp"), missing))
    last = stayed[-1][1]
    hidden.append(
        (
            0,
            [
                [p for p, at in zip(row, source, strict=True) if at is None or at[1] not in last[at[0]]]
                for row, source in zip(places, sources, strict=True)
            ],
        )
    )
    for record in call.stages:
        if record.site.tower == "llm":
            kept = [[row[i] for i in k] for row, k in zip(places, record.kept, strict=True)]
            lost = [[p for p in row if p not in k] for row, k in zip(places, kept, strict=True)]
            hidden.append((max(record.site.layer, 0), lost))
    return unseen, hidden


def compare(lvlm, inputs, schedule, renumber=False, **more):
    """Prune, then hide; tokens and logits of every step must agree."""
    pruner = Noting()
    with attach(lvlm, pruner, schedule) as trace:
        tokens, logits = steps(lvlm, inputs, **more)
    unseen, hidden = gone(lvlm, inputs, pruner, schedule, trace[0])
    with blinding(lvlm, unseen), hiding(lvlm, inputs, hidden, renumber):
        hid_tokens, hid_logits = steps(lvlm, inputs, **more)
    plain = steps(lvlm, inputs, **more)[1]
    scale = hid_logits.abs().max().clamp(min=1)
    assert (logits - hid_logits).abs().max() / scale < 2e-6
    assert torch.equal(tokens, hid_tokens)
    assert (logits - plain).abs().max() / scale > 1e-4, "nothing was withdrawn, so nothing was proved"
    return trace, hidden


@pytest.mark.parametrize(("rows", "schedule"), one_by_one([PADDED, *ROWS], [MANY, *SCHEDULES]))
@pytest.mark.parametrize("name", TILED)
def test_removing_equals_hiding(name, rows, schedule):
    """Tiles of unequal pictures, rows padded on the left, several pictures in a row and none."""
    lvlm, inputs = kit.loaded(name).host, kit.batch(name, kit.rows(name)[rows])
    compare(lvlm, inputs, SCHEDULES[schedule])


@pytest.mark.parametrize("name", TILED)
def test_eager_and_renumbered(name):
    """Closing the gaps lowers each position by what went in front of it, newlines too."""
    lvlm, inputs = kit.loaded(name, "eager").host, kit.batch(name, kit.rows(name)["left padded, unequal pictures"])
    stages = [(s.site, s.keep) for s in SCHEDULES["tower and decoder"]]
    compare(lvlm, inputs, SCHEDULES["tower and decoder"])
    compare(lvlm, inputs, plan(*stages, positions="renumber"), renumber=True)
    compare(lvlm, inputs, SCHEDULES["tower and decoder"], use_cache=False)


@pytest.mark.parametrize("name", TILED)
def test_what_is_recorded(name):
    """What the trace says of the prompt is what was hidden from it; tokens stay in the prompt's order."""
    lvlm, inputs = kit.loaded(name).host, kit.batch(name, kit.rows(name)["left padded, unequal pictures"])
    trace, hidden = compare(lvlm, inputs, SCHEDULES["tower and decoder"])
    call, visual = trace[0], lvlm.visual_mask(inputs)
    totals = tuple(visual.sum(1).tolist())
    assert call.total == call.stages[0].before == totals
    for earlier, later in zip(call.stages, call.stages[1:], strict=False):
        assert earlier.after == later.before
        assert all(set(b) < set(a) for a, b in zip(earlier.kept, later.kept, strict=True))
    places = [row.nonzero().flatten().tolist() for row in visual]
    for kept, lost, row in zip(call.stages[1].kept, hidden[0][1], places, strict=True):
        assert [row[i] for i in kept] == [p for p in row if p not in lost]
    assert call.stages[1].after == call.visual[0]
    front = lvlm.towers["vision"].class_tokens
    assert call.vision[0][0] == facts(lvlm, inputs)[1] + front
    assert call.vision[1] == (7 + front, 7 + front)
    assert set(call.projected) <= set(range(6))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", TILED)
def test_signals_find_their_tokens(name, beams):
    """What a stage of the decoder is shown of a token in the tower is what became of it, alone and as a beam."""
    lvlm, inputs = kit.loaded(name).host, kit.batch(name, kit.rows(name)["left padded, unequal pictures"])
    pruner = Watch(*VISION)
    with torch.no_grad(), attach(lvlm, pruner, plan(("llm.input", 0.5), ("llm.layer.1", 0.3))):
        lvlm.generate(**inputs, max_new_tokens=2, num_beams=beams, do_sample=False)
    _, _, sources = facts(lvlm, inputs)
    for _, tokens, _ in pruner.seen:
        where = [[-1 if at is None else at[1] for at in row] for row in sources for _ in range(beams)]
        for b, row in enumerate(where):
            index = tokens.index[b][tokens.valid[b]]
            assert tokens.slot[b][tokens.valid[b]].tolist() == [row[i] for i in index.tolist()]
        assert ((tokens.slot < 0) == (tokens.coord[..., 0] < 0)).all()
    _, tokens, signals = pruner.seen[0]
    has = tokens.slot >= 0
    hidden = signals[VISION[2]][tokens.picture[has], tokens.slot[has]]
    with torch.no_grad():
        assert torch.allclose(lvlm.projector(hidden), tokens.hidden[has], atol=1e-6)
    assert signals[VISION[1]].shape[0] == signals[VISION[2]].shape[0] > len(inputs["input_ids"])


@pytest.mark.parametrize("schedule", ["tower and decoder", "output"])
@pytest.mark.parametrize("name", TILED)
def test_beams(name, schedule):
    """Beam search over a pruned prompt equals beam search over a hidden one."""
    lvlm, inputs = kit.loaded(name).host, kit.batch(name, kit.rows(name)["left padded, unequal pictures"])
    pruner, more = Noting(), {"num_beams": 3, "max_new_tokens": 4, "do_sample": False}
    with torch.no_grad(), attach(lvlm, pruner, SCHEDULES[schedule]) as trace:
        cut = lvlm.generate(**inputs, **more)
    call = trace[0]
    for record in call.stages:
        record.indices, record.before, record.after = (x[::3] for x in (record.indices, record.before, record.after))
    unseen, hidden = gone(lvlm, inputs, pruner, SCHEDULES[schedule], call)
    wide = {k: inputs[k].repeat_interleave(3, dim=0) for k in ("input_ids", "attention_mask")}
    hidden = [(layer, [row for row in rows for _ in range(3)]) for layer, rows in hidden]
    with torch.no_grad(), blinding(lvlm, unseen), hiding(lvlm, wide, hidden):
        assert torch.equal(cut, lvlm.generate(**inputs, **more))


@pytest.mark.parametrize("name", TILED)
def test_keeping_everything_changes_nothing(name):
    """Every site of the tower at 1.0, signals seen: bit-identical, newlines and all."""
    lvlm, inputs = kit.loaded(name).host, kit.batch(name, kit.rows(name)["left padded, unequal pictures"])
    tokens, logits = steps(lvlm, inputs)
    whole = plan(("vision.layer.1", 1.0), ("vision.mlp.1", 1.0), ("vision.output", 1.0), ("llm.input", 1.0))
    with attach(lvlm, Content(), whole) as trace:
        same_tokens, same_logits = steps(lvlm, inputs)
    with attach(lvlm, Watch(*VISION), plan(("llm.input", 1.0))):
        assert torch.equal(steps(lvlm, inputs)[1], logits)
    assert torch.equal(logits, same_logits)
    assert torch.equal(tokens, same_tokens)
    assert not any(trace.fired.values())
    assert trace[0].stages[0].kept == [list(range(n)) for n in trace[0].total]


def test_behind_the_tower_the_padding_of_a_tile_is_no_choice():
    """A stage there chooses among what prompts have of a tile; inside, the tower needs it whole."""
    lvlm = kit.loaded("llava_next").host
    inputs = kit.batch("llava_next", [["what ", kit.Picture(80, 50)]])
    pruner = Watch()
    with attach(lvlm, pruner, plan(("vision.layer.1", 8), ("vision.output", 0.5))) as trace:
        steps(lvlm, inputs)
    (_, inside, _), (_, behind, _) = pruner.seen[:2]
    assert inside.total.tolist() == [9] * 5
    _, _, (sources,) = facts(lvlm, inputs)
    present = [sum(at is not None and at[0] == tile for at in sources) for tile in range(5)]
    assert present == [9, 6, 6, 6, 6]
    assert behind.total.tolist() == present
    for tile in range(5):
        slots = behind.slot[tile][behind.valid[tile]].tolist()
        assert set(slots) <= {at[1] for at in sources if at is not None and at[0] == tile}
        assert not behind.valid[tile][len(slots) :].any(), "padding should come last"
    assert trace[0].projected == (4, 3, 3, 3, 3)
    assert trace[0].visual[0] == (16,)


@pytest.mark.parametrize("ordered", [False, True])
def test_merging_behind_the_tower(ordered):
    """What flowed together leaves one token that stands for all; in a new order tile follows tile."""
    lvlm, inputs = kit.loaded("llava_next").host, kit.batch("llava_next", kit.rows("llava_next")["one row"])
    pruner = Fold(ordered=ordered)
    with attach(lvlm, pruner, plan(("vision.output", 3), positions="renumber")) as trace:
        steps(lvlm, inputs)
    record = trace[0].stages[0]
    assert record.sizes[0].sum() > 15
    _, _, (sources,) = facts(lvlm, inputs)
    tokens = pruner.seen[0][1]
    stayed = [[int(tokens.slot[t, i]) for i in row if i >= 0] for t, row in enumerate(pruner.made[0][1].tolist())]
    tile_by_tile = [(tile, slot) for tile, row in enumerate(stayed) for slot in row]
    kept = [sources[i] for i in record.kept[0]]
    assert sorted(kept) == sorted(tile_by_tile)
    assert kept == (tile_by_tile if ordered else [at for at in sources if at in set(tile_by_tile)])


def test_a_row_alone():
    """Batching changes neither which tokens stay nor what is answered."""
    lvlm, rows = kit.loaded("llava_next").host, kit.rows("llava_next")
    picked = [rows["left padded, unequal pictures"][0], rows["one row"][0]]
    schedule, together = SCHEDULES["tower and decoder"], kit.batch("llava_next", picked)
    with attach(lvlm, Content(), schedule) as batch:
        tokens, _ = steps(lvlm, together)
    for b, row in enumerate(picked):
        with attach(lvlm, Content(), schedule) as single:
            own, _ = steps(lvlm, kit.batch("llava_next", [row], first=b))
        assert torch.equal(own[0, -3:], tokens[b, -3:])
        assert [s.kept[b] for s in batch[0].stages] == [s.kept[0] for s in single[0].stages]


def test_generations_in_a_row():
    """Each generate() has its own tiles; features of another one, or from outside, are refused."""
    lvlm = kit.loaded("llava_next").host
    first, second = (kit.batch("llava_next", kit.rows("llava_next")[rows]) for rows in ROWS[:2])
    names = ("pixel_values", "image_sizes")

    def encoded(inputs):
        with torch.no_grad():
            made = lvlm.model.model.get_image_features(**{k: inputs[k] for k in names}, return_dict=True)
        return {k: v for k, v in inputs.items() if k not in names} | {"mm_encoder_outputs": {"image": made}}

    outside = encoded(first)
    with torch.no_grad(), attach(lvlm, Content(), SCHEDULES["output"]) as trace:
        with pytest.raises(ValueError, match="encoded before btp was attached"):
            lvlm(**outside)
        mine = encoded(first)
        again = encoded(second)
        with pytest.raises(ValueError, match="encoded before btp was attached"):
            lvlm(**mine)
        ahead = lvlm(**again).logits
        assert torch.allclose(ahead, lvlm(**second).logits, atol=1e-6)
        again = encoded(second)
        lvlm.projector(lvlm.vision(first["pixel_values"][0]).last_hidden_state[:, 1:])  # by hand, of another picture
        with pytest.raises(RuntimeError, match="did not pass the vision tower and the projector"):
            lvlm(**again)
        steps(lvlm, first)
        steps(lvlm, second)
    kept = [[s.kept for s in call.stages] for call in trace]
    assert kept[0] == kept[1] == kept[-1] != kept[-2]
    assert "get_image_features" not in vars(lvlm.model.model)


def test_videos_are_refused_in_the_tower():
    """Before the tower runs, with the reason, where frames are pooled in front of the projector; LLaVA-OneVision, which
    pools them behind it, refuses cuts alone (tests/families/test_video_signals). The language model's sites work.
    """
    name = "llava_next_video"
    lvlm, inputs = kit.loaded(name).host, kit.batch(name, kit.rows(name)["video beside a picture"])
    ran = []
    hook = lvlm.towers["vision"].layers[0].register_forward_hook(lambda m, a, out: ran.append(len(out)))
    video = {k: v for k, v in inputs.items() if k not in ("pixel_values", "image_sizes", "batch_num_images")}
    for pruner, stages in ((Content(), plan(("vision.output", 4))), (Watch(VISION[0]), plan(("llm.input", 4)))):
        for given, least in ((inputs, None), (video, 0)):
            ran.clear()
            why = "pooled in front of the"
            with torch.no_grad(), attach(lvlm, pruner, stages), pytest.raises(ValueError, match=why) as error:
                lvlm.generate(**given, max_new_tokens=1)
            assert "Video 0 of the batch comes to the language model as tokens that are none of" in str(error.value)
            assert least is None or not ran
    hook.remove()
    with attach(lvlm, Content(), plan(("llm.input", 4))):
        steps(lvlm, inputs)


def test_resized_pictures_are_refused_in_the_tower():
    """Where OneVision blends neighbouring patches; smaller pictures work."""
    model, processor = resized()
    lvlm = LlavaOneVision(model.eval())
    for size, fits in (((30, 40), True), ((126, 120), False)):
        pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8).numpy()
        inputs = processor(text="<image>what", images=[[pixels]], return_tensors="pt")
        with torch.no_grad(), attach(lvlm, Content(), plan(("vision.output", 4))):
            if fits:
                lvlm(**inputs)
                continue
            with pytest.raises(ValueError, match=r"Picture 0 of the batch.*mosaics of more tiles than"):
                lvlm(**inputs)


def test_two_towers_are_refused():
    """Video-LLaVA has one for images and one for videos: refused at attach, by name."""
    lvlm = kit.loaded("video_llava").host
    for pruner, stages in ((Content(), plan(("vision.output", 4))), (Watch(VISION[0]), plan(("llm.input", 4)))):
        with (
            pytest.raises(ValueError, match="VideoLlavaForConditionalGeneration has two vision towers, one for images"),
            attach(lvlm, pruner, stages),
        ):
            pass
