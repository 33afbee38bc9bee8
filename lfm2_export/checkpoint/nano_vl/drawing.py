"""A scene as a picture, drawn by Pillow without any font: the same scene gives the same pixels.

Everything is drawn twice as large and halved, so that edges are smooth; digits are strokes.
"""

import base64
import io
import math
import random
from typing import TYPE_CHECKING

from lfm2_export.checkpoint.nano_vl.scenes import CELL, COLORS, DIGITS, Scene, Thing

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

_SCALE = 2
_JITTER = 3  # pixels that a thing may stand away from its cell's center
_POLYGONS: dict[str, tuple[int, tuple[float, ...]]]  # corners, and how far from the center they are, in turns
_POLYGONS = {"triangle": (3, (1.05,)), "star": (10, (1.05, 0.4))}
_STROKES: dict[str, list[list[tuple[float, float]]]]
_STROKES = {  # corners in a box of 4 × 6, downwards; a stroke that ends where it began is closed
    "0": [[(0, 1), (1, 0), (3, 0), (4, 1), (4, 5), (3, 6), (1, 6), (0, 5), (0, 1)]],
    "1": [[(1, 1.5), (2.5, 0), (2.5, 6)]],
    "2": [[(0, 1), (1, 0), (3, 0), (4, 1), (4, 2), (0, 6), (4, 6)]],
    "3": [[(0, 0), (4, 0), (2, 2.5), (4, 4), (4, 5), (3, 6), (1, 6), (0, 5)]],
    "4": [[(3, 6), (3, 0), (0, 4), (4, 4)]],
    "5": [[(4, 0), (0, 0), (0, 2.5), (3, 2.5), (4, 3.5), (4, 5), (3, 6), (0, 6)]],
    "6": [[(3.5, 0), (1.5, 0), (0, 2), (0, 5), (1, 6), (3, 6), (4, 5), (4, 4), (3, 3), (0, 3)]],
    "7": [[(0, 0), (4, 0), (1.5, 6)]],
    "8": [[(1, 0), (3, 0), (4, 1), (4, 2), (3, 3), (1, 3), (0, 2), (0, 1), (1, 0)],
          [(1, 3), (0, 4), (0, 5), (1, 6), (3, 6), (4, 5), (4, 4), (3, 3)]],
    "9": [[(4, 3), (1, 3), (0, 2), (0, 1), (1, 0), (3, 0), (4, 1), (4, 4), (2.5, 6), (0.5, 6)]],
}  # fmt: skip


def draw(scene: Scene) -> "Image":
    """Return the picture in RGB, 32 pixels a cell, on a nearly white ground."""
    from PIL import Image, ImageDraw

    rng = random.Random(scene.seed)
    ground = tuple(rng.randint(228, 255) for _ in range(3))
    size = (_SCALE * CELL * scene.columns, _SCALE * CELL * scene.rows)
    image = Image.new("RGB", size, ground)
    canvas = ImageDraw.Draw(image)
    for thing in scene.things:
        _draw_thing(canvas, scene, thing, rng)
    return image.reduce(_SCALE)


def png(image: "Image") -> str:
    """Return a picture as PNG in base64."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def _draw_thing(canvas: "ImageDraw", scene: Scene, thing: Thing, rng: random.Random) -> None:
    row, column = divmod(thing.cell, scene.columns)
    x, y = (_SCALE * (CELL * (at + 0.5) + rng.uniform(-_JITTER, _JITTER)) for at in (column, row))
    radius = _SCALE * rng.uniform(9, 12)
    color = tuple(min(255, max(0, channel + rng.randint(-12, 12))) for channel in COLORS[thing.color])
    box = (x - radius, y - radius, x + radius, y + radius)
    if thing.name in DIGITS:
        for stroke in _STROKES[thing.name]:
            points = [(x + radius * (u - 2) / 3.4, y + radius * (v - 3) / 3.4) for u, v in stroke]
            canvas.line(points, fill=color, width=round(_SCALE * rng.uniform(2, 3.5)), joint="curve")
    elif thing.name == "circle":
        canvas.ellipse(box, fill=color)
    elif thing.name == "ring":
        canvas.ellipse(box, outline=color, width=round(radius / 3))
    elif thing.name == "square":
        canvas.rectangle(box, fill=color)
    elif thing.name == "cross":
        arm = radius / 3
        canvas.rectangle((x - arm, y - radius, x + arm, y + radius), fill=color)
        canvas.rectangle((x - radius, y - arm, x + radius, y + arm), fill=color)
    else:
        canvas.polygon([(x + u * radius, y + v * radius) for u, v in _corners(thing.name)], fill=color)


def _corners(shape: str) -> list[tuple[float, float]]:
    """The corners of a triangle or a star around the origin, the first one at the top."""
    count, radii = _POLYGONS[shape]
    turns = [2 * math.pi * corner / count for corner in range(count)]
    return [
        (radii[i % len(radii)] * math.sin(turn), -radii[i % len(radii)] * math.cos(turn))
        for i, turn in enumerate(turns)
    ]
