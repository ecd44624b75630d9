"""Methods that decide themselves how many tokens each row keeps."""

import pytest
import tiny
import torch
from oracle import alone, steps
from toys import Content, Count, Fold, plan

from btp.core.selection import MergePlan, Selection
from btp.core.topk import top_k
from btp.engine.attach import attach

EACH = tiny.SIDE**2
BATCH = [[2, "i", 5], [1, "i", 1, "i", 2], [4], ["i", 1]]
SITES = ["llm.input", "llm.layer.0", "llm.layer.2", "vision.output"]


@pytest.mark.parametrize("positions", ["original", "renumber"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["llava", "llava_siglip"])
def test_ragged_counts(family, site, positions):
    """Rows of a batch keep as many as each would alone, and answer the same."""
    lvlm = tiny.shared(family)
    inputs = tiny.prompts(lvlm, BATCH)
    schedule = plan((site, 3), ("llm.layer.3", 2), positions=positions)
    with attach(lvlm, Count(), schedule) as batch:
        tokens, logits = steps(lvlm, inputs)
    counts = batch[0].stages[0].after
    assert counts[2] == 0
    assert len({counts[0], counts[1], counts[3]}) > 1, "the rows must differ, or raggedness is not seen"
    assert batch[0].visual[2] == counts
    for b in range(len(BATCH)):
        with attach(lvlm, Count(), schedule) as single:
            own_tokens, own = steps(lvlm, alone(inputs, b, EACH))
        assert torch.equal(own_tokens[0, -3:], tokens[b, -3:])
        assert (own[:, 0] - logits[:, b]).abs().max() < 1e-5
        assert [s.kept[0] for s in single[0].stages] == [s.kept[b] for s in batch[0].stages]
        assert single[0].tokens_avg[0] == batch[0].tokens_avg[b]


@pytest.mark.parametrize("site", ["llm.input", "vision.output"])
def test_ragged_merges(site):
    """Merging and replaced states work on ragged counts; rows and pictures alone give the same."""

    class Ragged(Fold):
        adaptive = True

        def select(self, tokens, signals, stage):
            counts = tuple((tokens.valid & (tokens.hidden[..., 0] > 0)).sum(1).tolist())
            keep = top_k(self.score(tokens, signals, stage), counts, tokens.valid)
            target = torch.where(tokens.valid, keep[:, :1], -1) if keep.shape[1] else torch.full(tokens.valid.shape, -1)
            return Selection(keep, MergePlan(target, torch.ones(target.shape)), counts=counts)

    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, BATCH)
    with attach(lvlm, Ragged(), plan((site, 3))) as batch:
        tokens, logits = steps(lvlm, inputs)
    record = batch[0].stages[0]
    assert len(set(record.after)) > 2
    for b in (0, 1, 3):
        with attach(lvlm, Ragged(), plan((site, 3))) as single:
            own_tokens, own = steps(lvlm, alone(inputs, b, EACH))
        assert torch.equal(own_tokens[0, -3:], tokens[b, -3:])
        assert (own[:, 0] - logits[:, b]).abs().max() < 1e-5
        n = record.after[b]
        assert single[0].stages[0].sizes[0].tolist() == record.sizes[b, :n].tolist()
        assert record.sizes[b, n:].sum() == 0
        assert sum(record.sizes[b].tolist()) == record.before[b]


def test_more_or_less_than_the_stage_says():
    """The stage's keep is an aim; all and none are counts too."""

    class Fixed(Content):
        adaptive = True

        def __init__(self, *counts):
            self.counts = counts

        def select(self, tokens, signals, stage):
            index = torch.arange(max(self.counts)).expand(len(self.counts), -1)
            keep = index.masked_fill(index >= torch.tensor(self.counts)[:, None], -1)
            return Selection(keep, counts=self.counts)

    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[2, "i", 5], [1, "i", 1, "i", 2]])
    for counts in ((9, 18), (0, 11), (0, 0), (1, 1)):
        with attach(lvlm, Fixed(*counts), plan(("llm.layer.1", 4))) as trace:
            steps(lvlm, inputs)
        assert trace[0].stages[0].after == counts
        assert trace[0].stages[0].fired == (counts != (9, 18))
        assert trace[0].visual[3] == counts
    for counts in ((4, 3, 0), (2, 2, 9), (0, 0, 0)):
        with attach(lvlm, Fixed(*counts), plan(("vision.output", 4))) as trace:
            steps(lvlm, inputs)
        assert trace[0].stages[0].after == (counts[0], counts[1] + counts[2])
        assert trace[0].projected == counts


@pytest.mark.parametrize("site", ["vision.layer.1", "vision.mlp.0"])
def test_pictures_alike_in_the_tower(site):
    """Inside the tower all pictures keep as many; a single one may keep what it likes."""
    lvlm = tiny.shared("llava")
    schedule = plan((site, 3))
    one = tiny.prompts(lvlm, [[2, "i", 5]])
    with attach(lvlm, Count(), schedule) as trace:
        steps(lvlm, one)
    assert 0 < trace[0].stages[0].after[0] < EACH
    refused = pytest.raises(ValueError, match=rf"schedule\.0 keeps \(.*\) tokens of its pictures at {site}")
    with refused, attach(lvlm, Count(), schedule):
        steps(lvlm, tiny.prompts(lvlm, BATCH))


class Claims(Content):
    """Returns counts it was made with."""

    def __init__(self, counts, adaptive=True):
        self.counts, self.adaptive = counts, adaptive

    def select(self, tokens, signals, stage):
        keep = super().select(tokens, signals, stage).keep
        return Selection(keep, counts=self.counts)


@pytest.mark.parametrize(
    ("pruner", "message"),
    [
        (Claims((2,), adaptive=False), r"pruner 'claims' returned counts at llm\.layer\.2, but it is not adaptive"),
        (Claims((10,)), r"decided to keep \(10,\) tokens at llm\.layer\.2, of which \(9,\) are alive"),
        (Claims((-1,)), "decided to keep"),
        (Claims((2, 2)), "Return one count per row"),
        (Claims((3,)), r"kept indices of shape \(1, 2\)"),
        (Claims((1,)), r"kept indices of shape \(1, 2\)"),
    ],
)
def test_refusals(pruner, message):
    """Counts come from adaptive methods alone, one per row, at most what is alive, and match the indices."""
    lvlm = tiny.shared("llava")
    with pytest.raises(ValueError, match=message), attach(lvlm, pruner, plan(("llm.layer.2", 2))):
        steps(lvlm, tiny.prompts(lvlm, [[1, "i", 2]]))
