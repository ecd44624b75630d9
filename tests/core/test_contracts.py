"""Signals, selections, pruners and the ledger, by hand."""

import pytest
import torch
from checked_selection import check_selection

from btp.core.ledger import TokenLedger
from btp.core.pruner import Pruner, ScorePruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.site import Site
from btp.core.topk import top_k, untied
from btp.core.trace import Call, StageRecord, Trace


def tokens(*alive, total=None):
    """Tokens with these counts per row, and hidden states of one number."""
    N = max(alive)
    valid = torch.arange(N) < torch.tensor(alive)[:, None]
    index = torch.arange(N).expand(len(alive), N)
    return Tokens(
        hidden=torch.zeros(len(alive), N, 1),
        position=index,
        coord=torch.zeros(len(alive), N, 3, dtype=torch.long),
        image=torch.zeros_like(index),
        size=torch.ones_like(index),
        valid=valid,
        total=torch.tensor(total or alive),
        index=index,
    )


class ByIndex(ScorePruner):
    def score(self, tokens, signals, stage):
        return tokens.index.float()


def test_signal_defaults_and_messages():
    """Forms default, text sites are parsed, and what cannot be is refused."""
    assert Signal("attention", "llm.layer.1", "last").form == "probs"
    assert str(Signal("attention", "llm.layer.1", "last")) == "attention at llm.layer.1 (rows last, form probs)"
    for bad, message in [
        (("heat", "llm.layer.1"), "kind is 'heat'"),
        (("attention", "llm.layer.1"), "rows of a attention signal is None"),
        (("hidden", "llm.layer.1", "last"), "rows of a hidden signal"),
        (("keys", "llm.layer.1", None, "probs"), "form of a keys signal"),
        (("keys", "llm.input"), "cannot be seen at llm.input"),
    ]:
        with pytest.raises(ValueError, match=message):
            Signal(*bad)


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (("hidden", "llm.layer.1", "start"), r"A hidden signal cannot be seen at llm\.layer\.1"),
        (("hidden", "llm.cache.1"), r"cannot be seen at llm\.cache\.1"),
        (("hidden", "vision.mlp.1"), r"cannot be seen at vision\.mlp\.1"),
        (("keys", "vision.output"), r"cannot be seen at vision\.output"),
        (("attention", "vision.output", "cls"), r"cannot be seen at vision\.output"),
        (("pixels", "vision.layer.1"), r"A pixels signal cannot be seen at vision\.layer\.1"),
        (("pixels", "llm.input"), r"cannot be seen at llm\.input"),
        (("preview", "vision.layer.1", "last"), "cannot be seen in a vision tower, which has no text"),
        (("rotary", "vision.layer.1"), "cannot be seen in a vision tower"),
        (("update", "vision.layer.1"), "cannot be seen in a vision tower"),
        (("change", "vision.feature"), "cannot be seen in a vision tower"),
        (("attention", "vision.layer.1", "last"), "cannot be seen in a vision tower"),
        (("keys", "vision.layer.1", "text"), "cannot be seen in a vision tower"),
        (("hidden", "vision.output", "start"), "cannot be seen in a vision tower"),
        (("hidden", "vision.output", None, "normed"), "cannot be seen in a vision tower"),
        (("attention", "llm.layer.1", "cls"), r"a language model has no class token\. Use rows last or text"),
        (("hidden", "llm.layer.1", "cls"), "a language model has no class token"),
        (("attention", "llm.layer.1", "mean", "logits"), "only probs can be averaged over rows"),
        (("attention", "vision.layer.1", "mean", "logits"), "only probs can be averaged over rows"),
        (("preview", "llm.layer.1", "mean"), "rows of a preview signal is 'mean'"),
        (("update", "llm.layer.1", None, "norm"), "form of a update signal is 'norm'"),
    ],
)
def test_signals_that_cannot_be(signal, message):
    """Each tower shows what it has, at the sites where it is."""
    with pytest.raises(ValueError, match=message):
        Signal(*signal)


