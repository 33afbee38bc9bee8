"""What is on a picture: shapes or printed digits in the cells of a small grid.

A cell is 32 pixels wide and high: with patches of 16 pixels and a projector that folds 2 × 2 of them, one image token.
"""

import random
from dataclasses import dataclass

CELL = 32
GRIDS = ((3, 3), (3, 3), (2, 3), (3, 2), (2, 2))  # rows and columns, as often as they are named
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
DIGITS = tuple("0123456789")
COLORS = {
    "red": (220, 30, 35),
    "blue": (35, 70, 215),
    "green": (25, 150, 60),
    "pink": (250, 130, 185),
    "black": (15, 15, 20),
    "gold": (225, 175, 25),
    "gray": (130, 130, 135),
}
_ROWS = {1: ("",), 2: ("top", "bottom"), 3: ("top", "", "bottom")}
_COLUMNS = {1: ("",), 2: ("left", "right"), 3: ("left", "", "right")}


@dataclass(frozen=True)
class Thing:
    """A shape or a digit, its color, and its cell, counted along the rows from the top left."""

    name: str
    color: str
    cell: int


@dataclass(frozen=True)
class Scene:
    """The grid's rows and columns, what stands in its cells, and the seed of how exactly it is drawn."""

    rows: int
    columns: int
    things: tuple[Thing, ...]
    seed: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows, self.columns

    @property
    def has_digits(self) -> bool:
        return self.things[0].name in DIGITS

    def place(self, cell: int) -> str:
        """Return the name of a cell, as in "top left"; what is in the middle of both directions is the center."""
        row, column = divmod(cell, self.columns)
        return f"{_ROWS[self.rows][row]} {_COLUMNS[self.columns][column]}".strip() or "center"


def scene_of_shapes(rng: random.Random, grid: tuple[int, int]) -> Scene:
    """One to four shapes, fewer than the cells, in at most three colors."""
    rows, columns = grid
    count = rng.randint(1, min(4, rows * columns - 1))
    palette = rng.sample(sorted(COLORS), 3)
    cells = sorted(rng.sample(range(rows * columns), count))
    things = tuple(Thing(rng.choice(SHAPES), rng.choice(palette), cell) for cell in cells)
    return Scene(rows, columns, things, rng.getrandbits(32))


def scene_of_digits(rng: random.Random, grid: tuple[int, int]) -> Scene:
    """A number of one to as many digits as the grid has columns, in one color, within one row."""
    rows, columns = grid
    count = rng.randint(1, columns)
    begin = rng.randrange(rows) * columns + rng.randint(0, columns - count)
    color = rng.choice(sorted(COLORS))
    things = tuple(Thing(rng.choice(DIGITS), color, begin + place) for place in range(count))
    return Scene(rows, columns, things, rng.getrandbits(32))
