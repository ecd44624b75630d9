"""Prompts at the edge of what a prompt can be: rows that keep nothing, no text behind the picture, a picture last."""

import pytest
import tiny
import torch
from oracle import steps
from toys import Scatter, plan

from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal
from btp.core.topk import top_k
from btp.engine.attach import attach
from btp.pruners.dart import DART
from btp.pruners.divprune import DivPrune

UNEQUAL = [[2, "i", 4], [2, "i", 3, "i", 4]]  # a tenth of 9 tokens is none, of 18 it is one


class Three(Scatter):
    """Keeps three tokens, whatever the schedule says."""

    adaptive = True

    def select(self, tokens, signals, stage):
        counts = tuple(min(3, n) for n in tokens.host_alive)
        return Selection(top_k(self.score(tokens, signals, stage), counts, tokens.valid), counts=counts)


def alone(lvlm, inputs, row, pictures):
    """One row of a batch, without its padding."""
    real = inputs["attention_mask"][row].bool()
    ids, mask = (inputs[k][row : row + 1, real] for k in ("input_ids", "attention_mask"))
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": inputs["pixel_values"][pictures]}


@pytest.mark.parametrize(
    ("pruner", "schedule"),
    [
        (Three(), plan(("llm.layer.2", 0.1))),
        (Three(), plan(("llm.input", 0.1))),
        (
            Scatter(),
            Schedule((Stage("llm.layer.1", 0.1), Stage("llm.layer.2", 0.06, positions="renumber"))),
        ),
    ],
)
def test_a_row_that_keeps_nothing_is_the_same_alone(pruner, schedule):
    """Neither an adaptive method nor a neighbour with tokens left changes what becomes of it."""
    lvlm = tiny.shared("llava", dtype=torch.float64)
    inputs = tiny.prompts(lvlm, UNEQUAL)
    with attach(lvlm, pruner, schedule) as batch:
        logits = steps(lvlm, inputs)[1][:, 0]
    with attach(lvlm, pruner, schedule) as single:
        own = steps(lvlm, alone(lvlm, inputs, 0, slice(0, 1)))[1][:, 0]
    assert [s.kept[0] for s in batch[0].stages] == [s.kept[0] for s in single[0].stages]
    assert batch[0].visual[-1][0] == 0 < batch[0].visual[-1][1]
    assert torch.allclose(logits, own, atol=1e-9)


class Reads(Scatter):
    """Asks for the text's attention."""

    def needs(self, stage):
        return (Signal("attention", stage.site.previous_layer, "text"),)


def test_a_picture_last_is_refused():
    """The next token would be read from a visual token that a stage may withdraw."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[3, "i"], [2, "i", 4]])
    with attach(lvlm, Scatter(), plan(("llm.layer.2", 3))), pytest.raises(ValueError, match="ends in a visual token"):
        steps(lvlm, inputs)
    with attach(lvlm):
        steps(lvlm, inputs)


def test_attention_rows_of_no_text():
    """Where no row has text behind its picture there are no rows, and no error."""
    from btp.engine.hooks.attention_rows import attention_rows

    class View:
        attended = torch.ones(2, 5, dtype=torch.bool)
        visual_row = torch.tensor([[1, 2], [3, -1]])

    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    rows = attention_rows(query, key, None, 1.0, torch.zeros(2, 0, dtype=torch.long), View(), "probs")
    assert rows.shape == (2, 4, 0, 2)


def test_keeping_all_changes_nothing():
    """Neither DART's quota nor DivPrune's order of picking touches a prompt of which everything stays."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[3, "i", "i", "i", 1]])
    plain = steps(lvlm, inputs)[1]
    dart = DART(image_pivots=4, text_pivots=4, final_norm=True, visit_order="norm", count="quota")
    div = DivPrune(order="selection", distance="cosine")
    for pruner, schedule in (
        (dart, plan(("llm.layer.2", 1.0))),
        (div, plan(("llm.input", 1.0), positions="renumber")),
        (div, plan(("llm.input", 40), positions="renumber")),
    ):
        with attach(lvlm, pruner, schedule):
            assert torch.equal(steps(lvlm, inputs)[1], plain)
