"""Vim: its recurrence, its official names, and rows that are missing."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from transformers import AutoModelForImageClassification

from btp.models.scan import scan, scan_sequential
from btp.models.vim import VimConfig, VimForImageClassification

SMALL = {"image_size": 24, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4, "num_labels": 5}


def lively(model):
    """Weights far from their first values, so that nothing is hidden by a zero or a one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def mixer():
    """A mixer of 32 channels in float64."""
    return lively(VimForImageClassification(VimConfig(**SMALL))).layers[1].mixer.double()


@pytest.fixture
def model():
    """A Vim of 9 patches."""
    return lively(VimForImageClassification(VimConfig(**SMALL)))


def test_the_scan_is_the_recurrence_step_by_step():
    decay, inputs = torch.rand(7, 2, 3, dtype=torch.double), torch.randn(7, 2, 3, dtype=torch.double)
    state = torch.zeros(2, 3, dtype=torch.double)
    for t in range(7):
        state = decay[t] * state + inputs[t]
        assert torch.allclose(scan_sequential(decay, inputs)[t], state)
    assert torch.allclose(scan(decay, inputs), scan_sequential(decay, inputs))


def test_the_gradient_of_the_scan():
    decay, inputs = (torch.rand(5, 2, 3, dtype=torch.double, requires_grad=True) for _ in range(2))
    assert gradcheck(scan, (decay, inputs))
    weight = torch.randn(5, 2, 3, dtype=torch.double)
    ours = torch.autograd.grad((scan(decay, inputs) * weight).sum(), (decay, inputs))
    plain = torch.autograd.grad((scan_sequential(decay, inputs) * weight).sum(), (decay, inputs))
    for one, other in zip(ours, plain, strict=True):
        assert torch.allclose(one, other)


def test_a_scan_of_one_step():
    decay, inputs = (torch.rand(1, 3, requires_grad=True) for _ in range(2))
    scan(decay, inputs).sum().backward()
    assert torch.equal(inputs.grad, torch.ones(1, 3))
    assert torch.equal(decay.grad, torch.zeros(1, 3))


def test_parameters_have_their_official_names(model):
    mixer = {"A_log", "D", "A_b_log", "D_b", "in_proj.weight", "out_proj.weight"}
    for suffix in ("", "_b"):
        mixer |= {f"conv1d{suffix}.{kind}" for kind in ("weight", "bias")}
        mixer |= {f"dt_proj{suffix}.{kind}" for kind in ("weight", "bias")} | {f"x_proj{suffix}.weight"}
    blocks = {f"layers.{i}.mixer.{name}" for i in range(3) for name in mixer}
    blocks |= {f"layers.{i}.norm.weight" for i in range(3)}
    ends = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert set(model.state_dict()) == blocks | ends | {"norm_f.weight", "head.weight", "head.bias"}
    assert model.state_dict()["pos_embed"].shape == (1, 10, 32)
    assert model.state_dict()["layers.0.mixer.x_proj.weight"].shape == (2 + 2 * 4, 64)


def test_what_was_saved_is_loaded_by_the_auto_class(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 3, 24, 24)
    assert type(again) is VimForImageClassification
    assert torch.equal(model(pixels).logits, again(pixels).logits)


def test_steps_begin_between_a_thousandth_and_a_tenth():
    mixer = VimForImageClassification(VimConfig(**SMALL)).layers[2].mixer
    for part in (mixer.dt_proj, mixer.dt_proj_b):
        step = F.softplus(part.bias)
        assert 0.0009 < step.min() < step.max() < 0.11
    assert torch.allclose(mixer.A_b_log.exp(), torch.arange(1.0, 5).expand(64, 4))


def reference(mixer, rows, places, length, suffix):
    """One direction of one sequence, row by row at full length: a missing row puts nothing in, but the state decays."""
    conv, project, step = (getattr(mixer, f"{name}{suffix}") for name in ("conv1d", "x_proj", "dt_proj"))
    x = torch.zeros(length, conv.in_channels, dtype=rows.dtype)
    x[places] = mixer.in_proj(rows)[:, : conv.in_channels]
    u = F.silu(conv(x.T[None])[0, :, :length].T)
    low, put, read = project(u).split([mixer.rank, mixer.states, mixer.states], -1)
    delta = F.softplus(step(low))
    rate = -getattr(mixer, f"A{suffix}_log").exp()
    state, out = torch.zeros_like(rate), []
    for t in range(length):
        here = t in places
        later = next((p for p in places if p >= t), None)
        if later is None:
            break
        state = torch.exp(delta[later][:, None] * rate) * state
        if here:
            state = state + (delta[t] * u[t])[:, None] * put[t]
            out.append(state @ read[t] + u[t] * getattr(mixer, f"D{suffix}"))
    return torch.stack(out)


