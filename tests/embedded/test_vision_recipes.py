"""Recipes of the embedded vision towers: what they draw, what they weigh, what they train and save."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor

from btp.tasks.pocketboxes.scene import NAMES
from btp.tasks.pocketboxes.task import PocketBoxes, foreground
from btp.tasks.pocketmoves.scene import CLASSES, MOVES
from btp.tasks.pocketmoves.task import PocketMoves
from btp.tasks.pocketvqa.layout import COLORS
from experiments.embedded.muon import Muon
from experiments.embedded.recipe import normalised
from experiments.embedded.recipes import pocket_action, pocket_det
from experiments.embedded.train import load_recipe

pytestmark = pytest.mark.long


@pytest.mark.parametrize("name", ["pocket_action", "pocket_det", "pocket_vim"])
def test_a_recipe_has_losses_gradients_and_a_model(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name
    learner, phase = recipe.build(), recipe.phases[-1]
    draw = [recipe.sample(np.random.default_rng([1, i]), phase) for i in range(2)]
    batch = recipe.collate(draw)
    again = recipe.collate([recipe.sample(np.random.default_rng([1, i]), phase) for i in range(2)])
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert batch["pixels"].dtype == torch.uint8
    found = recipe.losses(learner, batch, phase)
    assert set(phase.losses) <= set(found)
    total = sum(weight * found[key] for key, weight in phase.losses.items())
    assert torch.isfinite(total)
    total.backward()
    untouched = {key for key, p in learner.named_parameters() if p.grad is None or not p.grad.any()}
    assert {key for key in untouched if "cls_token" not in key and "key.bias" not in key} == set()
    recipe.save(learner.eval(), tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert AutoConfig.from_pretrained(tmp_path).model_type == learner["model"].config.model_type
    AutoImageProcessor.from_pretrained(tmp_path)


def test_the_optimiser_turns_the_maps_of_blocks_alone():
    """Muon takes linear maps of numbered blocks, however their list is called, and no table of decays."""
    for name, block in (
        ("pocket_det", "encoder.layer."),
        ("pocket_action", "encoder.layer."),
        ("pocket_vim", "layers."),
    ):
        learner = load_recipe(name).build()
        groups = Muon(learner, lr=1e-3).param_groups
        names = {id(p): key for key, p in learner.named_parameters()}
        turned = {names[id(p)] for g in groups if g["orthogonal"] for p in g["params"]}
        rest = {names[id(p)] for g in groups if not g["orthogonal"] for p in g["params"]}
        assert all(block in key and key.endswith(".weight") for key in turned)
        assert len(turned) >= 6 * 6
        assert not any("heads" in key or "A_log" in key or "A_b_log" in key for key in turned)
        assert len(turned) + len(rest) == len(names)
        if name == "pocket_vim":
            assert "model.layers.0.mixer.A_log" in rest


def test_tubes_are_labelled_by_what_lies_under_their_centres():
    clip = PocketMoves("train", 0, len(CLASSES)).clip(4)
    labels = {key: value.reshape(8, 8, 8, *value.shape[1:]) for key, value in pocket_action.tube_labels(clip).items()}
    shown = np.zeros((8, 8, 8), bool)
    for boxes in clip.boxes:
        for chunk in range(8):
            x0, y0, x1, y1 = boxes[2 * chunk]
            for row in range(8):
                for col in range(8):
                    shown[chunk, row, col] |= y0 <= row * 8 + 4 < y1 and x0 <= col * 8 + 4 < x1
    assert np.array_equal(labels["color"] > 0, shown)
    red = labels["color"] == 1 + list(COLORS).index("red")
    assert red.any((1, 2)).all()
    assert set(labels["goes"][red]) == {1 + MOVES.index("clockwise")}
    assert set(labels["name"][red]) == {1 + pocket_action.NAMES.index("circle")}
    assert set(labels["heading"][red]) <= {2 + eighth for eighth in range(8)}
    assert len(set(labels["heading"][red])) > 5  # a whole turn
    bx, by, ax, ay = labels["path"][2:6][red[2:6]].T  # y points down: clockwise is from x to y
    assert (bx * ay - by * ax > 0).all()


def test_patches_are_labelled_by_the_thing_that_covers_most():
    scene = PocketBoxes("train", 0, 50).scene(3)
    found = pocket_det.patch_labels(scene)
    assert np.array_equal(found["name"] > 0, foreground(scene.masks, 8).ravel() > 0)
    for patch in np.flatnonzero(found["name"]):
        row, col = divmod(patch, 12)
        cover = scene.masks[:, row * 8 : row * 8 + 8, col * 8 : col * 8 + 8].sum((1, 2))
        thing = cover.argmax()
        assert NAMES[found["name"][patch] - 1] == scene.targets[thing].name
        sides = found["sides"][patch] * 32 + np.array([col, row, col, row]) * 8 + 4
        assert np.allclose(sides, scene.boxes[thing])


def test_detections_that_are_right_are_found_and_cost_little():
    recipe = load_recipe("pocket_det")
    targets = [
        {"class_labels": torch.tensor([2, 0]), "boxes": torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.1, 0.3]])},
        {"class_labels": torch.tensor([4]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.2]])},
    ]
    logits, boxes = torch.zeros(2, 6, len(NAMES) + 1), torch.full((2, 6, 4), 0.1)
    logits[..., -1] = 9
    for row, (slots, target) in enumerate(zip(([4, 1], [3]), targets, strict=True)):
        for slot, label, box in zip(slots, target["class_labels"], target["boxes"], strict=True):
            logits[row, slot, label], boxes[row, slot] = 18, box
    found = recipe._set_losses({"logits": logits, "pred_boxes": boxes}, targets)
    assert found["found"] == 1
    assert found["class"] < 0.01
    assert found["box"] < 1e-6
    assert found["giou"].abs() < 1e-5
    boxes[0, 4, 0] += 0.12  # the first box no longer overlaps by half
    worse = recipe._set_losses({"logits": logits, "pred_boxes": boxes}, targets)
    assert worse["found"] == pytest.approx(2 / 3)
    assert worse["giou"] > 0.2


@pytest.mark.parametrize("name", ["pocket_action", "pocket_det"])
def test_a_first_phase_runs_the_blocks_in_front_of_its_heads_alone(name):
    recipe = load_recipe(name)
    learner, first = recipe.build(), recipe.phases[0]
    batch = recipe.draw(np.random.default_rng(0), first)
    sum(weight * recipe.losses(learner, batch, first)[key] for key, weight in first.losses.items()).backward()
    blocks = (learner["model"].videomae if name == "pocket_action" else learner["model"].vit).encoder.layer
    reached = [any(p.grad is not None for p in block.parameters()) for block in blocks]
    assert reached == [True] * 4 + [False] * 2


def test_recipes_train_what_the_model_answers():
    """The losses walk the blocks themselves, to read between them; the answers are those of the whole model."""
    torch.manual_seed(0)
    action, det = load_recipe("pocket_action"), load_recipe("pocket_det")
    learner, phase = action.build(), action.phases[-1]
    batch = action.draw(np.random.default_rng(0), phase)
    logits = learner["model"](pixel_values=normalised(batch["pixels"])).logits
    found = action.losses(learner, batch, phase)["class"]
    assert torch.allclose(found, torch.nn.functional.cross_entropy(logits, batch["class"]), atol=1e-6)
    learner, phase = det.build(), det.phases[-1]
    batch = det.draw(np.random.default_rng(0), phase)
    out = learner["model"](pixel_values=normalised(batch["pixels"]))
    sizes = batch["count"].tolist()
    targets = [
        {"class_labels": labels, "boxes": boxes}
        for labels, boxes in zip(batch["labels"].split(sizes), batch["boxes"].split(sizes), strict=True)
    ]
    whole = det._set_losses({"logits": out.logits, "pred_boxes": out.pred_boxes}, targets)
    found = det.losses(learner, batch, phase)
    assert all(torch.allclose(found[key], whole[key], atol=1e-5) for key in ("class", "box", "giou"))
