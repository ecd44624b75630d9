"""What the recipes of the embedded LLaVAs share: processor, token ids, build, batches of pictures, checkpoints."""

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedModel, ProcessorMixin

from btp.models.embedded.pocket import build_model, build_processor
from btp.tasks.pocketvqa.layout import SIDE
from btp.tasks.pocketvqa.questions import words
from experiments.embedded.pocket.data import collate
from experiments.embedded.recipe import Recipe

VISION = {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 4}
TEXT = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 4}


class LlavaRecipe(Recipe):
    """A model that looks and answers in words: questions packed behind one picture, or behind what its class says.

    Attributes:
        patch: Side of a patch in pixels.
        vision, text: Sizes of tower and decoder.
        architecture: Class of the model in transformers.
    """

    patch: ClassVar[int]
    vision: ClassVar[dict]
    text: ClassVar[dict]
    architecture: ClassVar[type[PreTrainedModel]] = LlavaForConditionalGeneration

    def __init__(self):
        self.processor = self.build_processor()
        self.memory: dict[str | None, list[int]] = {None: [self.processor.tokenizer.eos_token_id]}

    def build_processor(self) -> ProcessorMixin:
        """The processor with the words of the questions."""
        return build_processor(words(), SIDE, self.patch)

    def build_model(self) -> PreTrainedModel:
        """A model with random weights."""
        tokenizer = self.processor.tokenizer
        return build_model(tokenizer, side=SIDE, patch=self.patch, vision=self.vision, text=self.text)

    @abstractmethod
    def build_heads(self) -> nn.Module:
        """Throw-away heads."""

    def build(self) -> nn.Module:
        """A model with random weights and heads."""
        return nn.ModuleDict({"model": self.build_model(), "heads": self.build_heads()})

    def encode(self, text: str | None) -> list[int]:
        """Token ids without special tokens; the end token for None."""
        if text not in self.memory:
            self.memory[text] = self.processor.tokenizer(text, add_special_tokens=False).input_ids
        return self.memory[text]

    def prompt_head(self) -> list[int]:
        """Token ids in front of the picture."""
        return [self.processor.tokenizer.bos_token_id, *self.encode("USER :")]

    def collate(self, samples: list[dict]) -> dict[str, Tensor]:
        """Scenes of a batch."""
        return collate(samples)

    def load(self, learner: nn.Module, folder: Path) -> None:
        """The weights of a checkpoint of this size."""
        found = self.architecture.from_pretrained(folder, dtype=torch.float32)
        learner["model"].load_state_dict(found.state_dict())

    def save(self, learner: nn.Module, folder: Path) -> None:
        """A checkpoint with its processor."""
        learner["model"].save_pretrained(folder)
        self.processor.save_pretrained(folder)
