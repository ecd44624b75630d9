"""What is not finite is refused with pruner, stage and row, wherever a token really is, and read once a prefill."""

from dataclasses import replace

import pytest
import tiny
import torch
from pruners.hand import signals, stage, tokens
from torch.utils._python_dispatch import TorchDispatchMode
from toys import Content, Watch, plan

from btp.core.pruner import Pruner, ScorePruner
from btp.core.selection import MergePlan, Selection
from btp.core.signals import Signal, Signals
from btp.engine.attach import attach
from btp.engine.checks.finite import Finite
from btp.engine.decide import Decider
from btp.engine.hooks.deferred_checks import Doubts

ONE = plan(("llm.layer.2", 4))
NAN, INF = float("nan"), float("inf")
BATCH = [[1, "i", 2], [1, "i", 1, "i", 2]]


class Scores(ScorePruner):
    """Scores of its own choosing: `put(scores, tokens)`."""

    def __init__(self, put):
        self.put = put

    def score(self, tokens, signals, stage):
        return self.put(torch.ones(tokens.valid.shape), tokens)


def at(row, place, value):
    """One score of one row is `value`."""
    return lambda scores, tokens: scores.index_put((torch.tensor(row), torch.tensor(place)), torch.tensor(value))


def run(pruner, schedule=ONE, rows=BATCH, lvlm=None, **more):
    lvlm = lvlm or tiny.shared("llava")
    with torch.no_grad(), attach(lvlm, pruner, schedule) as trace:
        lvlm.generate(**tiny.prompts(lvlm, rows), max_new_tokens=3, do_sample=False, **more)
    return trace


@pytest.mark.parametrize(
    ("put", "found"),
    [
        (at(1, 3, NAN), "NaN at llm.layer.2, in row 1 of"),
        (at(0, 0, INF), "inf at llm.layer.2, in row 0 of"),
        (at(1, 2, -INF), "inf at llm.layer.2, in row 1 of"),
        (lambda scores, tokens: scores * NAN, "NaN at llm.layer.2, in rows 0, 1 of"),
        (lambda scores, tokens: scores.log().log(), "inf at llm.layer.2, in rows 0, 1 of"),
    ],
)
def test_scores(put, found):
    """NaN and inf, in one place or everywhere, in a run."""
    with pytest.raises(ValueError, match=f"pruner 'scores' scored tokens with {found} the batch, .* Scores are finite"):
        run(Scores(put))


def test_padding_may_hold_anything():
    """Row 0 has fewer tokens: what stands behind them is nobody's score. Whole numbers are finite anyway."""
    odd = Scores(lambda scores, tokens: scores.masked_fill(~tokens.valid, NAN))
    fine = Scores(lambda scores, tokens: scores)
    assert run(odd).last.stages[0].kept == run(fine).last.stages[0].kept
    run(Scores(lambda scores, tokens: scores.long()))


def test_scores_in_the_vision_tower():
    """A row is a picture there."""
    with pytest.raises(ValueError, match=r"scored tokens with NaN at vision\.output, in picture 2 of the batch"):
        run(Scores(at(2, 1, NAN)), plan(("vision.output", 4)))