@pytest.mark.parametrize(
    ("signal", "site", "ready"),
    [
        (("hidden", "vision.output"), "vision.output", True),
        (("pixels", "vision.output"), "vision.output", True),
        (("hidden", "vision.feature"), "vision.output", True),
        (("attention", "vision.feature", "cls"), "vision.output", True),
        (("attention", "vision.layer.1", "cls"), "vision.mlp.1", True),
        (("attention", "vision.layer.1", "cls"), "vision.layer.1", False),
        (("attention", "vision.layer.1", "cls"), "vision.layer.2", True),
        (("attention", "vision.feature", "cls"), "vision.layer.1", False),
        (("hidden", "vision.layer.1"), "vision.layer.1", True),
        (("hidden", "vision.layer.2"), "vision.mlp.1", False),
        (("keys", "vision.layer.1"), "llm.input", True),
        (("hidden", "llm.input"), "vision.output", False),
        (("hidden", "llm.input", "start"), "llm.input", True),
        (("preview", "llm.layer.0", "last"), "llm.input", False),
        (("change", "llm.layer.1"), "llm.layer.1", False),
        (("rotary", "llm.layer.1"), "llm.layer.2", True),
    ],
)
def test_one_way_rule_everywhere(signal, site, ready):
    """What a tower computes in a layer is there behind it; between attention and MLP the attention is."""
    assert Signal(*signal).ready_for(Site.parse(site)) == ready


def test_one_way_rule():
    """A stage may use what ran before it, and what lies in front of it."""
    site = Site.parse("llm.layer.2")
    assert Signal("attention", "llm.layer.1", "last").ready_for(site)
    assert not Signal("attention", "llm.layer.2", "last").ready_for(site)
    assert Signal("hidden", "llm.layer.2").ready_for(site)
    assert Signal("preview", "llm.layer.2", "last").ready_for(site)
    assert not Signal("hidden", "llm.layer.3").ready_for(site)


def test_undeclared_signal():
    """Asking for what was not declared lists what was."""
    seen = Signals({Signal("hidden", "llm.layer.2"): torch.zeros(1)})
    with pytest.raises(KeyError, match=r"keys at llm\.layer\.1 was not declared. Declared: hidden at llm\.layer\.2"):
        seen[Signal("keys", "llm.layer.1")]
    with pytest.raises(KeyError, match="not declared"):
        seen.rows_valid(Signal("keys", "llm.layer.1", "text"))


def test_top_k_ties_and_ragged_rows():
    """Ties go to the lowest index; rows of different k are padded at the end; padding never wins."""
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0], [9.0, 1.0, 9.0, 9.0]])
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    assert top_k(scores, (2, 1), valid).tolist() == [[1, 2], [0, -1]]
    assert top_k(scores, (0, 0)).shape == (2, 0)
    assert top_k(torch.tensor([[float("nan"), 0.0, -1.0]]), (2,)).tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="one count per row"):
        top_k(scores, (1,))
    with pytest.raises(ValueError, match="Counts must lie in"):
        top_k(scores, (5, 1))


@pytest.mark.parametrize("counts", [(4, 4, 4), (5, 0, 3)])
def test_integers_without_ties_keep_what_a_stable_sort_keeps(counts):
    """Three numbers among twelve places are full of ties, in whole rows and in one that is padded."""
    generator = torch.Generator().manual_seed(0)
    valid = torch.tensor([[True] * 12, [True] * 12, [True] * 7 + [False] * 5])
    for _ in range(50):
        scores = torch.randint(2**31 - 3, 2**31, (3, 12), generator=generator)
        wanted = top_k(scores, counts, valid)
        assert torch.equal(top_k(untied(scores), counts, valid, distinct=True), wanted)


def test_score_pruner_counts_each_row():
    """Counts come from each row's original tokens and are capped by what is alive."""
    stage = Stage("llm.layer.2", 0.5)
    chosen = ByIndex().select(tokens(4, 2, total=[4, 6]), Signals(), stage)
    assert chosen.keep.tolist() == [[2, 3], [0, 1]]
    assert tokens(4, 2, total=[4, 6]).keep_counts(stage) == (2, 2)


@pytest.mark.parametrize("wrong", [lambda t: t.hidden, lambda t: t.index.float()[0], lambda t: t.index[:, :-1].float()])
def test_scores_of_another_shape(wrong):
    """A first pruner's commonest slip is refused with what was given and what is wanted."""

    class Slip(ScorePruner):
        def score(self, tokens, signals, stage):
            return wrong(tokens)

    with pytest.raises(ValueError, match=r"slip\.score returned .* at llm\.layer\.2, but .* \[B, N\] = \[2, 4\]"):
        Slip().select(tokens(4, 2), Signals(), Stage("llm.layer.2", 0.5))


