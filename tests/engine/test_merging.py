"""Merging tokens equals running the model by hand on states that were merged by hand."""

from functools import partial

import pytest
import tiny
import torch
from byhand import answer, merged, project, summed, tower
from crossings import one_by_one
from oracle import alone, steps
from toys import Content, Fold, plan

from btp.core.selection import MergePlan, Selection
from btp.core.signals import Signal
from btp.engine.attach import attach

EACH = tiny.SIDE**2
BATCH = [[2, "i", 5], [1, "i", 1, "i", 2], [4], ["i", 1]]


def recorded(made, b, combine):
    """(kept tokens, what they hold) of row b in a remembered plan of Fold."""
    _, keep, target, weight, states = made
    kept = [k for k in keep[b].tolist() if k >= 0]
    if states is not None:
        return kept, states[b, : len(kept)]
    return kept, partial(merged, keep=kept, target=target[b].tolist(), weight=weight[b].tolist(), combine=combine)


def agree(lvlm, inputs, batch, moves_of, features_for=None):
    """Tokens and logits of every row of a batch are those made by hand."""
    tokens, logits = batch
    for b in range(len(inputs["input_ids"])):
        row = alone(inputs, b, EACH)
        features = features_for(b, row) if features_for else project(lvlm, row)
        wanted = answer(lvlm, row["input_ids"], features, moves_of(b), tokens[b, -3:])
        assert torch.equal(tokens[b, -3:], wanted.argmax(1))
        assert (logits[:, b] - wanted).abs().max() < 2e-6 * max(1, wanted.abs().max())


@pytest.mark.parametrize(
    ("attention", "site", "combine", "ordered"),
    one_by_one(["sdpa", "eager"], ["llm.layer.2", "llm.input", "llm.layer.0"], ["mean", "sum"], [True, False]),
)
def test_in_the_decoder(attention, site, combine, ordered):
    """Mean and sum, in their places or in falling order, contiguous positions, prefill and decode."""
    lvlm = tiny.shared("llava", attention)
    inputs = tiny.prompts(lvlm, BATCH)
    pruner = Fold(combine, ordered)
    with attach(lvlm, pruner, plan((site, 0.5), positions="renumber")) as trace:
        batch = steps(lvlm, inputs)
    layer = trace[0].stages[0].site.first_layer
    assert trace[0].stages[0].after == (4, 9, 0, 4)
    agree(lvlm, inputs, batch, lambda b: [(layer, *recorded(pruner.made[0], b, combine), True)])


@pytest.mark.parametrize("positions", ["original", "renumber"])
@pytest.mark.parametrize("family", ["llava", "llava_qwen"])
def test_twice_in_the_decoder(family, positions):
    """A second merge works on what the first left; positions stay or close up."""
    lvlm = tiny.shared(family)
    inputs = tiny.prompts(lvlm, BATCH)
    pruner = Fold()
    with attach(lvlm, pruner, plan(("llm.input", 6), ("llm.layer.2", 3), positions=positions)):
        batch = steps(lvlm, inputs)

    def moves(b):
        first, second = (recorded(made, b, "mean") for made in pruner.made)
        return [(0, *first, positions == "renumber"), (2, *second, positions == "renumber")]

    agree(lvlm, inputs, batch, moves)


