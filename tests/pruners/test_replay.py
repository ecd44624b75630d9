"""A late question finds of a picture what an earlier one has left."""

import pytest
import tiny
import torch
from oracle import steps
from toys import Content, plan

from btp.engine.attach import attach
from btp.pruners.replay import Replay

STAGES = plan(("llm.input", 6), ("llm.layer.2", 3))


def recorded(lvlm, inputs, pruner=None):
    """Logits of each step, and what stayed by site."""
    with attach(lvlm, pruner or Content(), STAGES) as trace:
        _, logits = steps(lvlm, inputs)
    return logits, {str(stage.site): stage.kept for stage in trace[0].stages}


def test_the_same_question_again():
    """Replaying a prompt's own record changes nothing, in a batch with padding."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[3, "i", 4], ["i", 2]])
    logits, kept = recorded(lvlm, inputs)
    again, same = recorded(lvlm, inputs, Replay(kept))
    assert torch.equal(again, logits)
    assert same == kept


def test_a_late_question():
    """Another text behind the same picture: the tokens are those of the first question."""
    lvlm = tiny.shared("llava")
    _, kept = recorded(lvlm, tiny.prompts(lvlm, [[3, "i", 4]]))
    other = {site: [[8, 2, 5, 1, 0, 7][: len(rows[0])]] for site, rows in kept.items()}
    late, found = recorded(lvlm, tiny.prompts(lvlm, [[3, "i", 7]]), Replay(other))
    assert {site: [sorted(row) for row in rows] for site, rows in other.items()} == found
    assert late.isfinite().all()


def test_messages():
    """Other rows, and other pictures."""
    lvlm = tiny.shared("llava")
    _, kept = recorded(lvlm, tiny.prompts(lvlm, [[3, "i", 4]]))
    with pytest.raises(ValueError, match=r"replay has no record of 2 rows at llm\.input"):
        recorded(lvlm, tiny.prompts(lvlm, [[3, "i", 4], ["i", 2]]), Replay(kept))
    lost = {site: [[40 + i for i, _ in enumerate(rows[0])]] for site, rows in kept.items()}
    with pytest.raises(ValueError, match="replay was recorded on other pictures"):
        recorded(lvlm, tiny.prompts(lvlm, [[3, "i", 4]]), Replay(lost))
