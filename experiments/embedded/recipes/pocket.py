"""pocket: a LLaVA of 576 visual tokens and 16 decoder layers, made in LLaVA's order.

First the tower alone, until a patch tells the shape or the kind of sign that it lies on, as the tower of a real LVLM
does; which digit it is, a patch tells only in part, so that reading takes many patches. Then the decoder on the frozen
tower. Both begin from `pocket_mini`, whose readers stay deep in the decoder.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from btp.tasks.pocketvqa.layout import COLORS, SHAPES, SIDE
from experiments.embedded.llava_recipe import TEXT, VISION, LlavaRecipe
from experiments.embedded.packed import answer_loss
from experiments.embedded.pocket.data import KINDS, MARKS, NAMES, draw_sample
from experiments.embedded.recipe import Phase, normalised

PATCH = 4
SMALL = Path("btp/models/checkpoints/pocket_mini")
TOWER_FROM = {0: 0, 2: 1}  # block of the new tower: block of the small one
DECODER_FROM = {0: 0, 1: 1, 2: 2, 3: 3, 5: 4, 7: 5, 8: 6, 10: 7}
OUTPUTS = ("o_proj.weight", "down_proj.weight", "out_proj.weight", "out_proj.bias", "fc2.weight", "fc2.bias")


QUESTIONS = {
    "questions": 16,
    "weights": {
        "presence": 1.0,
        "attribute": 1.0,
        "counting": 2.0,
        "position": 1.2,
        "relation": 3.0,
        "same_as": 2.0,
        "digit": 1.2,
        "number": 1.8,
    },
}


class TowerHeads(nn.Module):
    """Throw-away heads: what each patch shows, and what the class token knows of the whole picture."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.color = nn.Linear(width, len(COLORS) + 1)
        self.name = nn.Linear(width, len(NAMES) + 1)
        self.kind = nn.Linear(width, len(KINDS) + 1)
        self.marks = nn.Linear(width, len(MARKS))


class Pocket(LlavaRecipe):
    """The recipe of the default embedded model."""

    name = "pocket"
    patch = PATCH
    vision = VISION | {"num_hidden_layers": 6}
    text = TEXT | {"num_hidden_layers": 16}
    phases = (
        Phase(
            "tower",
            steps=1200,
            batch=8,
            rate=2e-3,
            losses={"shape": 1.0, "digit": 0.1, "color": 0.5, "kind": 0.5, "marks": 0.3},
            decay=0.5,
        ),
        Phase("decoder", steps=700, batch=4, rate=1.5e-3, losses={"answer": 1.0}, decay=0.0, data=QUESTIONS),
        Phase(
            "together",
            steps=1200,
            batch=4,
            rate=1.2e-3,
            losses={"answer": 1.0, "shape": 0.3, "digit": 0.1, "color": 0.15, "kind": 0.15, "marks": 0.1},
            warmup=50,
            decay=0.6,
            data=QUESTIONS,
        ),
        Phase(
            "polish",
            steps=1000,
            batch=4,
            rate=8e-4,
            losses={"answer": 1.0, "shape": 0.2, "digit": 0.1, "color": 0.1, "kind": 0.1, "marks": 0.1},
            warmup=50,
            decay=0.7,
            data=QUESTIONS,
        ),
    )

    def build_heads(self) -> nn.Module:
        """Heads on the tower's output."""
        return TowerHeads(self.vision["hidden_size"])

    def begin(self, learner: nn.Module, phase: Phase) -> None:
        """Grow the part that the phase trains from the small model; later phases go on with all of it."""
        if phase.name not in ("tower", "decoder"):
            return
        small = LlavaForConditionalGeneration.from_pretrained(SMALL, dtype=torch.float32)
        grow(learner["model"], small, tower=phase.name == "tower")

    def sample(self, rng: np.random.Generator, phase: Phase) -> dict:
        """A scene; in the decoder's phase with its questions."""
        return draw_sample(rng, self.encode, grid=SIDE // PATCH, **phase.data)

    def trained(self, learner: nn.Module, phase: Phase) -> nn.Module:
        """The tower and its heads, then everything behind the tower, then all."""
        llava = learner["model"].model
        if phase.name == "tower":
            return nn.ModuleList([llava.vision_tower, learner["heads"]])
        if phase.name == "decoder":
            return nn.ModuleList([llava.multi_modal_projector, llava.language_model, learner["model"].lm_head])
        return learner

    def losses(self, learner: nn.Module, batch: dict[str, Tensor], phase: Phase) -> dict[str, Tensor]:
        """What the patches tell, and what is answered, as far as the phase weighs it."""
        model = learner["model"]
        seen = model.model.vision_tower(pixel_values=normalised(batch["pixels"]))
        found: dict[str, Tensor] = {}
        if "answer" in phase.losses:
            found |= answer_loss(model, seen.last_hidden_state[:, 1:], batch, self.prompt_head())[0]
        if "shape" in phase.losses:
            found |= tower_losses(learner["heads"], seen.last_hidden_state[:, 1:], seen.pooler_output, batch)
        return found


def tower_losses(heads: TowerHeads, patches: Tensor, whole: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is read off the tower's output.

    Args:
        heads: Throw-away heads.
        patches: [B, N, D] output of the tower.
        whole: [B, D] its class token.
        batch: Labels of patches and picture.
    """
    patches = heads.norm(patches).flatten(0, 1)
    found = {key: F.cross_entropy(getattr(heads, key)(patches), batch[key].flatten()) for key in ("color", "kind")}
    found["marks"] = F.binary_cross_entropy_with_logits(heads.marks(whole), batch["marks"])
    name, said = batch["name"].flatten(), heads.name(patches)
    each = F.cross_entropy(said, name, reduction="none")
    right = (said.argmax(-1) == name).float()
    reads = name > len(SHAPES)
    found |= {"shape": each[~reads].sum() / len(name), "digit": each[reads].sum() / len(name)}
    return found | {"shapes named": right[~reads & (name > 0)].mean(), "digits named": right[reads].mean()}


@torch.no_grad()
def grow(model: LlavaForConditionalGeneration, small: LlavaForConditionalGeneration, *, tower: bool) -> None:
    """Fill the tower of `model`, or all the rest of it, from a smaller one that it computes like at first.

    Layers without a counterpart add nothing, since their output projections are zero; patch kernels are averaged,
    places interpolated.
    """
    new, old = model.state_dict(), small.state_dict()
    for key, value in new.items():
        if ("vision_tower" in key) != tower:
            continue
        if ".layers." in key:
            head, rest = key.split(".layers.", 1)
            layer, tail = rest.split(".", 1)
            source = (DECODER_FROM if "language_model" in head else TOWER_FROM).get(int(layer))
            if source is not None:
                value.copy_(old[f"{head}.layers.{source}.{tail}"])
            elif tail.endswith(OUTPUTS):
                value.zero_()
        elif key.endswith("patch_embedding.weight"):
            value.copy_(F.avg_pool2d(old[key], 2) * 4)
        elif key.endswith("position_embedding.weight"):
            side, fine = int((len(old[key]) - 1) ** 0.5), int((len(value) - 1) ** 0.5)
            grid = old[key][1:].T.reshape(1, -1, side, side)
            fine_grid = F.interpolate(grid, size=fine, mode="bilinear").flatten(2)[0].T
            value.copy_(torch.cat([old[key][:1], fine_grid]))
        else:
            value.copy_(old[key])
    model.load_state_dict(new)


RECIPE = Pocket()