def test_unknown_setting():
    """A setting the method does not have is refused, with the nearest one."""

    class Balanced(ByIndex):
        stage_settings = frozenset({"balance"})

    wrong = Schedule((Stage("llm.layer.2", 4, settings={"balence": 1}),))
    with pytest.raises(ValueError, match=r"schedule\.0\.balence is set, .* Did you mean balance\?"):
        Balanced().check(wrong)
    with pytest.raises(ValueError, match=r"known: none\). Remove it"):
        ByIndex().check(wrong)
    Balanced().check(Schedule((Stage("llm.layer.2", 4, settings={"balance": 1}),)))


def test_pruner_is_abstract():
    """A method without a decision cannot be made."""
    with pytest.raises(TypeError, match="select"):
        Pruner()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([[0, 2], [1, 0]], "not ascending"),
        ([[0, 2], [1, 1]], "not ascending"),
        ([[0, 5], [0, 1]], "not ascending"),
        ([[0, 2], [0, -1]], "not ascending"),
        ([[0, 1, 2], [0, 1, 2]], r"keeps \(2, 2\) tokens of its rows: shape \(2, 2\)"),
    ],
)
def test_bad_selection(keep, message):
    """Indices must be ascending, unique, in range, and as many as asked."""
    with pytest.raises(ValueError, match=message):
        check_selection(Selection(torch.tensor(keep)), (2, 2), (4, 3), "toy", "llm.layer.2")


def test_selection_types():
    """Not a Selection, or not integers."""
    with pytest.raises(TypeError, match=r"returned list at llm\.layer\.2"):
        check_selection([[0]], (1,), (1,), "toy", "llm.layer.2")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Return int64"):
        check_selection(Selection(torch.zeros(1, 1)), (1,), (1,), "toy", "llm.layer.2")


def test_good_ragged_selection():
    """Rows of different count, padded at the end; in any order where the method says so."""
    check_selection(Selection(torch.tensor([[0, 2], [1, -1]])), (2, 1), (3, 2), "toy", "llm.layer.2")
    check_selection(Selection(torch.tensor([[2, 0], [1, -1]]), ordered=True), (2, 1), (3, 2), "toy", "llm.layer.2")


@pytest.mark.parametrize("keep", [[[2, 2], [1, -1]], [[2, 3], [1, -1]], [[2, -1], [1, -1]], [[2, 0], [-1, 1]]])
def test_bad_ordered_selection(keep):
    """In any order indices are still unique, in range and padded at the end."""
    with pytest.raises(ValueError, match="not ascending, unique and in range"):
        check_selection(Selection(torch.tensor(keep), ordered=True), (2, 1), (3, 2), "toy", "llm.layer.2")


def test_ledger_by_hand():
    """Two rows, the second left padded; cut to 2 and 1 tokens, then to none."""
    visual = torch.tensor([[0, 1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0, 0]], dtype=torch.bool)
    valid = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]], dtype=torch.bool)
    ledger = TokenLedger.open(visual, valid)
    assert (ledger.total, ledger.text_counts, ledger.leads) == ((4, 2), (3, 3), (0, 2))
    first = ledger.at(0)
    assert first.visual_row.tolist() == [[1, 2, 3, 4], [3, 4, -1, -1]]
    assert not first.even

    keep = torch.tensor([[1, 3], [1, -1]])
    cut = ledger.cut(2, keep, (2, 1), renumber=False)
    assert cut.at(1) is first
    view = cut.at(2)
    assert view.place.tolist() == [[0, 2, 4, 5, 6], [-1, 2, 4, 5, 6]]
    assert view.attended.tolist() == [[True] * 5, [False] + [True] * 4]
    assert view.visual_row.tolist() == [[1, 2], [2, -1]]
    assert view.visual_index.tolist() == [[1, 3], [1, -1]]
    assert view.lengths == (5, 4)
    assert cut.rows_from(first, view, keep).tolist() == [[0, 2, 4, 5, 6], [0, 2, 4, 5, 6]]
    assert cut.text_rows(view).tolist() == [[3, 4], [3, 4]]
    assert view.lowered is None
    assert not view.closed
    assert view.size.tolist()[0] == [1, 1]

    none = torch.zeros(2, 0, dtype=torch.long)
    empty = cut.cut(3, none, (0, 0), renumber=True)
    assert empty.now.place.tolist() == [[0, 5, 6], [2, 5, 6]]
    assert empty.now.even
    assert empty.now.closed
    assert empty.now.lowered.tolist() == [[0, 1, 2, 3, 4, 4, 4], [0, 0, 0, 1, 2, 2, 2]]
    assert cut.rows_from(view, empty.now, none).tolist() == [[0, 3, 4], [1, 3, 4]]


