"""Who looks at a visual token, and how much, by hand."""

import pytest
import torch

from btp.pruners.text_attention import TextAttention, mean_over, nearest_text


def test_mean_over_rows_that_may_look():
    """Forbidden entries and padded rows do not count; a token nobody may look at ranks last."""
    low = -torch.inf
    attention = torch.tensor([[[[1.0, 2.0, low], [3.0, low, low], [9.0, 9.0, 9.0]]] * 2])  # [1, 2, 3, 3]
    rows = torch.tensor([[True, True, False]])
    assert mean_over(attention, rows).tolist() == [[2.0, 2.0, low]]


def test_nearest_text():
    """The text token with the highest mean cosine, ties to the first, padding never."""
    hidden = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, -50.0]]])
    valid = torch.tensor([[True, True, False]])
    text = torch.tensor([[[0.0, 1.0], [2.0, 1.0], [4.0, 2.0], [1.0, 0.4]]])
    shown = torch.tensor([[True, True, True, False]])
    assert nearest_text(hidden, valid, text, shown).tolist() == [[False, True, False, False]]
    assert not nearest_text(hidden, valid, text, torch.zeros_like(shown)).any()


@pytest.mark.parametrize(("key", "value"), [("score", "raw"), ("source", "first")])
def test_messages(key, value):
    """Unknown forms and sources are refused by their config key."""
    with pytest.raises(ValueError, match=f"pruner.method.{key} is '{value}'. Choose from"):
        TextAttention(**({"score": "logits", "source": "last"} | {key: value}))
