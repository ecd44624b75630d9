"""Training samples of the pocket video models: a clip with what its tokens show, questions about it, and captions."""

import numpy as np

from btp.tasks.pocketclips.paint import paint
from btp.tasks.pocketclips.questions import ABILITIES, ask
from btp.tasks.pocketclips.scene import FRAMES, MOST, MOVES, SIDE, STILL, Event, draw_events
from btp.tasks.pocketvqa.layout import COLORS, SHAPES

NAMES = (*SHAPES, *"0123456789")
MARKS = (*COLORS, *NAMES)  # what a frame's tokens must tell together
GOES = (*MOVES, STILL)
LEAST = 36  # square pixels of a token's cell that a thing must cover to be what it shows
UNKNOWN = -100  # a thing's first frame does not tell where it goes
LABELS = ("color", "name", "goes", "event", "marks")


def draw_sample(rng: np.random.Generator, encode, *, grid: int, questions: int, weights: dict[str, float]) -> dict:
    """A freshly drawn clip.

    Args:
        rng: Source of everything drawn.
        encode: Function from a text to its token ids, without special tokens; the end token for None.
        grid: Tokens along the side of a frame.
        questions: Questions about the clip.
        weights: How often each ability is asked.
    """
    events = draw_events(rng)
    abilities = list(ABILITIES)
    odds = np.array([weights[a] for a in abilities])
    chosen = rng.choice(len(abilities), 3 * questions, p=odds / odds.sum())
    pairs = [pair for i in chosen if (pair := ask(abilities[i], events, rng))]
    once = list({question: answer for question, answer, _ in pairs}.items())[:questions]
    parts = [(encode(question + " ASSISTANT :"), encode(answer) + encode(None)) for question, answer in once]
    return {"pixels": paint(events, "train", rng), "parts": parts} | token_labels(events, grid)


def token_labels(events: list[Event], grid: int) -> dict[str, np.ndarray]:
    """What each token shows: colour, name and motion of what covers most of its cell, 0 for the ground; its event.

    Returns:
        Arrays of [FRAMES * grid * grid]; `marks` is [FRAMES, MARKS].
    """
    color, name, goes = (np.zeros((FRAMES, grid, grid), np.int64) for _ in range(3))
    event = np.zeros((FRAMES, grid, grid), np.int64)
    marks = np.zeros((FRAMES, len(MARKS)), np.float32)
    for number, e in enumerate(events[:MOST]):
        event[e.first : e.end] = number
        for frame, box in zip(e.frames, e.boxes, strict=True):
            shown = [(e.name, e.color, e.move, box)]
            if e.sign is not None:
                x0, y0, x1, y1 = e.sign.box
                edges = np.linspace(x0, x1, len(e.sign.name) + 1)
                spans = zip(e.sign.name, edges[:-1], edges[1:], strict=True)
                shown += [(digit, e.sign.color, STILL, (left, y0, right, y1)) for digit, left, right in spans]
            covers = np.stack([_cover(b, grid) for *_, b in shown])
            best, most = covers.argmax(0), covers.max(0)
            for i, (what, hue, move, _) in enumerate(shown):
                spot = (best == i) & (most >= LEAST)
                color[frame][spot], name[frame][spot] = list(COLORS).index(hue) + 1, NAMES.index(what) + 1
                goes[frame][spot] = GOES.index(move) + 1 if frame > e.first else UNKNOWN
                marks[frame, [MARKS.index(hue), MARKS.index(what)]] = 1
    flat = {"color": color, "name": name, "goes": goes, "event": event}
    return {key: value.ravel() for key, value in flat.items()} | {"marks": marks}


def _cover(box, grid: int) -> np.ndarray:
    """[grid, grid] square pixels of each cell that a box covers."""
    low = np.arange(grid) * SIDE / grid
    high = low + SIDE / grid
    x0, y0, x1, y1 = box
    across = (np.minimum(high, x1) - np.maximum(low, x0)).clip(0)
    down = (np.minimum(high, y1) - np.maximum(low, y0)).clip(0)
    return np.outer(down, across)


def caption(event: Event, rng: np.random.Generator) -> str:
    """Words about a frame of an event, as a question would use them: what it shows, in any order, some left out."""
    words = [event.phrase]
    if event.sign is not None:
        kind = "digit" if len(event.sign.name) == 1 else "number"
        words.append(f"{event.sign.color} {kind} {' '.join(event.sign.name)}")
    if event.move != STILL and rng.random() < 0.3:
        words.append(f"go {event.move}")
    order = rng.permutation(len(words))
    said = [words[i] for i in order if i == 0 or rng.random() < 0.7]
    return " , ".join(said)
