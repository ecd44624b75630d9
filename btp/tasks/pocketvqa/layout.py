"""Layouts of a scene: objects on a loose 3 x 3 arrangement of cells."""

from dataclasses import dataclass

import numpy as np

SIDE = 96
CELLS = 3
CELL = SIDE // CELLS
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 40),
    "cyan": (60, 210, 220),
    "magenta": (220, 60, 210),
}
SHAPES = ("circle", "square", "triangle", "cross", "star")
MIN_SIDE = 17  # 17 * 17 pixels are 3% of the picture


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    `name` is a shape, or the digits from left to right. `row`, `col` are the first cell, `rows`, `cols` how
    many cells it spans. `box` is (x0, y0, x1, y1) in shares of the picture's side.
    """

    name: str
    color: str
    row: int
    col: int
    rows: int
    cols: int
    box: tuple[float, float, float, float]

    @property
    def kind(self) -> str:
        """shape | digit | number."""
        if self.name in SHAPES:
            return "shape"
        return "digit" if len(self.name) == 1 else "number"

    @property
    def phrase(self) -> str:
        """How people call it: `red circle`, `blue 7`."""
        return f"{self.color} {self.name}"


def draw_layout(rng: np.random.Generator) -> list[Thing]:
    """Draw 3 to 8 objects, each 3% to 40% of the picture, none touching another.

    Returns:
        The objects in raster order (row, then column of the first cell).
    """
    count = int(rng.integers(3, 9))
    free = np.ones((CELLS, CELLS), dtype=bool)
    spans: list[tuple[int, int, int, int]] = []
    if count <= 5 and rng.random() < 0.25:
        row, col = (int(i) for i in rng.integers(0, CELLS - 1, 2))
        spans.append((row, col, 2, 2))
        free[row : row + 2, col : col + 2] = False
    numbers = int(rng.choice(3, p=[0.4, 0.45, 0.15]))
    for _ in range(numbers):
        room = [(r, c) for r in range(CELLS) for c in range(CELLS - 1) if free[r, c : c + 2].all()]
        if not room or len(spans) >= count - 1:
            break
        row, col = room[rng.integers(len(room))]
        spans.append((row, col, 1, 2))
        free[row, col : col + 2] = False
    cells = np.argwhere(free)
    for row, col in cells[rng.permutation(len(cells))][: max(count - len(spans), 0)]:
        spans.append((int(row), int(col), 1, 1))
    things: list[Thing] = []
    for span in spans:
        things.append(_thing(rng, span, things))
    return sorted(things, key=lambda t: (t.row, t.col))


def _thing(rng: np.random.Generator, span: tuple[int, int, int, int], others: list[Thing]) -> Thing:
    row, col, rows, cols = span
    colors = list(COLORS)
    # Repeated colours and shapes make counting, same-as and hard negatives possible.
    repeat = bool(others) and rng.random() < 0.35
    color = others[rng.integers(len(others))].color if repeat else colors[rng.integers(len(colors))]
    if (rows, cols) == (1, 2):
        length = int(rng.integers(2, 4))
        name = "".join(str(d) for d in rng.integers(0, 10, length))
        height = int(rng.integers(22, 29))
        width = min(length * int(rng.integers(height * 2 // 3, height + 1)), 2 * CELL - 3)
    else:
        digit = rows == 1 and rng.random() < 0.42
        if digit:
            # Beside a number of its own colour a digit could be read as part of it.
            taken = {t.color for t in others if t.kind == "number" and t.row == row}
            color = color if color not in taken else [c for c in colors if c not in taken][rng.integers(4)]
        same = [t.name for t in others if t.kind == "shape"]
        name = SHAPES[rng.integers(len(SHAPES))]
        if same and rng.random() < 0.2:
            name = same[rng.integers(len(same))]
        name = str(rng.integers(0, 10)) if digit else name
        low, high = (36, 60) if rows == 2 else (20 if digit else MIN_SIDE, CELL - 2)
        height = width = int(rng.integers(low, high + 1))
    x = col * CELL + 1 + int(rng.integers(0, cols * CELL - width - 1))
    y = row * CELL + 1 + int(rng.integers(0, rows * CELL - height - 1))
    box = (x / SIDE, y / SIDE, (x + width) / SIDE, (y + height) / SIDE)
    return Thing(name, color, row, col, rows, cols, box)
