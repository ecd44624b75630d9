"""BAViT: labels, loss and selection of the worked example, its weights on disk, and what it does to a detector."""

import pytest
import torch
from backbones import pictures, shared
from hand import stage, tokens

from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.engine.attach import attach
from btp.ops.token_classifier import accumulated_loss, box_foreground, foreground, patch_labels
from btp.pruners.bavit import BAViT

SMALL = {"layers": 2, "width": 24, "heads": 2, "patch": 8, "grid": 3, "seed": 0}
SHAPE = {"layers": None, "width": None, "heads": None, "patch": None, "grid": None, "seed": 0}
RULE = {"select": "threshold", "threshold": 0.5, "background": 0.0, "floor": 0.05, "weights": None}
SCORES = torch.tensor([[(0, 1), (1, 0), (2, 0), (0, 0)], [(0, 2), (0.5, 0), (-1, 1), (3, 0)]], dtype=torch.float32)


def test_labels_of_a_mask_and_of_boxes():
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[0, 4:16, 10:20] = True
    mask[0, 15:17, 15:17] = True
    for above, expected in ((0, [1, 1, 1, 1]), (0.1, [1, 1, 0, 0]), (0.25, [1, 0, 0, 0]), (0.5, [0, 0, 0, 0])):
        assert patch_labels(mask, 16, above).tolist() == [expected]
    flipped = patch_labels(mask.flip(2), 16, 0.1).view(2, 2)
    assert torch.equal(flipped.flip(1), patch_labels(mask, 16, 0.1).view(2, 2))
    valid = torch.ones_like(mask)
    valid[0, 16:] = False
    assert patch_labels(mask, 16, 0, valid).tolist() == [[1, 1, -1, -1]]
    boxes = box_foreground(torch.tensor([[10.0, 4, 20, 16], [0, 30, 2, 32]]), 32, 32)
    assert boxes.sum() == 12 * 10 + 4
    assert patch_labels(boxes[None], 16).tolist() == [[1, 1, 1, 0]]


def test_loss():
    labels = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 0]])
    assert float(accumulated_loss(SCORES, labels)) == pytest.approx(0.402890, abs=1e-6)
    labels[0, 3] = -1
    assert float(accumulated_loss(SCORES, labels)) == pytest.approx(0.361425, abs=1e-6)
    heavy = accumulated_loss(SCORES[:1, :1], torch.ones(1, 1, dtype=torch.long), weight=2.0)
    assert float(heavy) == pytest.approx(2 * 0.313262, abs=1e-5)


def test_selection():
    probability, valid = SCORES.softmax(-1)[..., 1], torch.ones(2, 4, dtype=torch.bool)
    assert probability[0].tolist() == pytest.approx([0.731059, 0.268941, 0.119203, 0.5], abs=1e-6)
    kept = {rho: foreground(probability, valid, 0.5, rho, 0.05)[1] for rho in (0.0, 0.5, 1.0)}
    assert kept == {0.0: (2, 2), 0.5: (3, 3), 1.0: (4, 4)}
    assert foreground(probability, valid, 0.99, 0.0, 0.05)[1] == (1, 1)
    assert foreground(probability, valid, 0.99, 0.0, 0.6)[1] == (3, 3)


def test_thresholds_and_budgets():
    method, pixels = BAViT(**RULE, **SMALL), torch.randn(2, 3, 24, 24)
    seen = tokens(9, 9)
    signals = Signals({Signal("pixels", "vision.layer.0"): pixels})
    probability = method.classifier(pixels).softmax(-1)[..., 1]
    found = method.select(seen, signals, stage("vision.layer.0", 0.5))
    assert method.adaptive
    for b in range(2):
        inside = (probability[b] >= 0.5).nonzero().flatten().tolist() or [int(probability[b].argmax())]
        assert found.keep[b, : found.counts[b]].tolist() == inside
    budget = BAViT(**RULE | {"select": "budget"}, **SMALL)
    assert not budget.adaptive
    found = budget.select(seen, signals, stage("vision.layer.0", 4))
    assert [sorted(row) for row in probability.topk(4).indices.tolist()] == found.keep.tolist()
    assert torch.equal(budget.explain(seen, signals, stage("vision.layer.0", 4))["foreground"], probability)


def test_weights_on_disk(tmp_path):
    method = BAViT(**RULE, **SMALL)
    method.save(tmp_path / "bavit")
    again = BAViT(**RULE | {"weights": str(tmp_path / "bavit")}, **SHAPE)
    pixels = torch.randn(1, 3, 16, 24)
    assert torch.equal(method.classifier(pixels), again.classifier(pixels))
    with pytest.raises(ValueError, match=r"layers is 3, but the classifier in .* was trained with 2\. Set it to that"):
        BAViT(**RULE | {"weights": str(tmp_path / "bavit")}, **SHAPE | {"layers": 3})
    with pytest.raises(ValueError, match="no token classifier can be read"):
        BAViT(**RULE | {"weights": str(tmp_path)}, **SHAPE)


@pytest.mark.parametrize("family", ["yolos", "yolos_mid"])
def test_a_detector_behind_it(family):
    """Class and detection tokens stay; all background kept is the detector as it was."""
    host, inputs = shared(family), pictures(shared(family), 4)
    front = Schedule.from_config([{"site": "vision.layer.0", "keep": 0.5}])
    with torch.no_grad():
        plain = host(**inputs).pred_boxes
        with attach(host, BAViT(**RULE | {"background": 1.0}, **SMALL), front):
            assert (host(**inputs).pred_boxes - plain).abs().max() < 1e-12
        with attach(host, BAViT(**RULE, **SMALL), front) as trace:
            assert (host(**inputs).pred_boxes - plain).abs().max() > 1e-6
    assert len(set(trace[0].stages[0].after)) > 1
    assert trace[0].text == (4,) * 4


MESSAGES = {
    "select": (lambda: BAViT(**RULE | {"select": "all"}, **SMALL), "select is 'all'"),
    "range": (lambda: BAViT(**RULE | {"floor": 2}, **SMALL), "floor is 2"),
    "shape": (lambda: BAViT(**RULE, **SHAPE), r"weights is null and so is pruner\.method\.layers"),
    "site": (
        lambda: BAViT(**RULE, **SMALL).check(Schedule.from_config([{"site": "vision.layer.1", "keep": 3}])),
        "looks at the picture once",
    ),
    "patches": (
        lambda: BAViT(**RULE, **SMALL | {"patch": 16}).select(
            tokens(9),
            Signals({Signal("pixels", "vision.layer.0"): torch.randn(1, 3, 24, 24)}),
            stage("vision.layer.0", 4),
        ),
        "into 1 patches of 16x16, but the model has 9 tokens",
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(case):
    act, message = MESSAGES[case]
    with pytest.raises(ValueError, match=message):
        act()