def test_states_name_their_row():
    """A prompt that overflows spoils no other of its batch, and is told from it."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [[1, "i", 2], [1, "i", 2]])
    inputs["pixel_values"][1] *= INF
    message = (
        r"hidden at llm\.layer\.2 holds NaN, which pruner 'content' would rank at random at llm\.layer\.2, in row 1 of"
    )
    with torch.no_grad(), pytest.raises(ValueError, match=message), attach(lvlm, Content(), ONE):
        lvlm(**inputs)


class Made(Pruner):
    """Keeps the first tokens and gives them states, or merges others into them."""

    def __init__(self, value, merged):
        self.value, self.merged = value, merged

    def select(self, tokens, signals, stage):
        keep = torch.arange(4).expand(len(tokens.valid), 4)
        if not self.merged:
            return Selection(keep, states=torch.full((*keep.shape, tokens.hidden.shape[-1]), self.value))
        target = torch.arange(tokens.valid.shape[1]).clamp(max=3).expand_as(tokens.valid)
        return Selection(keep, MergePlan(target, torch.full(target.shape, self.value)))


@pytest.mark.parametrize("merged", [False, True])
def test_states_that_a_method_makes(merged):
    """Its own, or weights of a merge."""
    with pytest.raises(ValueError, match=r"pruner 'made' made states with NaN .* at llm\.layer\.2, in row 0 of"):
        run(Made(NAN, merged), rows=[[1, "i", 2]])
    run(Made(1.0, merged), rows=[[1, "i", 2]])


SIGNALS = [
    Signal("attention", "llm.layer.1", "last", "logits"),
    Signal("attention", "llm.layer.1", "text", "logits"),
    Signal("attention", "llm.layer.1", "text", "probs"),
    Signal("preview", "llm.layer.2", "last", "probs"),
    Signal("queries", "llm.layer.1", "all"),
    Signal("keys", "llm.layer.1"),
    Signal("values", "llm.layer.1", "text"),
    Signal("rotary", "llm.layer.1"),
    Signal("update", "llm.layer.1"),
    Signal("change", "llm.layer.1", "all"),
    Signal("hidden", "llm.layer.2", "text"),
]
HERE = stage()


def shown(signal, change, seen=None, values=None, doubts=None):
    """Show one signal, changed, to a pruner's decision."""
    seen = tokens(8, 5) if seen is None else seen
    values = signals(Watch(signal), seen, HERE) if values is None else values
    valid = {s: values.rows_valid(s) for s in values if s.rows in ("text", "all", "start")}
    Finite(doubts or Doubts()).shown("watch", HERE.site, seen, {signal: change(values[signal].clone())}, valid)


def poison(signal, value, row=1, whole=False):
    """`value` in a row's first place, or in all of them."""

    def change(x):
        mine = x[:, row] if signal.kind in ("rotary", "update", "change") else x[row]
        mine[...] = value if whole else mine
        mine[(0,) * mine.dim()] = value
        return x

    return change


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("signal", SIGNALS, ids=str)
def test_signals(signal, value, whole):
    """Every kind, each with its own axes."""
    word = "NaN" if value != value else "inf"
    with pytest.raises(ValueError) as error:
        shown(signal, poison(signal, value, whole=whole))
    assert f"{signal} holds {word}, which pruner 'watch' would rank at random at llm.layer.2" in str(error.value)
    assert "in row 1 of the batch" in str(error.value)


@pytest.mark.parametrize("signal", SIGNALS, ids=str)
def test_padding_of_signals(signal):
    """Places of no token, and rows of no text, are passed over."""
    seen = tokens(8, 5)
    values = signals(Watch(signal), seen, HERE)
    x = values[signal].movedim(1, 0) if signal.kind in ("rotary", "update", "change") else values[signal]
    axis = 1 if signal.kind == "hidden" else 2
    if signal.kind in ("attention", "preview"):
        gone = ~seen.valid[:, None, None].expand_as(x)
        if signal.rows == "text":
            gone = gone | ~values.rows_valid(signal)[:, None, :, None]
    else:
        real = seen.valid if signal.rows is None else values.rows_valid(signal)
        gone = ~real.view(2, *[1] * (axis - 1), -1, *[1] * (x.dim() - axis - 1)).expand_as(x)
    assert gone.any()
    x = x.masked_fill(gone, NAN)
    x = x.movedim(0, 1) if signal.kind in ("rotary", "update", "change") else x
    shown(signal, lambda _: x, seen, values)


