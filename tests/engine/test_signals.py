"""Every signal, behind cuts and in batches, equals what a forward written out by hand says of the row alone."""

import pytest
import tiny
import torch
from byhand import cuts, project, tower, trail
from oracle import alone, steps
from toys import Content, Fold, Watch, plan

from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.engine.hooks import attention_rows as engine_rows
from btp.engine.observe import observe

EACH = tiny.SIDE**2
BATCH = [[2, "i", 5], [1, "i", 1, "i", 2], [4], ["i", 1]]
TEXTS = (5, 3, 0, 1)  # text tokens behind the first picture
CLOSE = {"atol": 2e-6, "rtol": 1e-5}


def decoder_signals(layers, last):
    """Every signal of the language model at some layers, and the preview of the last."""
    found = [
        Signal("preview", f"llm.layer.{last}", rows, form) for rows in ("last", "text") for form in ("probs", "logits")
    ]
    for site in (f"llm.layer.{layer}" for layer in layers):
        found += [Signal("attention", site, rows) for rows in ("last", "text", "mean")]
        found += [Signal("attention", site, rows, "logits") for rows in ("last", "text")]
        found += [Signal(kind, site, rows) for kind in ("queries", "keys", "values") for rows in (None, "text", "all")]
        found += [Signal("rotary", site, rows) for rows in (None, "text")]
        found += [Signal("update", site, None, form) for form in ("layer", "attention", "mlp")]
        found += [
            Signal("change", site, rows, form) for form in ("layer", "attention", "mlp") for rows in (None, "all")
        ]
        found += [Signal("hidden", site, rows, form) for rows in (None, "text") for form in (None, "normed")]
    return found


def whole(signal, inside, lvlm):
    """(what the signal is about, over all rows of the layer; where its tokens lie)."""
    if signal.kind in ("attention", "preview"):
        return inside["probs" if signal.form == "probs" else "logits"][0], 2
    if signal.kind in ("queries", "keys", "values"):
        return inside[signal.kind][0], 1
    if signal.kind == "rotary":
        return torch.cat(inside["rotary"]), 1
    if signal.kind == "hidden":
        x = inside["hidden"][0]
        return (x if signal.form is None else lvlm.decoder.norm(x)), 0
    entered, left = (x[0] for x in inside[signal.form])
    if signal.kind == "update":
        return torch.stack([entered, left]), 1
    ratio = (left**2).sum(-1).sqrt() / (entered**2).sum(-1).sqrt()
    cosine = (left * entered).sum(-1) / ((left**2).sum(-1) * (entered**2).sum(-1)).sqrt()
    return torch.stack([ratio, cosine]), 1


def expect(signal, inside, places, index, texts, lvlm):
    """What a stage should be shown of one row.

    Args:
        inside: what the layer saw.
        places: rows of the layer's visual tokens, and which they are.
        index: visual tokens alive at the stage.
        texts: how many text rows, the last ones of the layer but the pictures between them.
    """
    x, axis = whole(signal, inside, lvlm)
    length = x.shape[axis]
    visual = dict(zip(places[1], places[0], strict=True))
    columns = [visual[i] for i in index]
    first = min(places[0], default=length)
    text = [row for row in range(first, length) if row not in places[0]][:texts]
    if signal.kind in ("attention", "preview"):
        if signal.rows == "mean":
            return x.mean(1, keepdim=True)[..., columns]
        return x[:, [length - 1] if signal.rows == "last" else text][..., columns]
    chosen = {None: columns, "text": text, "all": list(range(length))}[signal.rows]
    return x.index_select(axis, torch.tensor(chosen, dtype=torch.long))


def of_row(signal, value, b, n, texts, valid):
    """The real part of what a stage was shown of row b."""
    x = value[:, b] if signal.kind in ("rotary", "update", "change") else value[b]
    axis = {"attention": 1, "preview": 1, "hidden": 0}.get(signal.kind, 1)
    if signal.rows in ("text", "all"):
        x = x.index_select(axis, valid[b].nonzero().flatten())
    if signal.kind in ("attention", "preview"):
        return x[..., :n]
    return x if signal.rows in ("text", "all") else x.narrow(axis, 0, n)


