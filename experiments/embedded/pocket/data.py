"""Training samples of the pocket models: one picture, its description and several questions packed behind it."""

import numpy as np
import torch
from torch import Tensor

from btp.tasks.pocketvqa.draw import paint
from btp.tasks.pocketvqa.layout import COLORS, SHAPES, Thing, draw_layout
from btp.tasks.pocketvqa.questions import ABILITIES, ask

NAMES = (*SHAPES, *"0123456789")
KINDS = ("shape", "digit", "number")
MARKS = (*COLORS, *NAMES)  # what the tower's CLS token must tell
PATCH_LABELS = ("color", "name", "kind")


def draw_sample(
    rng: np.random.Generator, encode, *, grid: int, questions: int = 0, weights: dict[str, float] | None = None
) -> dict:
    """A freshly drawn training scene.

    Args:
        rng: Source of everything drawn.
        encode: Function from a text to its token ids, without special tokens; the end token for None.
        grid: Patches along a side.
        questions: Questions about the scene, besides its description; 0 gives the picture and its labels alone.
        weights: How often each ability is asked.
    """
    things = draw_layout(rng)
    parts = _questions(things, rng, questions, weights, encode) if questions else []
    marks = np.zeros(len(MARKS), np.float32)
    for thing in things:
        for word in (thing.color, *([thing.name] if thing.kind == "shape" else thing.name)):
            marks[MARKS.index(word)] = 1
    pixels = paint(things, "train", rng)
    return {"pixels": pixels, "parts": parts, "marks": marks} | patch_labels(things, grid)


def _questions(things: list[Thing], rng: np.random.Generator, count: int, weights: dict[str, float], encode) -> list:
    abilities = [a for a in ABILITIES if a != "describe"]
    odds = np.array([weights[a] for a in abilities])
    pairs = [ask("describe", things, rng)]
    for _ in range(8):
        chosen = rng.choice(len(abilities), count, p=odds / odds.sum())
        pairs += [pair for i in chosen if (pair := ask(abilities[i], things, rng))]
        if len(pairs) > count:
            break
    return [
        (encode(question + " ASSISTANT :"), encode(answer) + encode(None)) for question, answer, _ in pairs[: count + 1]
    ]


def patch_labels(things: list[Thing], grid: int) -> dict[str, np.ndarray]:
    """What lies under each patch's centre: colour, name and kind of the object, 0 for background.

    Returns:
        Arrays of [grid * grid]; `anchor` is 1 in the one patch of each object that holds its centre.
    """
    color, name, kind = (np.zeros((grid, grid), np.int64) for _ in range(3))
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
            kind[spot] = KINDS.index(thing.kind) + 1
        anchor[int((y0 + y1) / 2 * grid), int((x0 + x1) / 2 * grid)] = 1
    return {"color": color.ravel(), "name": name.ravel(), "kind": kind.ravel(), "anchor": anchor.ravel()}


def collate(samples: list[dict]) -> dict[str, Tensor]:
    """`pack_text` with the pictures, and what their patches show."""
    pixels = torch.from_numpy(np.stack([s["pixels"] for s in samples])).permute(0, 3, 1, 2)
    out = pack_text([s["parts"] for s in samples]) | {"pixels": pixels}
    for key in (*PATCH_LABELS, "anchor", "marks"):
        out[key] = torch.from_numpy(np.stack([s[key] for s in samples]))
    return out


def pack_text(rows: list[list[tuple[list[int], list[int]]]]) -> dict[str, Tensor]:
    """Pack the text behind what it is about: ids, targets (-100 where nothing is asked), segment and position.

    All rows are padded to a multiple of 16. Segment 0 is padding; position restarts with each segment.

    Args:
        rows: Token ids of each question and its answer.
    """
    longest = max(sum(len(q) + len(a) for q, a in parts) for parts in rows)
    width = -(-longest // 16) * 16
    ids, segment, position = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    target = torch.full((len(rows), width), -100)
    for row, parts in enumerate(rows):
        start = 0
        for number, (q, a) in enumerate(parts, 1):
            tokens = torch.tensor(q + a)
            end = start + len(tokens)
            ids[row, start:end], segment[row, start:end] = tokens, number
            position[row, start:end] = torch.arange(len(tokens))
            target[row, start + len(q) - 1 : end - 1] = tokens[len(q) :]
            start = end
    return {"ids": ids, "segment": segment, "position": position, "target": target}
