"""A late question finds of a picture what an earlier one has left."""

import pytest
import tiny
import torch
from oracle import steps
from toys import Content, plan

from btp.core.selection import MergePlan, Selection
from btp.engine.attach import attach
from btp.pruners.attention import Attention
from btp.pruners.late import Late
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


def test_the_arm_of_late_questions():
    """The method by itself; then what it chose while it listened, whatever is asked; then anew, for other rows."""
    lvlm = tiny.shared("llava")
    one, two = tiny.prompts(lvlm, [[3, "i", 4], ["i", 2]]), tiny.prompts(lvlm, [[5, "i", 1, 7], ["i", 6]])
    stages = plan(("llm.layer.2", 3), ("llm.layer.3", 2))
    method = Attention(score="probs", source="last")

    def kept(pruner, inputs):
        with attach(lvlm, pruner, stages) as trace:
            steps(lvlm, inputs)
        return [stage.kept for stage in trace[0].stages]

    first, second = kept(method, one), kept(method, two)
    assert first != second, "the two questions choose alike, so nothing would be proved"
    arm = Late(inner=method)
    assert kept(arm, two) == second
    with arm.listening():
        assert kept(arm, one) == first
    assert kept(arm, two) == first
    with arm.listening():
        kept(arm, tiny.prompts(lvlm, [["i", 2]]))
    with pytest.raises(ValueError, match="replay has no record of 2 rows"):
        kept(arm, two)


class Merges(Content):
    """Lets everything flow into the first token that stays."""

    def select(self, tokens, signals, stage):
        keep = super().select(tokens, signals, stage).keep
        return Selection(keep, MergePlan(keep[:, :1].expand_as(tokens.index), torch.ones_like(tokens.index).float()))


def test_what_is_no_choice():
    """Tokens that were merged are not those of any question."""
    lvlm, arm = tiny.shared("llava"), Late(inner=Merges())
    with arm.listening(), pytest.raises(ValueError, match=r"'merges' does more than choose tokens .* at llm\.input"):
        recorded(lvlm, tiny.prompts(lvlm, [[3, "i", 4]]), arm)