@pytest.mark.parametrize("places", [[0, 1, 2, 3, 4, 5, 6], [2, 3, 9], [0, 5, 6, 12], [11]])
def test_missing_rows_put_nothing_in_but_pass_time(mixer, places):
    length, rows = 13, torch.randn(1, len(places), 32, dtype=torch.double)
    back = [length - 1 - p for p in reversed(places)]
    forwards = reference(mixer, rows[0], places, length, "")
    backwards = reference(mixer, rows[0].flip(0), back, length, "_b").flip(0)
    gate = F.silu(mixer.in_proj(rows[0])[:, 64:])
    expected = mixer.out_proj((forwards + backwards) / 2 * gate)
    found = mixer(rows, torch.tensor([places]), length)
    assert torch.allclose(found[0], expected, atol=1e-12)


def test_no_missing_row_is_the_ordinary_case(mixer):
    rows = torch.randn(2, 9, 32, dtype=torch.double)
    assert torch.allclose(mixer(rows, torch.arange(9).expand(2, 9), 9), mixer(rows), atol=1e-12)


def test_a_batch_is_its_rows_one_by_one(mixer):
    rows = torch.randn(3, 4, 32, dtype=torch.double)
    places = torch.tensor([[0, 1, 2, 3], [1, 4, 6, 8], [0, 3, 5, 7]])
    found = mixer(rows, places, 9)
    for i in range(3):
        assert torch.allclose(found[i], mixer(rows[i : i + 1], places[i : i + 1], 9)[0], atol=1e-12)


def test_a_mirrored_sequence_with_mirrored_parameters_is_the_mirrored_answer(mixer):
    rows = torch.randn(1, 6, 32, dtype=torch.double)
    places = torch.tensor([[0, 2, 3, 7, 8, 10]])
    expected = mixer(rows, places, 11).flip(1)
    own = mixer.state_dict()
    mixer.load_state_dict({key: own[_twin(key)].clone() for key in own})
    assert torch.allclose(mixer(rows.flip(1), (10 - places).flip(1), 11), expected, atol=1e-12)


def _twin(key):
    head, dot, tail = key.partition(".")
    if head in ("in_proj", "out_proj"):
        return key
    if head.startswith("A"):
        return "A_log" if head == "A_b_log" else "A_b_log"
    return (head.removesuffix("_b") if head.endswith("_b") else head + "_b") + dot + tail


def test_the_class_token_stands_in_the_middle(model):
    pixels = torch.randn(1, 3, 24, 24)
    rows = model.encode(pixels)
    assert rows.shape == (1, 10, 32)
    assert torch.equal(model(pixels).logits, model.head(rows[:, 4]))
    with torch.no_grad():
        model.cls_token.add_(torch.randn(32))  # not by a constant, which a norm could take out
        model.patch_embed.proj.weight.zero_()
        model.pos_embed.zero_()
        for layer in model.layers:
            layer.mixer.out_proj.weight.zero_()
    rows = model.encode(pixels)[0]
    others = [i for i in range(10) if i != 4]
    assert all(torch.equal(rows[i], rows[0]) for i in others)
    assert not torch.equal(rows[4], rows[0])


def test_labels_give_a_loss(model):
    pixels, labels = torch.randn(2, 3, 24, 24), torch.tensor([1, 4])
    out = model(pixels, labels=labels)
    assert torch.equal(out.loss, F.cross_entropy(out.logits, labels))


def test_sizes_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match=r"has 32x24 pixels, but image_size is 24\. Resize it to 24x24"):
        model(torch.randn(1, 3, 32, 24))
    with pytest.raises(ValueError, match="image_size is 30, which patch_size 8 does not divide"):
        VimForImageClassification(VimConfig(**SMALL | {"image_size": 30}))
