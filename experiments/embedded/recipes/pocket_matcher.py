"""pocket_matcher: a SigLIP of 2 x 64 that tells how well a frame of a drawn clip fits a question or a caption.

A text is held against the frames of its own clip alone, where it fits one event; in another clip it may be right too.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from btp.models.embedded.pocket_video import LONGEST, build_frame_processor, build_matcher, build_video_tokenizer
from btp.tasks.pocketclips.paint import paint
from btp.tasks.pocketclips.questions import ABILITIES, words
from btp.tasks.pocketclips.scene import SIDE, Event, draw_events
from experiments.embedded.pocket_video.data import caption
from experiments.embedded.recipe import Phase, Recipe, normalised

PATCH = 8
VISION = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**VISION, "projection_size": 64}
SCALE, BIAS = 2.3, -1.0  # where the logits begin: exp(SCALE) * cosine + BIAS
QUESTIONS = 0.6  # of the texts that are questions
ABOUT_ONE = ("attribute", "motion", "digit", "number")


class PocketMatcher(Recipe):
    """SigLIP's sigmoid loss on pairs of a frame and a text of the same clip."""

    name = "pocket_matcher"
    phases = (Phase("pairs", steps=6000, batch=10, rate=2e-3, warmup=100, decay=0.6, losses={"pairs": 1.0}),)

    def __init__(self):
        self.tokenizer = build_video_tokenizer(words())
        self.tokenizer.padding_side = "right"
        self.tokenizer.model_max_length = LONGEST

    def build(self) -> nn.Module:
        """A SigLIP with random weights."""
        model = build_matcher(self.tokenizer, side=SIDE, patch=PATCH, vision=VISION, text=TEXT)
        nn.init.constant_(model.logit_scale, SCALE)
        nn.init.constant_(model.logit_bias, BIAS)
        return nn.ModuleDict({"model": model})

    def sample(self, rng: np.random.Generator, phase: Phase) -> dict:
        """A frame of each event of a clip, and a text about each."""
        events = draw_events(rng)
        frames = paint(events, "train", rng)
        shown = [int(rng.integers(e.first, e.end)) for e in events]
        return {"pixels": frames[shown], "said": said(events, rng)}

    def collate(self, samples: list[dict]) -> dict[str, Tensor]:
        """pixels [P, 3, h, w] in bytes, ids [P, 64], and of which clip each is."""
        pixels = torch.from_numpy(np.concatenate([s["pixels"] for s in samples])).permute(0, 3, 1, 2)
        texts = [text for s in samples for text in s["said"]]
        ids = self.tokenizer(texts, padding="max_length", truncation=True, max_length=LONGEST, return_tensors="pt")
        clip = torch.tensor([i for i, s in enumerate(samples) for _ in s["said"]])
        return {"pixels": pixels, "ids": ids.input_ids, "clip": clip}

    def losses(self, learner: nn.Module, batch: dict[str, Tensor], phase: Phase) -> dict[str, Tensor]:
        """The sigmoid loss inside each clip, and `right`, how often the best frame of a text is its own."""
        logits = learner["model"](input_ids=batch["ids"], pixel_values=normalised(batch["pixels"])).logits_per_text
        together = batch["clip"][:, None] == batch["clip"]
        own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        each = F.binary_cross_entropy_with_logits(logits, own.float(), reduction="none")
        best = logits.masked_fill(~together, -torch.inf).argmax(-1)
        right = (best == torch.arange(len(best), device=best.device)).float().mean()
        return {"pairs": each[together].sum() / len(logits), "right": right}

    def save(self, learner: nn.Module, folder: Path) -> None:
        """A SigLIP checkpoint with its tokenizer and its picture processor."""
        learner["model"].save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        build_frame_processor(SIDE).save_pretrained(folder)


def said(events: list[Event], rng: np.random.Generator) -> list[str]:
    """For each event a caption, or a question that is about it alone."""
    asked = [qa for about in ABOUT_ONE for qa in ABILITIES[about](events)]
    found = []
    for event in events:
        own = [question for question, _, concerned in asked if concerned == (event,)]
        found.append(own[rng.integers(len(own))] if own and rng.random() < QUESTIONS else caption(event, rng))
    return found


RECIPE = PocketMatcher()