SCHEDULES = {
    "nothing cut": plan(("llm.layer.3", 1.0)),
    "original": plan(("llm.input", 7), ("llm.layer.1", 5), ("llm.layer.3", 2)),
    "renumber": plan(
        ("vision.output", 8), ("llm.input", 7), ("llm.layer.1", 5), ("llm.layer.3", 2), positions="renumber"
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llava", "llava_qwen"])
def test_the_decoder_by_hand(family, attention, schedule, monkeypatch):
    """All kinds, rows and forms, from every layer in front of the last stage, for the tokens alive there."""
    monkeypatch.setattr(engine_rows, "BLOCK", 7)  # a mean over more than one block
    lvlm, stages = tiny.shared(family, attention), SCHEDULES[schedule]
    inputs, signals = tiny.prompts(lvlm, BATCH), decoder_signals((0, 1, 2), 3)

    class Late(Watch):
        def needs(self, stage):
            return signals if stage.site.layer == 3 else ()

        def score(self, tokens, signals, stage):
            super().score(tokens, signals, stage)
            return Content.score(self, tokens, signals, stage)

    pruner = Late()
    with attach(lvlm, pruner, stages) as trace:
        steps(lvlm, inputs)
    _, tokens, seen = pruner.seen[-1]
    for b in (0, 1, 3):
        row = alone(inputs, b, EACH)
        layers, rows = trail(lvlm, row["input_ids"], project(lvlm, row), cuts(trace[0], b, stages)[:-1])
        index = tokens.index[b][tokens.valid[b]].tolist()
        assert index == rows.index
        for signal in signals:
            at = signal.site.layer
            places = rows.log[at][signal.kind != "hidden"]
            wanted = expect(signal, layers[at], places, index, TEXTS[b], lvlm)
            valid = seen.rows_valid(signal) if signal.rows in ("text", "all") else None
            got = of_row(signal, seen[signal], b, len(index), TEXTS[b], valid)
            assert got.shape == wanted.shape, signal
            assert torch.allclose(got, wanted, **CLOSE), signal


@pytest.mark.parametrize("family", ["llava", "llava_siglip"])
def test_what_entered(family):
    """`start` is every visual token that entered the language model, wherever it was cut since."""
    lvlm = tiny.shared(family)
    inputs = tiny.prompts(lvlm, BATCH)
    signals = Signal("hidden", "llm.input", "start"), Signal("hidden", "llm.input")
    pruner = Watch(*signals)
    stages = plan(("llm.input", 6), ("llm.layer.2", 3))
    with attach(lvlm, pruner, stages) as trace:
        steps(lvlm, inputs)
    for _, tokens, seen in pruner.seen:
        valid = seen.rows_valid(signals[0])
        for b in (0, 1, 3):
            features = project(lvlm, alone(inputs, b, EACH))
            assert torch.allclose(seen[signals[0]][b][valid[b]], features, **CLOSE)
            index = tokens.index[b][tokens.valid[b]]
            assert torch.allclose(seen[signals[1]][b, : len(index)], features[index], **CLOSE)
    assert trace.fired == {"llm.input": True, "llm.layer.2": True}


def test_what_entered_behind_the_tower():
    """Patches that left in front of the projector never entered; the others come in their new order."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, BATCH)
    start = Signal("hidden", "llm.input", "start")

    class Late(Watch):
        def needs(self, stage):
            return () if stage.site.tower == "vision" else (start,)

    pruner = Late()
    with attach(lvlm, pruner, plan(("vision.output", 5), ("llm.input", 4), ("llm.layer.1", 2))) as trace:
        steps(lvlm, inputs)
    for _, _, seen in pruner.seen[1:]:
        for b in (0, 1, 3):
            features = project(lvlm, alone(inputs, b, EACH))[trace[0].stages[0].kept[b]]
            assert torch.allclose(seen[start][b][seen.rows_valid(start)[b]], features, **CLOSE)


def vision_signals(lvlm, layers):
    """Every signal of the vision tower at some of its layers."""
    found = []
    for site in [f"vision.layer.{layer}" for layer in layers]:
        found += [Signal("attention", site, "mean")]
        found += [Signal(kind, site, rows) for kind in ("queries", "keys", "values") for rows in (None, "all")]
        found += [Signal("hidden", site)]
        if lvlm.towers["vision"].class_tokens:
            found += [Signal("attention", site, "cls", form) for form in ("probs", "logits")]
            found += [Signal("hidden", site, "cls")]
    return found


def of_picture(signal, inside, front, patches):
    """What a stage should be shown of one picture, for the layer's rows of `patches`."""
    if signal.kind == "hidden":
        x = inside["hidden"][0]
        return x[:1] if signal.rows == "cls" else x[front:][patches]
    if signal.kind == "attention":
        x = inside["probs" if signal.form == "probs" else "logits"][0]
        x = x[:, :1] if signal.rows == "cls" else x.mean(1, keepdim=True)
        return x[..., front:][..., patches]
    x = inside[signal.kind][0]
    return x if signal.rows == "all" else x[:, front:][:, patches]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", tiny.TOWERS)
def test_the_tower_by_hand(family, attention, monkeypatch):
    """Per picture, over the patches alive at a stage of the tower, and over all of them in the language model."""
    monkeypatch.setattr(engine_rows, "BLOCK", 4)
    lvlm = tiny.shared(family, attention)
    front, last = lvlm.towers["vision"].class_tokens, lvlm.towers["vision"].feature
    inputs, signals = tiny.prompts(lvlm, BATCH), vision_signals(lvlm, range(last + 1))
    more = (Signal("pixels", "vision.output"), Signal("hidden", "vision.output"), Signal("hidden", "vision.feature"))

    class Some(Watch, Content):
        def needs(self, stage):
            return (*signals, *more) if stage.site.kind in ("output", "input") else ()

        def score(self, tokens, signals, stage):
            self.seen.append((stage, tokens, signals))
            return Content.score(self, tokens, signals, stage)

    pruner = Some()
    with attach(lvlm, pruner, plan(("vision.layer.1", 7), ("vision.output", 5), ("llm.input", 3))) as trace:
        steps(lvlm, inputs)
    tower_stage, decoder_stage = pruner.seen[1:]
    kept = [
        sorted(i % EACH for i in trace[0].stages[0].kept[b] if i // EACH == p)
        for b, p in ((0, 0), (1, 0), (1, 1), (3, 0))
    ]
    for p, patches in enumerate(kept):
        inside = []

        def at(where, x, patches=patches):
            return x[:, [*range(front), *(front + i for i in patches)]] if where == ("layer", 1) else x

        with torch.no_grad():
            out = tower(lvlm, inputs["pixel_values"][p : p + 1], at, seen=inside)
        for _, tokens, seen in (tower_stage, decoder_stage):
            in_tower = tokens is tower_stage[1]
            for signal in signals:
                layer = signal.site.layer
                cut = layer > 1 or (layer == 1 and signal.kind != "hidden")
                rows = list(range(7)) if cut else patches if in_tower else list(range(EACH))
                wanted, got = of_picture(signal, inside[layer], front, rows), seen[signal][p]
                if not in_tower and cut and signal.rows != "all" and not (signal.kind == "hidden" and signal.rows):
                    axis = {"hidden": 0, "attention": 2}.get(signal.kind, 1)
                    gone = [i for i in range(EACH) if i not in patches]
                    assert not got.index_select(axis, torch.tensor(gone)).any(), signal
                    got = got.index_select(axis, torch.tensor(patches))
                assert got.shape == wanted.shape, signal
                assert torch.allclose(got, wanted, **CLOSE), signal
            assert torch.equal(seen[more[0]][p], inputs["pixel_values"][p])
            for signal in more[1:]:
                got = seen[signal][p] if in_tower else seen[signal][p, patches]
                assert torch.allclose(got, out[0, front:], **CLOSE)
        if family == "llava":
            assert torch.allclose(tower_stage[1].hidden[p], out[0, front:], **CLOSE)
            assert tower_stage[1].slot[p].tolist() == patches


def test_a_layer_called_feature():
    """vision.feature is the layer whose output the projector reads, whatever its number."""
    for family in tiny.TOWERS:
        lvlm = tiny.shared(family)
        number = {"llava": 1, "llava_deep": 1, "llava_siglip": 2}[family]
        signals = [
            Signal(kind, site) for kind in ("keys", "queries") for site in ("vision.feature", f"vision.layer.{number}")
        ]
        pruner = Watch(*signals)
        with attach(lvlm, pruner, plan(("vision.output", 5))):
            steps(lvlm, tiny.prompts(lvlm, BATCH))
        seen = pruner.seen[0][2]
        assert torch.equal(seen[signals[0]], seen[signals[1]])
        assert torch.equal(seen[signals[2]], seen[signals[3]])


@pytest.mark.parametrize("beams", [1, 2])
def test_a_token_finds_its_picture(beams):
    """picture and slot lead each token of a prompt to what the tower saw of it, behind reordering cuts and in beams."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, BATCH)
    keys = Signal("keys", "vision.layer.0")
    pruner = Watch(keys)
    with torch.no_grad(), attach(lvlm, pruner, plan(("vision.output", 7), ("llm.input", 6), ("llm.layer.2", 3))):
        lvlm.generate(**inputs, max_new_tokens=2, do_sample=False, num_beams=beams)
    plain = []
    for p in range(4):
        with torch.no_grad():
            tower(lvlm, inputs["pixel_values"][p : p + 1], seen=plain)
    plain = [inside["keys"][0, :, 1:] for inside in plain[::2]]
    for _, tokens, seen in pruner.seen[1:]:
        found = seen[keys][tokens.picture, :, tokens.slot]  # [B, N, H, d]
        for b in range(4 * beams):
            first = (0, 1, 3, 3)[b // beams]
            for n in range(int(tokens.valid[b].sum())):
                at = int(tokens.index[b, n])
                assert torch.allclose(found[b, n], plain[first + at // EACH][:, at % EACH], **CLOSE)


def test_observing_every_row():
    """Looks say which rows of a signal are real, and hold every signal that was asked for."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, BATCH)
    signals = [
        Signal("change", "llm.layer.1", "all", "mlp"),
        Signal("keys", "llm.layer.1", "all"),
        Signal("queries", "llm.layer.2", "text"),
        Signal("hidden", "llm.input", "start"),
    ]
    with torch.no_grad(), observe(lvlm, signals) as looks:
        lvlm(**inputs)
    seen = looks[0].signals
    assert set(seen) == set(signals)
    assert torch.equal(seen.rows_valid(signals[0]), inputs["attention_mask"].bool())
    assert torch.equal(seen.rows_valid(signals[1]), inputs["attention_mask"].bool())
    assert seen.rows_valid(signals[2]).sum(1).tolist() == list(TEXTS)
    assert seen.rows_valid(signals[3]).sum(1).tolist() == [9, 18, 0, 9]


@pytest.mark.parametrize("signal", [Signal("preview", "llm.layer.1", "last"), Signal("keys", "vision.layer.1")])
def test_observing_what_it_cannot(signal):
    """What observe does not look at is refused, and not left out in silence."""
    with pytest.raises(ValueError, match="observe"), observe(tiny.shared("llava"), [signal]):
        pass


def test_rows_of_the_tower_are_real():
    """Signals of the tower with rows all say that all are real."""
    lvlm = tiny.shared("llava")
    signal = Signal("queries", "vision.layer.1", "all")
    pruner = Watch(signal)
    with attach(lvlm, pruner, plan(("vision.output", 5), ("llm.input", 3))):
        steps(lvlm, tiny.prompts(lvlm, BATCH))
    for _, _, seen in pruner.seen:
        assert seen.rows_valid(signal).tolist() == [[True] * 10] * 4


@pytest.mark.parametrize(
    ("signal", "site", "others"),
    [
        ("llm.layer.1", "llm.layer.2", [("llm.input", 6), ("llm.layer.1", 5)]),
        ("vision.layer.1", "vision.mlp.1", [("vision.mlp.0", 8), ("vision.layer.1", 7)]),
        ("vision.feature", "vision.output", [("vision.mlp.0", 8), ("vision.layer.1", 7)]),
    ],
)
def test_rows_of_the_layer_before(signal, site, others):
    """Tokens.row leads from a token to its row in the layer that ran last, class token and text counted."""
    every, mine = Signal("keys", signal, "all"), Signal("keys", signal)

    class Late(Watch):
        def needs(self, stage):
            return (every, mine) if str(stage.site) == site else ()

    pruner = Late()
    with attach(tiny.shared("llava"), pruner, plan(*others, (site, 2))):
        steps(tiny.shared("llava"), tiny.prompts(tiny.shared("llava"), BATCH))
    _, tokens, seen = pruner.seen[-1]
    for b in range(len(tokens.row)):
        n = int(tokens.valid[b].sum())
        assert torch.equal(seen[every][b][:, tokens.row[b, :n]], seen[mine][b][:, :n])


def test_two_sites_in_front_of_layer_0():
    """What stands at llm.layer.0 has passed llm.input: a stage there is shown what was merged, and later ones too."""
    at_input, at_layer, text = (
        Signal("hidden", "llm.input"),
        Signal("hidden", "llm.layer.0"),
        Signal("hidden", "llm.layer.0", "text"),
    )

    class Both(Fold):
        def needs(self, stage):
            return (at_input, at_layer, text) if stage.site.kind == "layer" else ()

    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, BATCH)
    pruner = Both()
    with attach(lvlm, pruner, plan(("llm.input", 6), ("llm.layer.0", 4), ("llm.layer.1", 2))):
        steps(lvlm, inputs)
    (_, first, _), (_, second, seen), (_, third, later) = pruner.seen
    keep, valid = pruner.made[1][1], third.valid
    for b in (0, 1, 3):
        n = int(second.valid[b].sum())
        assert torch.equal(seen[at_layer][b, :n], second.hidden[b, :n])
        assert not torch.allclose(seen[at_input][b, :n], second.hidden[b, :n])
        assert torch.equal(seen[at_input][b, :n], first.hidden[b, pruner.made[0][1][b, :n]])
        assert torch.equal(later[at_layer][b][valid[b]], second.hidden[b, keep[b][keep[b] >= 0]])
        assert seen.rows_valid(text)[b].sum() == TEXTS[b]
    assert torch.equal(second.text, seen[text])
