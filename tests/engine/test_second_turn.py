"""A second turn on the cache of a pruned prompt: word by word it is right by hiding, in one piece it is refused."""

import pytest
import tiny
import torch
from oracle import hiding, withdrawn
from toys import Scatter, plan

from btp.engine.attach import attach

TURN = (7, 9, 11, 5)  # tokens of the second question
STAGES = plan(("llm.input", 0.8), ("llm.layer.1", 0.4), ("llm.layer.3", 2))
ROWS = {"one row": [[3, "i", 4]], "left padded": [[2, "i", 5], [1, "i", 1, "i", 2]]}


def talk(lvlm, inputs):
    """Logits behind the prompt and behind each word of the next turn."""
    rows = len(inputs["input_ids"])
    start = inputs["attention_mask"].cumsum(1) - 1
    with torch.no_grad():
        out = lvlm(**inputs, position_ids=start.clamp(min=0), use_cache=True)
        logits, mask = [out.logits[:, -1]], inputs["attention_mask"]
        for number, word in enumerate(TURN, 1):
            mask = torch.cat([mask, mask.new_ones(rows, 1)], 1)
            more = {"attention_mask": mask, "position_ids": start[:, -1:] + number}
            out = lvlm(input_ids=torch.full((rows, 1), word), use_cache=True, **more, **{tiny.CACHE: out[tiny.CACHE]})
            logits.append(out.logits[:, -1])
    return torch.stack(logits)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_second_question_word_by_word(attention, rows):
    """The picture as the first question left it, and nothing else, is what the second one sees."""
    lvlm = tiny.shared("llava", attention)
    inputs = tiny.prompts(lvlm, ROWS[rows])
    with attach(lvlm, Scatter(), STAGES) as trace:
        pruned = talk(lvlm, inputs)
    with hiding(lvlm, inputs, withdrawn(inputs, lvlm.visual_mask(inputs), trace[0])):
        hidden = talk(lvlm, inputs)
    torch.testing.assert_close(pruned, hidden, atol=2e-6, rtol=0)
    assert (pruned - talk(lvlm, inputs)).abs().max() > 1e-3
    assert trace[0].decode_steps == len(TURN)


def test_a_second_question_in_one_piece():
    """Refused by name, with what to do."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[3, "i", 4]])
    with torch.no_grad(), attach(lvlm, Scatter(), STAGES):
        out = lvlm(**inputs, use_cache=True)
        with pytest.raises(ValueError, match="a second turn on the same past_key_values"):
            lvlm(input_ids=torch.tensor([TURN]), use_cache=True, **{tiny.CACHE: out[tiny.CACHE]})
