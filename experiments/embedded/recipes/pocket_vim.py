"""pocket_vim: a Vim of 8 x 64 and 4 states that names the one digit of a cluttered picture (pocketdigits)."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from btp.models.pocket_vision import MEAN, STD, build_processor, build_vim
from btp.tasks.pocketboxes.classify import CLASSES, CONTRAST, SIDE, draw_digit
from btp.tasks.pocketboxes.task import foreground
from experiments.embedded.recipe import Phase, Recipe

PATCH = 8
COVERED = 0.1  # share of a patch from which on it shows the digit
EMPTY = 0.15  # weight of the patches that show none, which are the most
LOSSES = {"digit": 1.0, "patch": 1.0}


class PocketVim(Recipe):
    """Cross-entropy of the digit, and a throw-away head that names the digit in every patch that it lies on.

    First on little clutter: what digits look like is learnt before where they are.
    """

    name = "pocket_vim"
    phases = (
        Phase("plain", steps=1500, batch=32, rate=2e-3, losses=LOSSES, warmup=50, decay=0.1, data={"clutter": 0.0}),
        Phase("digits", steps=4500, batch=32, rate=2e-3, losses=LOSSES),
    )

    def build(self) -> nn.Module:
        """The model with its head."""
        model = build_vim(CLASSES, side=SIDE)
        return nn.ModuleDict({"model": model, "patch": nn.Linear(model.config.hidden_size, len(CLASSES) + 1)})

    def sample(self, rng: np.random.Generator, phase: Phase) -> dict:
        """A picture, its digit, and what each patch shows: 0 for clutter, else 1 + digit."""
        label, ability = int(rng.integers(len(CLASSES))), list(CONTRAST)[rng.integers(len(CONTRAST))]
        scene = draw_digit(rng, label, ability, "train", **phase.data)
        shown = foreground(scene.masks, PATCH).ravel() > COVERED
        return {"pixels": scene.picture, "digit": label, "patch": np.where(shown, 1 + label, 0)}

    def collate(self, samples: list[dict]) -> dict[str, Tensor]:
        """pixels [B, 3, h, w] in bytes, digit [B], patch [B, N]."""
        batch = {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in samples[0]}
        return batch | {"pixels": batch["pixels"].permute(0, 3, 1, 2)}

    def losses(self, learner: nn.Module, batch: dict[str, Tensor], phase: Phase) -> dict[str, Tensor]:
        """Both losses; `right` is the share of digits that are named, `named` that of patches that show one."""
        model = learner["model"]
        rows = model.encode((batch["pixels"].float() / 255 - MEAN) / STD)
        logits = model.head(rows[:, model.middle])
        patches = torch.cat([rows[:, : model.middle], rows[:, model.middle + 1 :]], 1)
        named = learner["patch"](patches).flatten(0, 1)
        shown = batch["patch"].flatten()
        weight = torch.tensor([EMPTY] + [1.0] * len(CLASSES), device=named.device)
        return {
            "digit": F.cross_entropy(logits, batch["digit"]),
            "patch": F.cross_entropy(named, shown, weight),
            "right": (logits.argmax(-1) == batch["digit"]).float().mean(),
            "named": (named.argmax(-1) == shown)[shown > 0].float().mean(),
        }

    def save(self, learner: nn.Module, folder: Path) -> None:
        """The model and its processor."""
        learner["model"].save_pretrained(folder)
        build_processor(learner["model"].config).save_pretrained(folder)


RECIPE = PocketVim()
