"""pocket_action: a VideoMAE of 6 x 96 that names the shape and the motion of the red thing in a clip (pocketmoves)."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from btp.models.embedded.pocket_vision import build_action, build_processor
from btp.tasks.pocketmoves.scene import CLASSES, FRAMES, MOVES, SHAPES, SIDE, STILL, Mover
from btp.tasks.pocketmoves.task import Clip, draw_clip
from btp.tasks.pocketvqa.layout import COLORS
from experiments.embedded.recipe import Phase, Recipe, normalised

PATCH, TUBE = 8, 2
LAYER = 4  # the throw-away heads read what this many blocks have made
EARLIER = {"heading": 2, "path": 3}  # two read earlier: the sense of a turn is told from where a thing was and will be
NAMES = (*SHAPES, "star", "digit")
GOES = (*MOVES, STILL)
HEADINGS = 8  # eighths of a circle
REACH = 8  # pixels that ways are measured in
TUBES = {"name": 1.0, "color": 1.0, "heading": 1.0, "goes": 2.0}
PATHS = TUBES | {"path": 2.0}
ALL = PATHS | {"class": 1.0}


class TubeHeads(nn.Module):
    """Throw-away heads: what a tube shows, in which colour, which way it heads just then, where it was and will be, and
    where it goes.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.name = nn.Linear(width, len(NAMES) + 1)
        self.color = nn.Linear(width, len(COLORS) + 1)
        self.heading = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, HEADINGS + 2))
        self.goes = nn.Linear(width, len(GOES) + 1)
        self.path = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4))