@pytest.mark.parametrize("site", ["llm.input", "llm.layer.2"])
def test_states(site):
    """A pruner may say what the kept tokens hold."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, BATCH)
    pruner = Fold(states=True, ordered=True)
    with attach(lvlm, pruner, plan((site, 4), positions="renumber")) as trace:
        batch = steps(lvlm, inputs)
    layer = trace[0].stages[0].site.first_layer
    agree(lvlm, inputs, batch, lambda b: [(layer, *recorded(pruner.made[0], b, "mean"), True)])


def through_tower(lvlm, pixels, picture, pruner, bias):
    """States of one picture's patches that stay, merged by hand on the way, and which they are.

    Args:
        pixels: [1, 3, height, width].
        picture: its number in the batch.
        pruner: whose plans are followed.
        bias: (sizes, layer) -> what is added to the layer's attention logits.
    """
    front = lvlm.towers["vision"].class_tokens
    slots, sizes = list(range(EACH)), [1] * EACH

    def at(where, x, front=front):
        nonlocal slots, sizes
        for entry in pruner.made:
            if (entry[0].site.kind, entry[0].site.layer) == where:
                kept, states = recorded(entry, picture, pruner.combine)
                fresh = states(x[0, front:]) if callable(states) else states
                sizes = summed(sizes, kept, entry[2][picture].tolist())
                slots = [slots[k] for k in kept]
                x = torch.cat([x[:, :front], fresh[None]], dim=1)
        return x

    with torch.no_grad():
        out = tower(lvlm, pixels, at, lambda layer: bias(sizes, layer))
        return at(("output", -1), out[:, front:], front=0)[0], slots


TOWER = {
    "layer": plan(("vision.layer.1", 4), positions="renumber"),
    "mlp": plan(("vision.mlp.0", 4), positions="renumber"),
    "mlp of the last layer": plan(("vision.mlp.1", 4), positions="renumber"),
    "output": plan(("vision.output", 4), positions="renumber"),
    "all": plan(
        ("vision.mlp.0", 8), ("vision.layer.1", 7), ("vision.mlp.1", 6), ("vision.output", 4), positions="renumber"
    ),
}


def in_tower(lvlm, pruner, schedule, bias=lambda sizes, layer: 0.0):
    """Run a batch, and hold it against features made by hand and put in front of the plain decoder."""
    inputs = tiny.prompts(lvlm, BATCH)
    with attach(lvlm, pruner, schedule) as trace:
        batch = steps(lvlm, inputs)
    first_picture, kept = (0, 1, 3, 3), {}

    def features_for(b, row):
        pixels = row.get("pixel_values", ())
        pictures = [through_tower(lvlm, p[None], first_picture[b] + i, pruner, bias) for i, p in enumerate(pixels)]
        in_order = [i * EACH + slot for i, (_, slots) in enumerate(pictures) for slot in slots]
        assert trace[0].stages[-1].kept[b] == in_order
        kept[b] = [i * EACH + slot for i, (_, slots) in enumerate(pictures) for slot in sorted(slots)]
        return project(lvlm, row, pictures)

    agree(lvlm, inputs, batch, lambda b: [(0, kept[b], None, True)], features_for)


@pytest.mark.parametrize(("schedule", "ordered"), one_by_one(["all", *TOWER], [True, False]))
@pytest.mark.parametrize("family", ["llava", "llava_deep", "llava_siglip"])
def test_in_the_tower(family, ordered, schedule):
    """In front of a block, inside it and in front of the projector, picture by picture."""
    in_tower(tiny.shared(family), Fold("sum" if schedule == "mlp" else "mean", ordered), TOWER[schedule])


@pytest.mark.parametrize("schedule", ["mlp", "layer", "output"])
@pytest.mark.parametrize("family", ["llava", "llava_siglip"])
def test_states_in_the_tower(family, schedule):
    """What a pruner says that patches hold goes on through the tower, the class token beside it untouched."""
    in_tower(tiny.shared(family), Fold(states=True, ordered=True), TOWER[schedule])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llava_deep", "llava_siglip"])
def test_proportional_attention(family, attention):
    """Behind a merge the log of the sizes is added to every block's logits; the class token counts once."""
    lvlm = tiny.shared(family, attention)
    front = lvlm.towers["vision"].class_tokens

    def bias(sizes, layer):
        return torch.tensor([1.0] * front + [float(n) for n in sizes]).log()

    in_tower(lvlm, Fold(proportional=True), TOWER["all"], bias)


def test_signals_behind_a_merge():
    """Attention seen behind a merge is weighed as the layer's own was."""
    lvlm = tiny.shared("llava_siglip")
    mean, keys = Signal("attention", "vision.layer.2", "mean"), Signal("keys", "vision.layer.2")

    class Seen(Fold):
        def needs(self, stage):
            return (mean, keys) if str(stage.site) == "vision.output" else ()

    pruner, inside = Seen(proportional=True), []
    with attach(lvlm, pruner, plan(("vision.mlp.1", 5), ("vision.output", 4))):
        steps(lvlm, tiny.prompts(lvlm, BATCH))
    _, tokens, seen = pruner.seen[1]
    pixels = tiny.prompts(lvlm, BATCH)["pixel_values"]
    for p in range(4):
        made = [recorded(pruner.made[0], p, "mean")]

        def at(where, x, made=made):
            return made[0][1](x[0])[None] if where == ("mlp", 1) else x

        inside.clear()
        with torch.no_grad():
            sizes = tokens.size[p].float()
            tower(lvlm, pixels[p : p + 1], at, lambda layer, sizes=sizes: sizes.log() if layer == 2 else 0.0, inside)
        assert torch.allclose(seen[mean][p], inside[2]["probs"][0].mean(1, keepdim=True), atol=1e-6)
        assert torch.allclose(seen[keys][p], inside[2]["keys"][0], atol=1e-5)
        assert sizes.max() > 1


