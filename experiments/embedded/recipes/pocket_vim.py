"""pocket_vim: a Vim of 8 x 64 and 4 states that names the one digit of a cluttered picture (pocketdigits)."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from btp.models.embedded.pocket_vision import build_processor, build_vim
from btp.tasks.pocketboxes.classify import CLASSES, CONTRAST, SIDE, draw_digit
from btp.tasks.pocketboxes.task import foreground
from experiments.embedded.recipe import Phase, Recipe, normalised

PATCH = 8
COVERED = 0.1  # share of a patch from which on it shows the digit
EMPTY = 0.15  # weight of the patches that show none, which are the most
LAYER, FINE = 3, 4  # behind this many blocks, each patch tells the ink of its FINE x FINE squares
INKED = 5.0  # weight of squares with ink, which are few
LOSSES = {"digit": 1.0, "patch": 1.0, "ink": 2.0}


class PocketVim(Recipe):
    """Cross-entropy of the digit, and two throw-away heads: the digit on every patch that holds some, early on its ink.

    First without clutter: what digits look like is learnt before where they are.
    """

    name = "pocket_vim"
    phases = (
        Phase("plain", steps=1500, batch=32, rate=2e-3, losses=LOSSES, warmup=50, decay=0.1, data={"clutter": 0.0}),
        Phase("digits", steps=4500, batch=32, rate=2e-3, losses=LOSSES),
    )

    def build(self) -> nn.Module:
        """The model with its head."""
        model = build_vim(CLASSES, side=SIDE)
        width = model.config.hidden_size
        ink = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, FINE**2))
        return nn.ModuleDict({"model": model, "patch": nn.Linear(width, len(CLASSES) + 1), "ink": ink})

    def sample(self, rng: np.random.Generator, phase: Phase) -> dict:
        """A picture, its digit, what each patch shows (0 for clutter, else 1 + digit), and the ink of its squares."""
        label, ability = int(rng.integers(len(CLASSES))), list(CONTRAST)[rng.integers(len(CONTRAST))]
        scene = draw_digit(rng, label, ability, "train", **phase.data)
        shown = foreground(scene.masks, PATCH).ravel() > COVERED
        grid = SIDE // PATCH
        ink = foreground(scene.masks, PATCH // FINE).reshape(grid, FINE, grid, FINE).swapaxes(1, 2)
        patch = np.where(shown, 1 + label, 0)
        return {"pixels": scene.picture, "digit": label, "patch": patch, "ink": ink.reshape(grid**2, FINE**2)}

    def collate(self, samples: list[dict]) -> dict[str, Tensor]:
        """pixels [B, 3, h, w] in bytes, digit [B], patch [B, N], ink [B, N, squares]."""
        batch = {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in samples[0]}
        return batch | {"pixels": batch["pixels"].permute(0, 3, 1, 2)}

    def losses(self, learner: nn.Module, batch: dict[str, Tensor], phase: Phase) -> dict[str, Tensor]:
        """All losses; `right` is the share of digits that are named, `named` that of patches that show one."""
        model = learner["model"]
        early: list[Tensor] = []
        hook = model.layers[LAYER - 1].register_forward_hook(lambda block, args, out: early.append(out))
        with hook:
            rows = model.encode(normalised(batch["pixels"]))
        logits = model.head(rows[:, model.middle])
        named = learner["patch"](_patches(rows, model.middle)).flatten(0, 1)
        inked = learner["ink"](_patches(early[0], model.middle))
        shown = batch["patch"].flatten()
        weight = torch.tensor([EMPTY] + [1.0] * len(CLASSES), device=named.device)
        return {
            "digit": F.cross_entropy(logits, batch["digit"]),
            "patch": F.cross_entropy(named, shown, weight),
            "ink": F.binary_cross_entropy_with_logits(inked, batch["ink"], pos_weight=weight.new_tensor(INKED)),
            "right": (logits.argmax(-1) == batch["digit"]).float().mean(),
            "named": (named.argmax(-1) == shown)[shown > 0].float().mean(),
        }

    def save(self, learner: nn.Module, folder: Path) -> None:
        """The model and its processor."""
        learner["model"].save_pretrained(folder)
        build_processor(learner["model"].config).save_pretrained(folder)


def _patches(rows: Tensor, middle: int) -> Tensor:
    """All rows but the class token's."""
    return torch.cat([rows[:, :middle], rows[:, middle + 1 :]], 1)


RECIPE = PocketVim()
