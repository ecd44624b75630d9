"""Training batches: one picture, its description and several questions packed behind the same image tokens."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from btp.tasks.pocketvqa.draw import paint
from btp.tasks.pocketvqa.layout import COLORS, SHAPES, Thing, draw_layout
from btp.tasks.pocketvqa.questions import ABILITIES, ask

NAMES = (*SHAPES, *"0123456789")
MARKS = (*COLORS, *NAMES)  # what the tower's CLS token must tell
MEAN, STD = 0.5, 0.25  # as the processor normalises


class Scenes(IterableDataset):
    """Endless batches of freshly drawn training scenes."""

    def __init__(self, tokenizer, weights: dict[str, float], *, batch: int, questions: int, grid: int, seed: int):
        self.tokenizer, self.batch, self.questions, self.grid, self.seed = (
            tokenizer,
            batch,
            questions,
            grid,
            seed,
        )
        self.abilities = [a for a in ABILITIES if a != "describe"]
        self.weights = np.array([weights[a] for a in self.abilities])
        self.memory: dict[str, list[int]] = {}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rng = np.random.default_rng([self.seed, 0])
        torch.set_num_threads(1)
        while True:
            yield collate([self._scene(rng) for _ in range(self.batch)])

    def _ids(self, text: str) -> list[int]:
        if text not in self.memory:
            self.memory[text] = self.tokenizer(text, add_special_tokens=False).input_ids
        return self.memory[text]

    def _scene(self, rng: np.random.Generator) -> dict:
        things = draw_layout(rng)
        pairs = [ask("describe", things, rng)]
        while len(pairs) <= self.questions:
            chosen = rng.choice(len(self.abilities), self.questions, p=self.weights / self.weights.sum())
            pairs += [pair for i in chosen if (pair := ask(self.abilities[i], things, rng))]
        parts = []
        for question, answer, _ in pairs[: self.questions + 1]:
            q = [t for w in (question + " ASSISTANT :").split() for t in self._ids(w)]
            a = [t for w in answer.split() for t in self._ids(w)] + [self.tokenizer.eos_token_id]
            parts.append((q, a))
        color, name, anchor = patch_labels(things, self.grid)
        marks = np.zeros(len(MARKS), np.float32)
        for thing in things:
            for word in (thing.color, *([thing.name] if thing.kind == "shape" else thing.name)):
                marks[MARKS.index(word)] = 1
        pixels = paint(things, "train", rng)
        return {
            "pixels": pixels,
            "parts": parts,
            "color": color,
            "name": name,
            "anchor": anchor,
            "marks": marks,
        }


def patch_labels(things: list[Thing], grid: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What lies under each patch's centre: colour and name (0 is background), and which patch holds an object's centre.

    Returns:
        Three arrays of [grid * grid]; the anchors are 1 in one patch of each object, so that objects can be counted.
    """
    color, name = (np.zeros((grid, grid), np.int64) for _ in range(2))
    anchor = np.zeros((grid, grid), np.float32)
    at = (np.arange(grid) + 0.5) / grid
    for thing in things:
        x0, y0, x1, y1 = thing.box
        signs = [thing.name] if thing.kind == "shape" else list(thing.name)
        edges = np.linspace(x0, x1, len(signs) + 1)
        rows = (at >= y0) & (at <= y1)
        for sign, left, right in zip(signs, edges[:-1], edges[1:], strict=True):
            spot = np.outer(rows, (at >= left) & (at <= right))
            color[spot], name[spot] = list(COLORS).index(thing.color) + 1, NAMES.index(sign) + 1
        anchor[int((y0 + y1) / 2 * grid), int((x0 + x1) / 2 * grid)] = 1
    return color.ravel(), name.ravel(), anchor.ravel()


def collate(scenes: list[dict]) -> dict[str, Tensor]:
    """Pack the text behind the image: ids, targets (-100 where nothing is asked), segment and position.

    All rows are padded to a multiple of 16. Segment 0 is padding; position restarts with each segment.
    """
    longest = max(sum(len(q) + len(a) for q, a in s["parts"]) for s in scenes)
    width = -(-longest // 16) * 16
    ids, segment, position = (torch.zeros(len(scenes), width, dtype=torch.long) for _ in range(3))
    target = torch.full((len(scenes), width), -100)
    for row, scene in enumerate(scenes):
        start = 0
        for number, (q, a) in enumerate(scene["parts"], 1):
            tokens = torch.tensor(q + a)
            end = start + len(tokens)
            ids[row, start:end], segment[row, start:end] = tokens, number
            position[row, start:end] = torch.arange(len(tokens))
            target[row, start + len(q) - 1 : end - 1] = tokens[len(q) :]
            start = end
    pixels = torch.from_numpy(np.stack([s["pixels"] for s in scenes])).permute(0, 3, 1, 2)
    out = {"ids": ids, "segment": segment, "position": position, "target": target, "pixels": pixels}
    for key in ("color", "name", "anchor", "marks"):
        out[key] = torch.from_numpy(np.stack([s[key] for s in scenes]))
    return out
