"""pocket_video: a LLaVA-OneVision of 16 tokens a frame and 8 decoder layers that answers questions about drawn clips.

It begins from `pocket_mini`: the decoder is its own but for words that are new, and the tower's blocks are those of its
CLIP, whose norm in front of them is folded into patch kernels and places. What each token shows, which event it belongs
to and where its thing goes are read off its states behind decoder layer 4 of 8.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    LlavaForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from btp.models.embedded.pocket_video import build_video_model, build_video_processor, build_video_tokenizer
from btp.tasks.pocketclips.questions import words
from btp.tasks.pocketclips.scene import FRAMES, MOST, SIDE
from btp.tasks.pocketvqa.layout import COLORS
from experiments.embedded.llava_recipe import TEXT, VISION, LlavaRecipe
from experiments.embedded.packed import packed_loss
from experiments.embedded.pocket.data import pack_text
from experiments.embedded.pocket_video.data import GOES, LABELS, MARKS, NAMES, UNKNOWN, draw_sample
from experiments.embedded.recipe import Phase, normalised

PATCH = 8
GRID = SIDE // PATCH // 2  # tokens along the side of a frame, which the host pools by two
DENSE = 4  # decoder layers before the losses on tokens
SMALL = Path("btp/models/checkpoints/pocket_mini")
WEIGHTS = {
    "attribute": 1.5,
    "order": 2.0,
    "count": 0.7,
    "motion": 1.5,
    "digit": 1.5,
    "number": 2.0,
    "longest": 0.7,
    "describe": 0.7,
}


class Heads(nn.Module):
    """Throw-away heads: what each token shows, where that goes, which event it is in; what a frame holds."""

    def __init__(self, text: int):
        super().__init__()
        self.norm = nn.LayerNorm(text)
        self.color = nn.Linear(text, len(COLORS) + 1)
        self.name = nn.Linear(text, len(NAMES) + 1)
        self.goes = nn.Linear(text, len(GOES) + 1)
        self.event = nn.Linear(text, MOST)
        self.marks = nn.Linear(text, len(MARKS))


class PocketVideo(LlavaRecipe):
    """The recipe of the embedded video model."""

    name = "pocket_video"
    patch = PATCH
    vision = VISION | {"num_hidden_layers": 2, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    text = TEXT | {"num_hidden_layers": 8}
    architecture = LlavaOnevisionForConditionalGeneration
    phases = (
        Phase(
            "clips",
            steps=3200,
            batch=8,
            rate=2e-3,
            warmup=100,
            decay=0.6,
            losses={"answer": 1.0, "color": 0.3, "name": 0.5, "goes": 0.2, "event": 0.2, "marks": 0.3},
            data={"questions": 8, "weights": WEIGHTS},
        ),
    )

    def build_processor(self) -> ProcessorMixin:
        """The processor with the words of the questions about clips."""
        return build_video_processor(build_video_tokenizer(words()), SIDE, PATCH)

    def build_model(self) -> LlavaOnevisionForConditionalGeneration:
        """A model with random weights."""
        tokenizer = self.processor.tokenizer
        return build_video_model(tokenizer, side=SIDE, patch=PATCH, vision=self.vision, text=self.text)

    def build_heads(self) -> nn.Module:
        """Heads on the decoder's states of tokens, and on frames behind the projector."""
        return Heads(self.text["hidden_size"])

    def begin(self, learner: nn.Module, phase: Phase) -> None:
        """Take over what the small picture model knows."""
        small = LlavaForConditionalGeneration.from_pretrained(SMALL, dtype=torch.float32)
        old = PreTrainedTokenizerFast.from_pretrained(SMALL).get_vocab()
        drawn = self.draw(np.random.default_rng(0), phase)["pixels"][:2]
        inherit(learner["model"], small, old, self.processor.tokenizer.get_vocab(), normalised(drawn).flatten(0, 1))

    def sample(self, rng: np.random.Generator, phase: Phase) -> dict:
        """A clip with its questions."""
        return draw_sample(rng, self.encode, grid=GRID, **phase.data)

    def collate(self, samples: list[dict]) -> dict[str, Tensor]:
        """Text, labels, and pixels [B, 16, 3, h, w] in bytes."""
        batch = {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in ("pixels", *LABELS)}
        batch["pixels"] = batch["pixels"].permute(0, 1, 4, 2, 3)
        return batch | pack_text([s["parts"] for s in samples])

    def losses(self, learner: nn.Module, batch: dict[str, Tensor], phase: Phase) -> dict[str, Tensor]:
        """Answers, tokens behind decoder layer 4, frames behind the projector."""
        model, heads = learner["model"], learner["heads"]
        visual = model.model.get_video_features(normalised(batch["pixels"]), return_dict=True).pooler_output
        found, states = packed_loss(model, visual, batch, self.prompt_head(), layer=DENSE)
        assert states is not None
        tokens = heads.norm(states[:, :-1]).flatten(0, 1)  # without the newline
        for key in ("color", "name", "goes", "event"):
            found[key] = F.cross_entropy(getattr(heads, key)(tokens), batch[key].flatten(), ignore_index=UNKNOWN)
        frames = visual[:, :-1].unflatten(1, (FRAMES, -1)).mean(2)
        found["marks"] = F.binary_cross_entropy_with_logits(heads.marks(frames), batch["marks"])
        return found


@torch.no_grad()
def inherit(
    model: LlavaOnevisionForConditionalGeneration,
    small: LlavaForConditionalGeneration,
    old: dict[str, int],
    new: dict[str, int],
    frames: Tensor,
) -> None:
    """Fill `model` from a small LLaVA of the same widths.

    Args:
        model: To fill.
        small: Model of pictures.
        old, new: Their vocabularies; words that both know begin alike.
        frames: [F, 3, h, w] on which the scale of the old tower's first norm is measured.
    """
    source, target = small.state_dict(), model.state_dict()
    shared = [(new[word], old[word]) for word in new if word in old]
    into, out_of = (torch.tensor(column) for column in zip(*shared, strict=True))
    for key, value in target.items():
        if key.endswith(("embed_tokens.weight", "lm_head.weight")):
            value[into] = source[key][out_of]
        elif key in source and source[key].shape == value.shape and "vision_tower.embeddings" not in key:
            value.copy_(source[key])
        elif key.endswith("_proj.bias"):
            value.zero_()  # Qwen2 has them, Llama has not
    _inherit_patches(target, source, frames)
    model.load_state_dict(target)


def _inherit_patches(target: dict[str, Tensor], source: dict[str, Tensor], frames: Tensor) -> None:
    """Patch kernels and places, with the norm that CLIP has behind them and SigLIP has not, at its mean scale."""
    at = "model.vision_tower."
    kernel, places = (source[f"{at}embeddings.{name}_embedding.weight"] for name in ("patch", "position"))
    gain, shift = (source[f"{at}pre_layrnorm.{name}"] for name in ("weight", "bias"))
    side, wide = int((len(places) - 1) ** 0.5), SIDE // PATCH
    first = (side - wide) // 2
    grid = places[1:].unflatten(0, (side, side))[first : first + wide, first : first + wide].flatten(0, 1)
    patches = F.conv2d(frames, kernel, stride=PATCH).flatten(2).transpose(1, 2) + grid
    scale = gain / patches.std(-1).mean()
    target[f"{at}embeddings.patch_embedding.weight"].copy_(kernel * scale[:, None, None, None])
    target[f"{at}embeddings.patch_embedding.bias"].zero_()
    target[f"{at}embeddings.position_embedding.weight"].copy_(grid * scale + shift)


RECIPE = PocketVideo()
