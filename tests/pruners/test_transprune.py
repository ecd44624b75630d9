"""TransPrune: transitions of the layers before a stage, attention of the layer behind it."""

from pathlib import Path

import pytest
import torch
from checked_selection import check_selection
from hand import published, row, signals, stage, tokens
from omegaconf import OmegaConf

import btp
from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.pruners.transprune import TransPrune

CONF = Path(btp.__file__).parents[1] / "conf"
SETTINGS = {"direction": "signed", "alpha": 0.5, "accumulate": 6}
ATTENTION = ([(1, 0), (1, 0), (0, 2), (2, 0), (1, 1)], [(1, 0), (-1, 0), (1, 1), (2, 1), (1, 0)])
MLP = ([(1, 1), (0, 1), (1, 0), (1, 1), (2, 0)], [(0, 1), (0, -2), (0, 1), (1, 0), (1, 1)])


def transprune(**changed):
    return TransPrune(**SETTINGS | changed)


def change(before, after):
    before, after = (torch.tensor(x, dtype=torch.float32) for x in (before, after))
    return torch.stack([after.norm(dim=-1) / before.norm(dim=-1), torch.cosine_similarity(before, after, dim=-1)])[
        :, None
    ]


def worked():
    """The method card's example as signals at a stage in front of layer 1: three tokens between one row and one."""
    seen, rows_valid = {}, {}
    for part, block in (("attention", change(*ATTENTION)), ("mlp", change(*MLP))):
        seen[Signal("change", "llm.layer.0", None, part)] = block[:, :, 1:4]
        everyone = Signal("change", "llm.layer.0", "all", part)
        seen[everyone], rows_valid[everyone] = block, torch.ones(1, 5, dtype=torch.bool)
    coming = Signal("preview", "llm.layer.1", "text", "probs")
    seen[coming], rows_valid[coming] = torch.tensor([0.05, 0.6, 0.15]).view(1, 1, 1, 3), torch.ones(1, 1).bool()
    return Signals(seen, rows_valid)


@pytest.mark.parametrize(
    ("direction", "scores", "kept"),
    [
        ("signed", [0.852503, 0.879168, 0.268329], [0, 1]),
        ("orthogonal", [0.398511, 1.151320, 0.450168], [1, 2]),
    ],
)
def test_worked_example(direction, scores, kept):
    """A reversed vector is the most important token in the code's reading and unremarkable in the paper's."""
    pruner, seen, at = transprune(direction=direction), tokens(3), stage("llm.layer.1", 2, accumulate=1)
    assert set(pruner.needs(at)) == set(worked())
    assert pruner.score(seen, worked(), at)[0].tolist() == pytest.approx(scores, abs=1e-6)
    assert pruner.select(seen, worked(), at).keep.tolist() == [kept]


def test_layers_that_count():
    """Stages in front of 7, 9 and 12 that accumulate 1, 3 and 6 see 6; 6 to 8; 6 to 11. None lies below 0."""
    for layer, number, layers in ((7, 1, [6]), (9, 3, [6, 7, 8]), (12, 6, range(6, 12)), (2, 6, [0, 1])):
        at = stage(f"llm.layer.{layer}", accumulate=number)
        asked = {s.site.layer for s in transprune().needs(at) if s.kind == "change"}
        assert asked == set(layers)
    assert {s.site.layer for s in transprune().needs(stage("llm.layer.9")) if s.kind == "change"} == set(range(3, 9))


def test_signals():
    """Two blocks of a layer, for the tokens alive and for all rows, and the text's rows of the coming layer."""
    assert transprune().needs(stage("llm.layer.4", accumulate=1)) == (
        Signal("change", "llm.layer.3", None, "attention"),
        Signal("change", "llm.layer.3", "all", "attention"),
        Signal("change", "llm.layer.3", None, "mlp"),
        Signal("change", "llm.layer.3", "all", "mlp"),
        Signal("preview", "llm.layer.4", "text", "probs"),
    )


def test_no_layer_before():
    """A stage in front of the first layer has nothing to look at, whichever way it is asked."""
    for site in ("llm.layer.0", "llm.input"):
        with pytest.raises(ValueError, match=r"No layer of the llm tower comes before"):
            transprune().needs(stage(site))
        with pytest.raises(ValueError, match=rf"schedule.0.site is {site}, but .* Set schedule.0.site to llm.layer.1"):
            transprune().check(Schedule.from_config([{"site": site, "keep": 0.5}]))


def test_alpha_takes_sides():
    """At 1 only the transition ranks and the attention is not asked for; at 0 the other way round; 0.5 is the sum."""
    seen, at = tokens(12, 7), stage("llm.layer.4", 0.5, accumulate=2)
    values = signals(transprune(), seen, at)
    parts = {}
    for alpha, kinds in ((1.0, {"change"}), (0.0, {"preview"}), (0.5, {"change", "preview"}), (0.4, None)):
        pruner = transprune(alpha=alpha)
        assert kinds is None or {s.kind for s in pruner.needs(at)} == kinds
        parts[alpha] = pruner.score(seen, values, at)
        real = parts[alpha].masked_fill(~seen.valid, 0)
        assert real.sum(1).tolist() == pytest.approx([2, 2], abs=1e-5)
    assert torch.allclose(parts[0.5], (parts[1.0] + parts[0.0]) / 2)
    assert torch.allclose(parts[0.4], 0.4 * parts[1.0] + 0.6 * parts[0.0])
    coming = values[Signal("preview", "llm.layer.4", "text", "probs")]
    mean = coming[1, :, :4, :7].mean((0, 1))  # the second row has four text tokens
    assert torch.allclose(parts[0.0][1, :7], 2 * mean / mean.sum())


