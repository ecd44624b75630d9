"""KL per answer token: as torch works it out over the whole vocabulary, as long as both answers say the same."""

import pytest
import torch

from btp.runner.evaluation.answer_store import Answers
from btp.runner.evaluation.ways.token_kl import LIKELIEST, Drift, likeliest


def steps(words, forwards, seed, rows=2):
    return list(torch.randn(forwards, rows, words, generator=torch.Generator().manual_seed(seed)).mul(3).unbind(0))


def kept(logits, lengths):
    table = torch.stack([likeliest(step) for step in logits], dim=1).numpy()
    return [row[:n] for row, n in zip(table, lengths, strict=True)]


def kl(unpruned, own):
    both = (x.float().log_softmax(-1) for x in (own, unpruned))
    return torch.nn.functional.kl_div(*both, reduction="none", log_target=True).sum(-1)


def test_all_tokens_of_an_answer():
    """A small vocabulary is weighed whole; every forward counts until a row's answer ends, its own or the unpruned."""
    unpruned = steps(LIKELIEST, 4, 0)
    own = [step + 0.1 * more for step, more in zip(unpruned, steps(LIKELIEST, 4, 1), strict=True)]
    own = [torch.where(step == step.amax(-1, keepdim=True), step + 9, step) for step in own]  # says the same
    unpruned = [torch.where(own[t] == own[t].amax(-1, keepdim=True), x + 9, x) for t, x in enumerate(unpruned)]
    drift = Drift(kept(unpruned, [4, 2]), torch.device("cpu"))
    for step in own:
        drift.see(step)
    expected = torch.stack([kl(u, o) for u, o in zip(unpruned, own, strict=True)])
    assert drift.means([3, 4]) == pytest.approx(
        [float(expected[:3, 0].mean()), float(expected[:2, 1].mean())], abs=1e-5
    )


def test_nothing_is_compared_behind_the_first_other_token():
    """The token that differs is the last that both weighed behind the same words."""
    unpruned, own = steps(20, 3, 2, rows=1), steps(20, 3, 2, rows=1)
    own[1] = own[1].roll(1, dims=-1)
    drift = Drift(kept(unpruned, [3]), torch.device("cpu"))
    for step in own:
        drift.see(step)
    assert drift.means([3]) == pytest.approx([float(kl(unpruned[1], own[1])[0]) / 2], abs=1e-5)


def test_a_large_vocabulary_is_weighed_from_below():
    """Tokens beyond the likeliest count as one, which can only lower the divergence; itself it is 0 from."""
    unpruned, own = steps(5000, 1, 3, rows=1), steps(5000, 1, 4, rows=1)
    drift = Drift(kept(unpruned, [1]), torch.device("cpu"))
    drift.see(own[0])
    (found,) = drift.means([1])
    assert 0.5 * float(kl(unpruned[0], own[0])) < found <= float(kl(unpruned[0], own[0]))
    same = Drift(kept(unpruned, [1]), torch.device("cpu"))
    same.see(unpruned[0])
    assert same.means([1]) == pytest.approx([0.0], abs=1e-5)


def test_the_store_keeps_them(tmp_path):
    """As written; a sample without, or a broken file, gives nothing to compare with."""
    store, rows = Answers(tmp_path), kept(steps(30, 3, 5), [3, 1])
    store.add_steps(["a", "b"], rows)
    assert all((x == y).all() for x, y in zip(store.steps(["a", "b"]), rows, strict=True))
    assert store.steps(["a", "c"]) is None
    (tmp_path / "steps" / "b.npy").write_bytes(b"no array")
    assert store.steps(["a", "b"]) is None
