"""pocket_mini: a LLaVA of 144 visual tokens and 8 decoder layers, for tests and as the seed of `pocket`.

Recognition happens inside the decoder: what each patch shows is read off its states behind decoder layer 4 of 8, so
that text cannot read a finished picture in layer 0. Descriptions and reading come first by themselves; what finds an
object by its looks needs more questions, and patches that know their place.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from btp.tasks.pocketvqa.layout import CELLS, COLORS, SIDE
from experiments.embedded.llava_recipe import TEXT, VISION, LlavaRecipe
from experiments.embedded.packed import answer_loss
from experiments.embedded.pocket.data import MARKS, NAMES, draw_sample
from experiments.embedded.recipe import Phase, normalised

PATCH = 8
DENSE = 4  # decoder layers before the losses on patches


def asked(questions: int, **weights: float) -> dict:
    """Settings of the data: questions per picture, and how often each ability is asked."""
    return {"questions": questions, "weights": weights}


class Heads(nn.Module):
    """Throw-away heads: what each patch shows and where it lies, what the whole picture holds."""

    def __init__(self, text: int, vision: int):
        super().__init__()
        self.norm = nn.LayerNorm(text)
        self.color = nn.Linear(text, len(COLORS) + 1)
        self.name = nn.Linear(text, len(NAMES) + 1)
        self.place = nn.Linear(text, CELLS * CELLS)
        self.anchor = nn.Linear(text, 1)
        self.marks = nn.Linear(vision, len(MARKS))


class PocketMini(LlavaRecipe):
    """The recipe of the small embedded model."""

    name = "pocket_mini"
    patch = PATCH
    vision = VISION | {"num_hidden_layers": 2}
    text = TEXT | {"num_hidden_layers": 8}
    phases = (
        Phase(
            "read",
            steps=1750,
            batch=16,
            rate=2e-3,
            warmup=200,
            decay=0.0,
            average=0.998,
            losses={"answer": 1.0, "color": 0.5, "name": 0.5, "marks": 0.3},
            data=asked(
                6,
                presence=1.0,
                attribute=0.8,
                counting=1.0,
                position=0.8,
                relation=1.2,
                same_as=1.2,
                digit=1.2,
                number=1.3,
            ),
        ),
        Phase(
            "find",
            steps=2150,
            batch=16,
            rate=2e-3,
            warmup=200,
            average=0.998,
            losses={"answer": 1.0, "color": 0.5, "name": 0.5, "place": 0.2, "anchor": 0.3, "marks": 0.3},
            data=asked(
                10,
                presence=2.0,
                attribute=1.5,
                counting=1.5,
                position=1.8,
                relation=1.8,
                same_as=1.5,
                digit=0.7,
                number=1.0,
            ),
        ),
        Phase(
            "relate",
            steps=4100,
            batch=16,
            rate=2e-3,
            warmup=200,
            average=0.998,
            losses={"answer": 1.0, "color": 0.3, "name": 0.3, "place": 0.1, "anchor": 0.2, "marks": 0.3},
            data=asked(
                12,
                presence=1.0,
                attribute=1.0,
                counting=2.5,
                position=1.2,
                relation=3.5,
                same_as=2.5,
                digit=0.5,
                number=1.0,
            ),
        ),
    )

    def build_heads(self) -> nn.Module:
        """Heads on the decoder's states of patches, and on the tower's class token."""
        return Heads(self.text["hidden_size"], self.vision["hidden_size"])

    def sample(self, rng: np.random.Generator, phase: Phase) -> dict:
        """A scene with its questions."""
        return draw_sample(rng, self.encode, grid=SIDE // PATCH, **phase.data)

    def losses(self, learner: nn.Module, batch: dict[str, Tensor], phase: Phase) -> dict[str, Tensor]:
        """Answers, patches behind decoder layer 4, class token of the tower."""
        model, heads = learner["model"], learner["heads"]
        seen = model.model.vision_tower(pixel_values=normalised(batch["pixels"]))
        found, states = answer_loss(model, seen.last_hidden_state[:, 1:], batch, self.prompt_head(), layer=DENSE)
        patches = heads.norm(states)
        grid = SIDE // PATCH
        cell = torch.arange(grid, device=patches.device) * CELLS // grid
        cells = (cell[:, None] * CELLS + cell).flatten().expand(len(patches), -1)
        for key, label in (("color", batch["color"]), ("name", batch["name"]), ("place", cells)):
            found[key] = F.cross_entropy(getattr(heads, key)(patches).flatten(0, 1), label.flatten())
        rare = torch.tensor(5.0, device=patches.device)
        anchor = heads.anchor(patches)[..., 0]
        found["anchor"] = F.binary_cross_entropy_with_logits(anchor, batch["anchor"], pos_weight=rare)
        found["marks"] = F.binary_cross_entropy_with_logits(heads.marks(seen.pooler_output), batch["marks"])
        return found


RECIPE = PocketMini()