class PocketAction(Recipe):
    """Cross-entropy of the class, and of what each tube shows.

    What tubes show goes first, with the blocks in front of its heads alone. The class then trains at the full rate
    until most clips are right, and settles while the rate falls. Without headings and paths, behind the first blocks,
    no block tells the two senses of a turn apart (950 steps without a move; 500 with headings alone).
    """

    name = "pocket_action"
    phases = (
        Phase("tubes", steps=1500, batch=8, rate=2e-3, losses=TUBES, warmup=50, decay=0.1),
        Phase("paths", steps=800, batch=8, rate=2e-3, losses=PATHS, warmup=50, decay=0.1),
        Phase("moves", steps=6000, batch=8, rate=2e-3, losses=ALL, warmup=50, decay=0.0, until={"right": 0.85}),
        Phase("settle", steps=1000, batch=8, rate=2e-3, losses=ALL, warmup=50, decay=1.0),
    )

    def build(self) -> nn.Module:
        """The model with its heads."""
        model = build_action(CLASSES, side=SIDE, frames=FRAMES)
        return nn.ModuleDict({"model": model, "heads": TubeHeads(model.config.hidden_size)})

    def sample(self, rng: np.random.Generator, phase: Phase) -> dict:
        """A clip, its class, and what each tube shows."""
        clip = draw_clip(rng, int(rng.integers(len(CLASSES))), "train")
        return {"pixels": clip.frames, "class": clip.label} | tube_labels(clip)

    def collate(self, samples: list[dict]) -> dict[str, Tensor]:
        """pixels [B, 16, 3, h, w] in bytes, class [B], the rest [B, N]."""
        batch = {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in samples[0]}
        return batch | {"pixels": batch["pixels"].permute(0, 1, 4, 2, 3)}

    def losses(self, learner: nn.Module, batch: dict[str, Tensor], phase: Phase) -> dict[str, Tensor]:
        """All losses, of the tubes alone in their phase.

        `right`, `shape` and `move` are the shares of clips where class, shape and motion are named, `named`, `headed`
        and `went` those of the tubes that show a thing.
        """
        pixels = normalised(batch["pixels"])
        model, heads, label = learner["model"], learner["heads"], batch["class"]
        rows = model.videomae.embeddings(pixels, None)
        behind = {}
        for number, block in enumerate(model.videomae.encoder.layer[:LAYER], 1):
            rows = behind[number] = block(rows)
        found = self._tube_losses(heads, behind, batch)
        if "class" not in phase.losses:
            return found
        for block in model.videomae.encoder.layer[LAYER:]:
            rows = block(rows)
        logits = model.classifier(model.fc_norm(rows.mean(1)))
        guess = logits.argmax(-1)
        return found | {
            "class": F.cross_entropy(logits, label),
            "right": (guess == label).float().mean(),
            "shape": (guess // len(MOVES) == label // len(MOVES)).float().mean(),
            "move": (guess % len(MOVES) == label % len(MOVES)).float().mean(),
        }

    @staticmethod
    def _tube_losses(heads: TubeHeads, behind: dict[int, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        shown = batch["name"] > 0
        states = dict.fromkeys(TUBES, heads.norm(behind[LAYER])) | {key: behind[at] for key, at in EARLIER.items()}
        logits = {key: getattr(heads, key)(states[key]) for key in TUBES}
        right = {key: (logits[key].argmax(-1) == batch[key])[shown].float().mean() for key in TUBES}
        losses = {key: F.cross_entropy(logits[key].flatten(0, 1), batch[key].flatten()) for key in TUBES}
        losses["path"] = F.l1_loss(heads.path(states["path"])[shown], batch["path"][shown])
        return losses | {"named": right["name"], "headed": right["heading"], "went": right["goes"]}

    def save(self, learner: nn.Module, folder: Path) -> None:
        """The model and its processor."""
        learner["model"].save_pretrained(folder)
        build_processor(learner["model"].config).save_pretrained(folder)


def tube_labels(clip: Clip) -> dict[str, np.ndarray]:
    """What lies under the centre of each tube in its first frame: name, colour, heading and motion, 0 for the ground.

    A heading is the eighth of a circle that the way to the next tube's frame lies in; 1 stands still. A path is the way
    from two tubes before and to two tubes behind, (x, y) each, in shares of REACH.

    Returns:
        Arrays of [8 * 8 * 8], the path with 4 numbers each, in the order of the model's tubes: time, row, column.
    """
    grid = SIDE // PATCH
    shape = (FRAMES // TUBE, grid, grid)
    name, color, heading, goes = (np.zeros(shape, np.int64) for _ in range(4))
    path = np.zeros((*shape, 4), np.float32)
    at = (np.arange(grid) + 0.5) * PATCH
    for mover, boxes in zip(clip.movers, clip.boxes[:, ::TUBE, :, None], strict=True):
        x0, y0, x1, y1 = boxes.swapaxes(0, 1)  # each [8, 1]
        spot = ((at >= y0) & (at < y1))[:, :, None] & ((at >= x0) & (at < x1))[:, None, :]
        name[spot] = 1 + NAMES.index("digit" if mover.name.isdigit() else mover.name)
        color[spot] = 1 + list(COLORS).index(mover.color)
        heading[spot] = np.broadcast_to(_headings(mover)[:, None, None], shape)[spot]
        path[spot] = np.broadcast_to(_paths(mover)[:, None, None], path.shape)[spot]
        goes[spot] = 1 + GOES.index(mover.move)
    labels = {"name": name.ravel(), "color": color.ravel(), "heading": heading.ravel(), "goes": goes.ravel()}
    return labels | {"path": path.reshape(-1, 4)}


def _headings(mover: Mover) -> np.ndarray:
    """[8] 1 where it stands still, else 2 + eighth of a circle, of each tube; the last one looks back."""
    frames = np.arange(0, FRAMES, TUBE)
    after = np.minimum(frames + TUBE, FRAMES - 1)
    dx, dy = (mover.boxes[after] - mover.boxes[after - TUBE])[:, :2].T
    eighth = np.round(np.arctan2(dy, dx) / (2 * np.pi) * HEADINGS).astype(np.int64) % HEADINGS
    return np.where((dx == 0) & (dy == 0), 1, 2 + eighth)


def _paths(mover: Mover) -> np.ndarray:
    """[8, 4] ways from two tubes before and to two tubes behind, of each tube; less where the clip ends."""
    frames, far = np.arange(0, FRAMES, TUBE), 2 * TUBE
    corner = mover.boxes[:, :2].astype(np.float32)
    before, after = corner[np.maximum(frames - far, 0)], corner[np.minimum(frames + far, FRAMES - 1)]
    return np.concatenate([corner[frames] - before, after - corner[frames]], 1) / REACH


RECIPE = PocketAction()
