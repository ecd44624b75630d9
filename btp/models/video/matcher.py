"""How well frames of a video match a question, by a contrastive model of pictures and texts (SigLIP)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from btp.models.loading.checkpoint import find_checkpoint

CHUNK = 16  # frames that are matched together
PART = 64  # tokens of a text that are read at a time


class Matcher:
    """A SigLIP with its tokenizer and its picture processor, loaded when it is asked first.

    Args:
        path: folder of the checkpoint; relative ones are looked up here, then inside btp/models. null takes `hub`.
        hub: name of a repository that lies in the local hub cache; null takes `path`.
    """

    def __init__(self, *, path: str | None, hub: str | None):
        if (path is None) == (hub is None):
            raise ValueError(
                f"pruner.method.matcher has path {path} and hub {hub}. Give one of them: a folder, or a repository in "
                "the local hub cache."
            )
        self.path, self.hub = path, hub
        self._model: nn.Module | None = None
        self._tokenizer: Any = None
        self._processor: Any = None

    def __call__(self, question: str, frames: Sequence[Any], device: torch.device) -> Tensor:
        """[T] cosines of the frames of a video, opened some at a time, to a question, on the CPU in float32."""
        model = self._on(device)
        text, found = self._text(question).float(), []
        with torch.no_grad():
            for first in range(0, len(frames), CHUNK):
                pixels = self._processor(list(frames[first : first + CHUNK]), return_tensors="pt")["pixel_values"]
                seen = pooled(model.get_image_features(pixel_values=pixels.to(device)))  # type: ignore[operator]
                found.append(nn.functional.cosine_similarity(text, seen.float(), dim=-1).cpu())
        return torch.cat(found)

    def _text(self, text: str) -> Tensor:
        """[1, e] of a text: the largest value of each dimension over its parts of 64 tokens."""
        assert self._model is not None
        length = min(PART, self._model.config.text_config.max_position_embeddings)  # type: ignore[union-attr]
        ids = self._tokenizer(text, verbose=False)["input_ids"]
        parts = [ids[i : i + length] for i in range(0, len(ids), length)] or [[]]
        pad = self._tokenizer.pad_token_id
        device = next(self._model.parameters()).device
        rows = torch.tensor([part + [pad] * (length - len(part)) for part in parts], device=device)
        with torch.no_grad():
            return pooled(self._model.get_text_features(input_ids=rows)).amax(0, keepdim=True)  # type: ignore[operator]

    def _on(self, device: torch.device) -> nn.Module:
        if self._model is None:
            self._load()
        assert self._model is not None
        return self._model.to(device)

    def _load(self) -> None:
        name = str(self.path or self.hub).rpartition("/")[2]
        asked = {"path": self.path, "hub": self.hub, "weights": "pretrained", "config": None}
        try:
            folder = find_checkpoint(asked | {"revision": None, "download": False, "name": name})
        except ValueError as error:
            said = str(error).replace("model.", "pruner.method.matcher.")
            raise ValueError(f"the matcher of the pruner cannot be loaded: {said}") from None
        assert folder is not None  # a path or a hub is given
        self._model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        if not hasattr(self._model, "get_text_features"):
            raise ValueError(
                f"pruner.method.matcher is {folder}, a {type(self._model).__name__}, which has no texts. Give it a "
                "SigLIP or another model of pictures and texts."
            )
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)


def pooled(features: Any) -> Tensor:
    """[n, e] of what get_*_features returns: a tensor, or an output with one."""
    return features if isinstance(features, Tensor) else features.pooler_output
