"""pocket_det: a YOLOS of 6 x 96 that finds things on clutter (pocketboxes)."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import YolosForObjectDetection
from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss, box_iou

from btp.models.embedded.pocket_vision import build_detector, build_processor
from btp.tasks.pocketboxes.scene import NAMES, SIDE
from btp.tasks.pocketboxes.task import Scene, draw_scene
from experiments.embedded.recipe import Phase, Recipe, normalised

PATCH = 8
LAYER = 4  # the throw-away heads read what this many blocks have made; the rest gathers
REACH = 32  # pixels that the head's distances are measured in
EMPTY = 0.3  # weight of patches that show nothing, which are the most
NOTHING = 0.1  # weight of detections that match nothing, as in YOLOS
PATCHES = {"patch": 1.0, "sides": 1.0}
ALL = PATCHES | {"class": 1.0, "box": 5.0, "giou": 2.0, "early": 0.5}


class PatchHeads(nn.Module):
    """Throw-away heads: what lies on a patch, and how far the sides of its box are from the patch's centre."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.name = nn.Linear(width, len(NAMES) + 1)
        self.sides = nn.Linear(width, 4)


class PocketDet(Recipe):
    """Set loss of DETR (Carion et al. 2020, arXiv:2005.12872) behind the last two blocks, patches' losses before them.

    Without the patches' losses a detector of this size does not start to learn, and beside the others they do not
    either: they go first, on little clutter, with the blocks in front of their heads alone. The set loss then trains at
    the full rate until most things are found, and settles while the rate falls.
    """

    name = "pocket_det"
    phases = (
        Phase("patches", steps=2500, batch=16, rate=2e-3, losses=PATCHES, warmup=50, decay=0.1, data={"clutter": 0.3}),
        Phase("detect", steps=9000, batch=16, rate=2e-3, losses=ALL, decay=0.0, until={"found": 0.75}),
        Phase("settle", steps=2500, batch=16, rate=2e-3, losses=ALL, warmup=50, decay=1.0),
    )

    def __init__(self):
        matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
        self.criterion = ImageLoss(matcher, len(NAMES), NOTHING, losses=["labels", "boxes"])

    def build(self) -> nn.Module:
        """The model with its heads."""
        model = build_detector(NAMES, side=SIDE)
        return nn.ModuleDict({"model": model, "heads": PatchHeads(model.config.hidden_size)})

    def sample(self, rng: np.random.Generator, phase: Phase) -> dict:
        """A picture, its boxes as shares (x, y of the centre, width, height), and what each patch shows."""
        scene = draw_scene(rng, "train", **phase.data)
        x0, y0, x1, y1 = scene.boxes.T / SIDE
        boxes = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], 1).astype(np.float32)
        labels = np.array(scene.labels)
        return {"pixels": scene.picture, "labels": labels, "boxes": boxes} | patch_labels(scene)

    def collate(self, samples: list[dict]) -> dict[str, Tensor]:
        """pixels [B, 3, h, w] in bytes, name [B, N], sides [B, N, 4]; of all T things labels [T], boxes [T, 4].

        `count` [B] says how many of the things are in each picture.
        """
        stacked = {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in ("pixels", "name", "sides")}
        joined = {key: torch.from_numpy(np.concatenate([s[key] for s in samples])) for key in ("labels", "boxes")}
        count = torch.tensor([len(s["labels"]) for s in samples])
        return stacked | joined | {"count": count, "pixels": stacked["pixels"].permute(0, 3, 1, 2)}

    def losses(self, learner: nn.Module, batch: dict[str, Tensor], phase: Phase) -> dict[str, Tensor]:
        """All losses, of the patches alone in their phase.

        `found` is the share of things whose matched detection has the right name and an IoU above .5, `named` the share
        of their patches that are named, `foreground` that of all patches that are told from the ground.
        """
        model, heads = learner["model"], learner["heads"]
        pixels = normalised(batch["pixels"])
        rows = model.vit.embeddings(pixels)
        for block in model.vit.encoder.layer[:LAYER]:
            rows = block(rows)
        found = self._patch_losses(heads, rows[:, 1 : 1 + batch["name"].shape[1]], batch)
        if phase.name == "patches":
            return found
        answers = []
        for block in model.vit.encoder.layer[LAYER:]:
            rows = block(rows)
            answers.append(_detections(model, rows))
        sizes = batch["count"].tolist()
        targets = [
            {"class_labels": labels, "boxes": boxes}
            for labels, boxes in zip(batch["labels"].split(sizes), batch["boxes"].split(sizes), strict=True)
        ]
        *_, early, last = answers
        found |= self._set_losses(last, targets)
        early = self._set_losses(early, targets)
        found["early"] = early["class"] + 5 * early["box"] + 2 * early["giou"]
        return found

    @staticmethod
    def _patch_losses(heads: PatchHeads, patches: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        patches, shown = heads.norm(patches), batch["name"] > 0
        logits, weight = heads.name(patches), torch.tensor([EMPTY] + [1.0] * len(NAMES), device=patches.device)
        guess = logits.argmax(-1)
        return {
            "patch": F.cross_entropy(logits.flatten(0, 1), batch["name"].flatten(), weight),
            "sides": F.l1_loss(heads.sides(patches)[shown], batch["sides"][shown]),
            "named": (guess == batch["name"])[shown].float().mean(),
            "foreground": ((guess > 0) == shown).float().mean(),
        }

    def _set_losses(self, out: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        pairs = self.criterion.matcher(out, targets)
        criterion, count = self.criterion.to(out["logits"].device), sum(len(t["boxes"]) for t in targets)
        boxes = criterion.loss_boxes(out, targets, pairs, count)
        with torch.no_grad():
            hits = [
                (out["logits"][row, guess].argmax(-1) == target["class_labels"][true])
                & (_overlap(out["pred_boxes"][row, guess], target["boxes"][true]) > 0.5)
                for row, (target, (guess, true)) in enumerate(zip(targets, pairs, strict=True))
            ]
        return {
            "class": criterion.loss_labels(out, targets, pairs, count)["loss_ce"],
            "box": boxes["loss_bbox"],
            "giou": boxes["loss_giou"],
            "found": torch.cat(hits).float().mean(),
        }

    def save(self, learner: nn.Module, folder: Path) -> None:
        """The model and its processor."""
        learner["model"].save_pretrained(folder)
        build_processor(learner["model"].config).save_pretrained(folder)


def _detections(model: YolosForObjectDetection, rows: Tensor) -> dict[str, Tensor]:
    """What the model's heads read off the detection tokens behind a block."""
    tokens = model.vit.layernorm(rows)[:, -model.config.num_detection_tokens :]
    boxes = model.bbox_predictor(tokens).sigmoid()
    return {"logits": model.class_labels_classifier(tokens), "pred_boxes": boxes}


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    """IoU of each box (x, y of the centre, width, height) of [T, 4] with its partner."""
    corners = [torch.cat([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], 1) for b in (one, other)]
    return box_iou(*corners)[0].diagonal()


def patch_labels(scene: Scene) -> dict[str, np.ndarray]:
    """The thing that covers most of each patch: `name`, 0 where there is none, and the `sides` of its box.

    Returns:
        [N] name and [N, 4] distances (left, top, right, bottom) from the patch's centre, in shares of REACH.
    """
    grid = SIDE // PATCH
    tiles = scene.masks.reshape(-1, grid, PATCH, grid, PATCH).sum((2, 4)).reshape(len(scene.masks), -1)
    thing, shown = tiles.argmax(0), tiles.max(0) > 0
    name = np.where(shown, 1 + np.array(scene.labels)[thing], 0)
    centre = (np.arange(grid) + 0.5) * PATCH
    x, y = np.tile(centre, grid), np.repeat(centre, grid)
    sides = scene.boxes[thing] - np.stack([x, y, x, y], 1)
    return {"name": name, "sides": (sides / REACH).astype(np.float32)}


RECIPE = PocketDet()