def test_rows_are_apart():
    """Scores in a batch are those alone, whatever stands in padded rows and columns."""
    pruner, seen, at = transprune(), tokens(14, 9, 3), stage("llm.layer.5", 0.5, accumulate=3)
    values = signals(pruner, seen, at)
    loud = {s: v.clone() for s, v in values.items()}
    for s, v in loud.items():
        if s.kind == "change":
            hidden = ~seen.valid if s.rows is None else ~values.rows_valid(s)
            v.masked_fill_(hidden, 40.0)
    loud = Signals(loud, {s: values.rows_valid(s) for s in values if s.rows in ("text", "all")})
    score = pruner.score(seen, loud, at)
    check_selection(pruner.select(seen, loud, at), (7, 4, 1), seen.host_alive, "transprune", at.site)
    for b, n in enumerate((14, 9, 3)):
        alone, its_values = row(b, seen, values)
        assert score[b, :n].tolist() == pytest.approx(pruner.score(alone, its_values, at)[0].tolist(), abs=1e-6)


def test_tokens_may_change_places():
    """No positional term: permuting the tokens permutes the scores."""
    pruner, seen, at = transprune(), tokens(10), stage("llm.layer.3", accumulate=2)
    values, order = signals(pruner, seen, at), torch.randperm(10)
    moved = {s: v[..., order] if s.rows != "all" else v for s, v in values.items()}
    moved = Signals(moved, {s: values.rows_valid(s) for s in values if s.rows in ("text", "all")})
    assert torch.allclose(pruner.score(seen, moved, at), pruner.score(seen, values, at)[:, order])


def test_no_text_behind_the_image():
    """Then the transition decides alone."""
    pruner, seen, at = transprune(), tokens(8), stage("llm.layer.3", accumulate=1)
    values = signals(pruner, seen, at)
    valid = {s: values.rows_valid(s) & (s.rows == "all") for s in values if s.rows in ("text", "all")}
    silent = Signals(dict(values), valid)
    assert torch.allclose(2 * pruner.score(seen, silent, at), transprune(alpha=1).score(seen, values, at))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"site": "llm.layer.3", "keep": 0.5, "accumulate": 0}], r"schedule.0.accumulate is 0. .* 1 or more"),
        ([{"site": "llm.layer.3", "keep": 0.5, "accumulate": 2.5}], r"schedule.0.accumulate is 2.5"),
        ([{"site": "llm.layer.3", "keep": 0.5, "accumulate": True}], r"schedule.0.accumulate is True"),
        ([{"site": "llm.layer.3", "keep": 0, "accumulate": 2}], r"schedule.0.accumulate has no effect: keep is 0"),
        ([{"site": "llm.layer.3", "keep": 0.5, "accumulat": 2}], r"no such setting .* Did you mean accumulate"),
        ([{"site": "llm.cache.3", "keep": 0.5}], r"schedule.0.site is llm.cache.3"),
        ([{"site": "vision.output", "keep": 0.5}], r"schedule.0.site is vision.output"),
    ],
)
def test_stage_messages(stages, message):
    """What a stage cannot mean is refused with its key."""
    with pytest.raises(ValueError, match=message):
        transprune().check(Schedule.from_config(stages))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("direction", "up", r"pruner.method.direction is 'up'. Choose from: signed, orthogonal."),
        ("alpha", 1.5, r"pruner.method.alpha is 1.5. Write a number in \[0, 1\]."),
        ("alpha", "half", r"pruner.method.alpha is 'half'"),
        ("accumulate", 0, r"pruner.method.accumulate is 0. Write how many layers"),
    ],
)
def test_method_messages(key, value, message):
    """The same for the method's own settings."""
    with pytest.raises(ValueError, match=message):
        transprune(**{key: value})


def test_published_budget():
    """The paper's schedule keeps 504, 360 and 72 of 576, 236 on average, and its shape is that of the yaml."""
    written = published("transprune", "high")
    schedule = Schedule.from_config(written)
    transprune().check(schedule)
    assert [s.count(576) for s in schedule] == [504, 360, 72]
    assert round(schedule.tokens_avg(576, 32)) == 236
    own = OmegaConf.to_container(OmegaConf.load(CONF / "pruner" / "transprune.yaml"))["schedule"]
    assert [s["site"] for s in own] == [f"{s['site']}/32" for s in written]
    assert [s["accumulate"] for s in own] == [s["accumulate"] for s in written] == [1, 3, 6]
    shape = [float(s["keep"].split("*")[1]) for s in own[1:]]
    assert shape == pytest.approx([360 / 504, 72 / 504], abs=5e-4)
    assert {s["positions"] for s in own} == {"renumber"}
