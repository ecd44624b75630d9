"""A preview is what the layer then computes: held against eager attention of the same run."""

import pytest
import tiny
import torch
from toys import Content, Watch, plan

from btp.core.signals import Signal
from btp.engine.attach import attach

ROWS = [[2, (2, 3), 5], [1, "i", 1, (1, 2), 2], [4]]
FORMS = [(rows, form) for rows in ("last", "text") for form in ("probs", "logits")]


class Ahead(Watch, Content):
    """Asks at each stage for the preview of its layer, and for what the layer before attended to."""

    def __init__(self):
        super().__init__()

    def needs(self, stage):
        if stage.site.kind != "layer":
            return ()
        at = stage.site.layer
        before = [Signal("attention", f"llm.layer.{at - 1}", rows) for rows in ("last", "mean") if at]
        return (*(Signal("preview", f"llm.layer.{at}", *form) for form in FORMS), *before)

    def score(self, tokens, signals, stage):
        self.seen.append((stage, tokens, signals))
        return Content.score(self, tokens, signals, stage)


def rows_alive(inputs, visual, kept, b, width):
    """Rows of a shortened batch, aligned at its end: the visual ones, the text behind the first, all real ones."""
    place = visual[b].nonzero().flatten().tolist()
    alive = [p for p in range(len(visual[b])) if not visual[b, p] or place.index(p) in kept]
    if len(kept) < len(place):  # padding in front goes with the first cut
        alive = [p for p in alive if bool(inputs["attention_mask"][b, : p + 1].any())]
    lead = width - len(alive)
    real = [lead + i for i, p in enumerate(alive) if inputs["attention_mask"][b, p]]
    seen = [lead + i for i, p in enumerate(alive) if visual[b, p]]
    text = [row for row in real if row not in seen and seen and row > seen[0]]
    return seen, text, real


def check(value, host, columns, rows, form):
    """Shown rows are the host's."""
    wanted = host[:, rows][..., columns]
    if form == "probs":
        assert torch.allclose(value, wanted, atol=1e-6)
        return
    finite = value.isfinite()  # logits are log probabilities but for one number a row
    assert torch.equal(finite, wanted > 0)
    away = torch.where(finite, value - wanted.clamp(min=1e-30).log(), 0.0)
    first = away.gather(-1, finite.int().argmax(-1, keepdim=True))
    assert torch.allclose(away, torch.where(finite, first, 0.0), atol=1e-4)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_nothing_cut(family, padding):
    """Last and text rows in front of every layer, in probabilities and logits, on either padding."""
    lvlm = tiny.shared(family, "eager")
    inputs = tiny.prompts(lvlm, ROWS, padding)
    visual, pruner = lvlm.visual_mask(inputs), Ahead()
    with torch.no_grad(), attach(lvlm, pruner, plan(*((f"llm.layer.{i}", 1.0) for i in range(4)))):
        out = lvlm(**inputs, output_attentions=True)
    assert len(pruner.seen) == 4
    for at, (stage, tokens, seen) in enumerate(pruner.seen):
        for rows, form in FORMS:
            signal = Signal("preview", stage.site, rows, form)
            for b in range(2):
                columns, text, real = rows_alive(inputs, visual, range(visual[b].sum()), b, visual.shape[1])
                value = seen[signal][b][..., : len(columns)]
                if rows == "text":
                    value = value[:, seen.rows_valid(signal)[b]]
                check(value, out.attentions[at][b], columns, text if rows == "text" else real[-1:], form)
        assert torch.equal(tokens.valid.sum(1), visual.sum(1))


@pytest.mark.parametrize(
    ("family", "positions"),
    [("llava", "original"), ("llava", "renumber"), ("llava_qwen", "renumber"), ("qwen", "original")],
)
@pytest.mark.parametrize("cut", ["vision.output", "llm.input", "llm.layer.2"])
def test_behind_a_cut(family, positions, cut):
    """Behind a cut it is what the shortened layer computes; what the layer before attended to likewise."""
    if family == "qwen" and cut == "vision.output":
        pytest.skip("a packed tower, which is refused")
    lvlm = tiny.shared(family, "eager")
    inputs = tiny.prompts(lvlm, ROWS)
    visual, pruner = lvlm.visual_mask(inputs), Ahead()
    at = 3 if cut == "llm.layer.2" else 0
    stages = plan((cut, 0.5), (f"llm.layer.{at}", 0.49999999), positions=positions)  # the second keeps all that is left
    with torch.no_grad(), attach(lvlm, pruner, stages) as trace:
        out = lvlm(**inputs, output_attentions=True)
    _, tokens, seen = pruner.seen[-1]
    for b in range(2):
        before = trace[0].stages[0].kept[b]
        n = len(before)
        assert trace[0].stages[1].kept[b] == before
        assert tokens.index[b, :n].tolist() == before
        columns, text, real = rows_alive(inputs, visual, before, b, out.attentions[at].shape[-1])
        for rows, form in FORMS:
            signal = Signal("preview", f"llm.layer.{at}", rows, form)
            value = seen[signal][b][..., :n]
            if rows == "text":
                value = value[:, seen.rows_valid(signal)[b]]
            check(value, out.attentions[at][b], columns, text if rows == "text" else real[-1:], form)
        if at:
            host = out.attentions[2][b]
            last, mean = (seen[Signal("attention", "llm.layer.2", rows)][b][..., :n] for rows in ("last", "mean"))
            check(last, host, columns, real[-1:], "probs")
            assert torch.allclose(mean, host[:, real].mean(1, keepdim=True)[..., columns], atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_it_changes_nothing(attention):
    """Looking ahead leaves the cache, the outputs and later layers alone."""
    lvlm = tiny.shared("llava", attention)
    inputs = tiny.prompts(lvlm, ROWS)
    stages = plan(("llm.input", 7), ("llm.layer.1", 5), ("llm.layer.2", 3), positions="renumber")
    more = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with torch.no_grad(), attach(lvlm, Content(), stages) as trace:
        plain = lvlm.generate(**inputs, **more)
    with torch.no_grad(), attach(lvlm, Ahead(), stages) as watched:
        seen = lvlm.generate(**inputs, **more)
    assert torch.equal(torch.stack(plain.logits), torch.stack(seen.logits))
    assert trace[0].slots == watched[0].slots
    for a, b in zip(plain[tiny.CACHE].layers, seen[tiny.CACHE].layers, strict=True):
        assert torch.equal(a.keys, b.keys)


def test_a_preview_of_a_layer_that_ran():
    """A stage may look ahead at its own layer alone."""

    class Back(Watch):
        def needs(self, stage):
            return (Signal("preview", "llm.layer.1", "last"),)

    refused = attach(tiny.shared("llava"), Back(), plan(("llm.layer.2", 2)))
    with pytest.raises(ValueError, match=r"asks for preview at llm\.layer\.1"), refused:
        pass