def test_masked_logits():
    """-inf is what a mask says of some tokens; of all of a row it leaves nothing to rank by."""
    logits, probs = SIGNALS[1], SIGNALS[2]
    shown(logits, lambda x: x.index_fill(2, torch.tensor([0]), -INF))
    with pytest.raises(
        ValueError, match=r"holds nothing but -inf, which pruner 'watch' .* in rows 0, 1 of .* behind an"
    ):
        shown(logits, lambda x: torch.full_like(x, -INF))
    with pytest.raises(ValueError, match=r"holds inf, which pruner 'watch' .* in row 0 of"):
        shown(probs, poison(probs, -INF, row=0))


def test_signals_of_pictures_name_the_prompt():
    """What is seen per picture is told by the row whose tokens it is; a picture of nobody's tokens is passed over."""
    signal = Signal("attention", "vision.feature", "cls", "probs")
    seen = tokens(8, 5)
    seen = replace(seen, picture=seen.picture.masked_fill(seen.picture == 1, 2))
    x = torch.rand(3, 4, 1, 8)
    Finite(Doubts()).shown("watch", HERE.site, seen, {signal: x.index_fill(0, torch.tensor([1]), NAN)}, {})
    with pytest.raises(ValueError, match=r"at vision\.feature .* holds NaN, .* at llm\.layer\.2, in row 1 of"):
        Finite(Doubts()).shown("watch", HERE.site, seen, {signal: x.index_fill(0, torch.tensor([2]), NAN)}, {})


def test_nothing_is_read_before_the_device_has_caught_up():
    """On a device whose tensors cannot be read at all, every check is only noted."""
    seen = tokens(8, 5)
    tensors = {name: getattr(seen, name).to("meta") for name in ("hidden", "valid", "picture")}
    seen = replace(seen, **tensors)
    for signal in SIGNALS:
        values = signals(Watch(signal), tokens(8, 5), HERE)
        values = Signals(
            {s: x.to("meta") for s, x in values.items()},
            {s: values.rows_valid(s).to("meta") for s in values if s.rows in ("text", "all", "start")},
        )
        shown(signal, lambda x: x, seen, values, Doubts())


class Reads(TorchDispatchMode):
    """Counts how often the host reads a value."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def test_one_reading_settles_all():
    """Flags of every shape wait, and are read together; the first fault is said."""
    doubts = Doubts(wait=True)
    with Reads() as reads:
        doubts.expect(torch.tensor(True), "this holds")
        doubts.refuse(torch.tensor([0, 0, 0]), lambda found: ValueError("nor this"))
        doubts.refuse(torch.tensor([0, 2]), lambda found: ValueError(f"found {found}"))
        doubts.expect(torch.tensor(False), "this is not said")
    assert reads.number == 0
    with pytest.raises(ValueError, match=r"^found \[0, 2\]$"):
        doubts.settle()
    doubts.settle()  # nothing is left open


def test_a_fault_found_late_is_that_of_its_own_prefill(monkeypatch):
    """Where reading waits for the device, the first decode step says it: the rows are those of the same batch."""
    monkeypatch.setattr("btp.engine.decoder.stream.Doubts", lambda: Doubts(wait=True))
    lvlm = tiny.shared("llava")
    with torch.no_grad(), attach(lvlm, Scores(at(1, 0, NAN)), ONE) as trace:
        inputs = tiny.prompts(lvlm, BATCH)
        lvlm(**inputs)  # no step follows: it is said when the next prompt comes
        with pytest.raises(ValueError, match="in row 1 of the batch"):
            lvlm(**inputs)
        with pytest.raises(ValueError, match="in row 1 of the batch"):
            lvlm.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert trace.last.decode_steps == 0


def test_scores_of_the_wrong_shape():
    """One for each token, or none at all."""

    class Odd(Pruner):
        def select(self, tokens, signals, stage):
            return Selection(torch.arange(4).expand(len(tokens.valid), 4), scores=torch.ones(len(tokens.valid), 2))

    seen = tokens(8, 8)
    with pytest.raises(ValueError, match=r"pruner 'odd' returned scores of shape \(2, 2\) .* Return \(2, 8\)"):
        Decider(Odd(), Doubts()).ask(stage(keep=4), seen, {}, {}, (4, 4))