def test_proportional_attention_of_alike_patches():
    """Merging bit-identical patches changes nothing where a patch weighs by its size, and something where not."""
    lvlm = tiny.llava_deep()
    lvlm.vision.embeddings.position_embedding.weight.data.zero_()
    inputs = tiny.prompts(lvlm, [[1, "i", 2], [2, "i", 2]])
    pixels = inputs["pixel_values"]
    for row in range(3):  # three kinds of patches, one a row
        patch = pixels[:, :, 14 * row : 14 * row + 14, :14]
        pixels[:, :, 14 * row : 14 * row + 14] = patch.repeat(1, 1, 1, 3)
    got = []
    hook = lvlm.projector.register_forward_pre_hook(lambda m, args: got.append(args[0]))

    class Pairs(Content):
        def __init__(self, proportional):
            self.proportional_attention = proportional

        def select(self, tokens, signals, stage):
            kept = torch.tensor([0, 1, 3, 6]).expand(len(tokens.valid), 4)  # patch 1 stays on its own, 2 goes to 0
            into = torch.tensor([0, 1, 0, 3, 3, 3, 6, 6, 6]).expand(len(tokens.valid), 9)
            return Selection(kept, MergePlan(into, torch.ones(into.shape)))

    def features(pruner, site):
        with torch.no_grad(), attach(lvlm, pruner, plan((site, 4))):
            lvlm(**inputs)
        return got.pop()

    with torch.no_grad():
        lvlm(**inputs)
        whole = got.pop()
        for site in ("vision.layer.1", "vision.mlp.0"):
            with_sizes, without = features(Pairs(True), site), features(Pairs(False), site)
            assert torch.allclose(with_sizes, whole[:, [0, 1, 3, 6]], atol=1e-6)
            assert (without - whole[:, [0, 1, 3, 6]]).abs().max() > 1e-4
    hook.remove()


