"""Decode steps whose layers get all of their arguments from the host are left alone."""

import pytest
import tiny
import torch
from oracle import steps
from toys import Content, plan

from btp.engine.attach import attach
from btp.engine.decoder import stream


def decode(lvlm, rows, schedule, monkeypatch, forced=None):
    """Logits of prefill and steps, and what `needs_nothing` said in each step."""
    own, said = stream.needs_nothing, []

    def asked(*args):
        said.append(own(*args))
        return said[-1] if forced is None else forced

    with monkeypatch.context() as patch, attach(lvlm, Content(), schedule):
        patch.setattr(stream, "needs_nothing", asked)
        return steps(lvlm, tiny.prompts(lvlm, rows))[1], said


@pytest.mark.parametrize(
    ("attention", "rows", "positions", "alone"),
    [
        ("sdpa", [[2, "i", 5]], "original", True),
        ("sdpa", [[2, "i", 5]], "renumber", False),
        ("sdpa", [[2, "i", 5], [4, "i", 5]], "original", False),
        ("eager", [[2, "i", 5]], "original", False),
    ],
    ids=["even rows", "lowered positions", "padding", "additive masks"],
)
def test_who_is_left_alone(attention, rows, positions, alone, monkeypatch):
    """Only steps that need neither masks nor positions, and those come out as when looked at, to the last bit."""
    lvlm, schedule = tiny.shared("llava", attention), plan(("llm.layer.1", 4), positions=positions)
    logits, said = decode(lvlm, rows, schedule, monkeypatch)
    assert said
    assert set(said) == {alone}
    looked_at, _ = decode(lvlm, rows, schedule, monkeypatch, forced=False)
    assert torch.equal(logits, looked_at)