def test_ledger_renumbers_once():
    """Positions lowered by one cut stay lowered by as much behind a cut that leaves positions as they are."""
    visual = torch.tensor([[0, 1, 1, 1, 1, 0]], dtype=torch.bool)
    ledger = TokenLedger.open(visual, torch.ones_like(visual))
    once = ledger.cut(0, torch.tensor([[0, 2, 3]]), (3,), renumber=True)
    assert once.now.lowered.tolist() == [[0, 0, 1, 1, 1, 1]]
    assert once.now.closed
    twice = once.cut(1, torch.tensor([[0, 2]]), (2,), renumber=False)
    assert twice.now.lowered.tolist() == [[0, 0, 1, 1, 1, 1]]
    assert not twice.now.closed
    assert twice.at(0) is once.now
    thrice = twice.cut(2, torch.tensor([[0, 1]]), (2,), renumber=True)
    assert thrice.now.lowered.tolist() == [[0, 0, 1, 2, 2, 2]]
    assert thrice.now.visual_index.tolist() == [[0, 3]]


def test_ledger_in_another_order():
    """The j-th of the kept tokens takes the j-th smallest of their places; sizes go with the tokens."""
    visual = torch.tensor([[0, 1, 1, 1, 0, 1, 0], [0, 0, 1, 1, 1, 0, 0]], dtype=torch.bool)
    valid = torch.tensor([[1] * 7, [0] + [1] * 6], dtype=torch.bool)
    ledger = TokenLedger.open(visual, valid)
    keep, sizes = torch.tensor([[3, 0, 1], [2, 0, -1]]), torch.tensor([[4, 5, 6], [7, 8, 0]])
    cut = ledger.cut(1, keep, (3, 2), renumber=True, sizes=sizes)
    view = cut.now
    assert view.visual_index.tolist() == [[3, 0, 1], [2, 0, -1]]
    assert view.place.tolist() == [[0, 1, 2, 4, 5, 6], [-1, 1, 2, 4, 5, 6]]
    assert view.visual_row.tolist() == [[1, 2, 4], [2, 3, -1]]
    assert cut.rows_from(cut.at(0), view, keep).tolist() == [[0, 5, 1, 4, 2, 6], [0, 1, 4, 2, 5, 6]]
    assert [row[:n] for row, n in zip(cut.original_place(view).tolist(), (3, 2), strict=True)] == [[5, 1, 2], [4, 2]]
    assert cut.entries(cut.at(0), view).tolist() == [[3, 0, 1], [2, 0, -1]]
    assert view.size.tolist() == [[4, 5, 6], [7, 8, 0]]
    again = cut.cut(2, torch.tensor([[0, 2], [1, -1]]), (2, 1), renumber=True).now
    assert again.size.tolist()[0] == [4, 6]
    assert again.visual_index.tolist() == [[3, 1], [0, -1]]


def test_trace_reads():
    """Averages are per row; a stage that withdrew nothing did not fire."""
    record = StageRecord(Site.parse("llm.layer.1"), (4, 2), (2, 2), torch.tensor([[0, 3], [0, 1]]))
    call = Call((4, 2), (3, 3), visual=[(4, 2), (2, 2)], stages=[record])
    trace = Trace("toy", [call])
    assert call.tokens_avg == (3.0, 2.0)
    assert trace.tokens_avg == [3.0, 2.0]
    assert trace.fired == {"llm.layer.1": True}
    assert trace.last.stages[0].kept == [[0, 3], [0, 1]]
    assert record.merged == [[], []]
    sizes = torch.tensor([[3, 1], [1, 2]])
    merged = StageRecord(Site.parse("llm.layer.1"), (4, 2), (2, 2), torch.tensor([[0, 3], [0, 1]]), sizes)
    assert merged.merged == [[0], [1]]
    with pytest.raises(IndexError, match="has not run"):
        _ = Trace("toy").last