def test_sizes_go_on():
    """Later stages see what a token stands for, the trace says so, and no token is counted twice."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, BATCH)
    pruner = Fold()
    schedule = plan(("vision.mlp.0", 7), ("vision.output", 6), ("llm.input", 5), ("llm.layer.2", 2))
    with attach(lvlm, pruner, schedule) as trace:
        steps(lvlm, inputs)
    sizes = {p: [1] * EACH for p in range(4)}
    for (_, tokens, _), made in zip(pruner.seen[:2], pruner.made[:2], strict=True):
        for p in range(4):
            assert tokens.size[p].tolist() == sizes[p]
            sizes[p] = summed(sizes[p], made[1][p].tolist(), made[2][p].tolist())
    rows = {0: sizes[0], 1: sizes[1] + sizes[2], 2: [], 3: sizes[3]}
    records = trace[0].stages
    for (_, tokens, _), made, record in zip(pruner.seen[2:], pruner.made[2:], records[2:], strict=True):
        for b, row in rows.items():
            assert tokens.size[b].tolist()[: len(row)] == row
            assert tokens.valid[b].sum() == len(row)
            rows[b] = summed(row, [k for k in made[1][b].tolist() if k >= 0], made[2][b].tolist())
            assert record.sizes[b, : len(rows[b])].tolist() == rows[b]
            assert record.merged[b] == [k for k, n in zip(record.kept[b], rows[b], strict=True) if n > 1]
    assert records[1].sizes[1, :12].tolist() == sizes[1] + sizes[2]
    assert any(records[0].merged[1])
    assert records[0].sizes.shape == (4, 14)


def test_cut_behind_a_merge():
    """Tokens that are merely cut keep their sizes, in the tower, on the way to the prompt and in the decoder."""

    class Some(Fold):
        def select(self, tokens, signals, stage):
            if str(stage.site) in ("vision.mlp.0", "llm.input"):
                return super().select(tokens, signals, stage)
            self.seen.append((stage, tokens, signals))
            return Content.select(self, tokens, signals, stage)

    lvlm = tiny.shared("llava")
    pruner = Some()
    sites = ("vision.mlp.0", 6), ("vision.output", 5), ("llm.input", 4), ("llm.layer.1", 3), ("llm.layer.2", 2)
    with attach(lvlm, pruner, plan(*sites)) as trace:
        steps(lvlm, tiny.prompts(lvlm, [["i", 2]]))
    records, tokens = trace[0].stages, [seen[1] for seen in pruner.seen]
    assert [record.sizes is None for record in records] == [False, True, False, True, True]
    assert sum(tokens[1].size[0].tolist()) == sum(records[0].sizes[0].tolist()) > 6
    by_patch = dict(zip(records[0].kept[0], records[0].sizes[0].tolist(), strict=True))
    assert tokens[2].size[0].tolist() == [by_patch[i] for i in records[1].kept[0]]
    later = dict(zip(records[2].kept[0], records[2].sizes[0].tolist(), strict=True))
    assert tokens[3].size[0].tolist() == records[2].sizes[0].tolist()
    assert tokens[4].size[0].tolist() == [later[i] for i in records[3].kept[0]]


@pytest.mark.parametrize("site", ["llm.input", "llm.layer.2"])
def test_a_new_order_alone(site):
    """Reordered tokens run as the plain decoder runs hand-ordered embeddings."""

    class Reversed(Content):
        def select(self, tokens, signals, stage):
            keep = super().select(tokens, signals, stage).keep
            order = (-keep).masked_fill(keep < 0, 1).argsort(dim=1)
            self.kept = keep.gather(1, order)
            return Selection(self.kept, ordered=True)

    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, BATCH)
    for keep in (4, 1.0):
        pruner = Reversed()
        with attach(lvlm, pruner, plan((site, keep), positions="renumber")) as trace:
            batch = steps(lvlm, inputs)
        layer = trace[0].stages[0].site.first_layer
        kept = [[k for k in row if k >= 0] for row in pruner.kept.tolist()]
        assert trace[0].stages[0].kept == kept
        agree(lvlm, inputs, batch, lambda b, kept=kept, layer=layer: [(layer, kept[b], None, True)])


def test_order_behind_an_order():
    """Tokens of a later stage stand in the order that the earlier one gave them, with their own facts."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, BATCH)

    class Both(Fold):
        def select(self, tokens, signals, stage):
            self.ordered = str(stage.site) != "llm.layer.1"
            return super().select(tokens, signals, stage)

    pruner = Both()
    schedule = plan(("vision.output", 8), ("llm.input", 6), ("llm.layer.1", 4), positions="renumber")
    with attach(lvlm, pruner, schedule) as trace:
        steps(lvlm, inputs)
    for before, (_, tokens, _) in zip(trace[0].stages, pruner.seen[1:], strict=False):
        for b in (0, 1, 3):
            n = len(before.kept[b])
            assert tokens.index[b, :n].tolist() == before.kept[b]
            places = lvlm.visual_mask(inputs)[b].nonzero().flatten()
            lead = int((inputs["attention_mask"][b] == 0).sum())
            assert tokens.position[b, :n].tolist() == [int(places[i]) - lead for i in before.kept[b]]
            coord = [[0, i % EACH // 3, i % EACH % 3] for i in before.kept[b]]
            assert tokens.coord[b, :n].tolist() == coord
            assert tokens.slot[b, :n].tolist() == [i % EACH for i in before.kept[b]]
            first = (0, 1, None, 3)[b]
            assert tokens.picture[b, :n].tolist() == [first + i // EACH for i in before.kept[b]]


def test_everything_flows_into_itself():
    """A plan that merges nothing changes no more than rounding, and no stage fired."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, BATCH)
    plain = steps(lvlm, inputs)[1]
    with attach(lvlm, Fold(), plan(("vision.mlp.0", 1.0), ("vision.output", 1.0), ("llm.layer.2", 1.0))) as trace:
        same = steps(lvlm, inputs)[1]
    assert torch.allclose(plain, same, atol=1e-5)
    assert not any(trace.fired.values())
