"""Questions about drawn pictures, with one exact answer each, for training and checking the nano-vl model.

Five kinds: "color" and "shape" (what stands there), "count" (how many), "position" (where, and what there) and "digits"
(a printed number). Training and held-out questions never show the same scene: `split_of` hashes what is on the picture,
without how exactly it is drawn, and one scene in eight is held out.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lfm2_export.checkpoint.nano.tasks import HELD_OUT_ONE_IN
from lfm2_export.checkpoint.nano_vl.scenes import COLORS, GRIDS, Scene, scene_of_digits, scene_of_shapes

KINDS = ("color", "shape", "count", "position", "digits")
_LONGEST = 4  # turns about one picture

Exchange = tuple[str, str]


@dataclass(frozen=True)
class PictureQuestion:
    """A conversation about a scene that ends before the assistant's turn, and the only reply that counts as right.

    The first turn holds the picture, as `{"type": "image"}` before the text.
    """

    kind: str
    scene: Scene
    messages: list[dict[str, Any]]
    answer: str


def _only(scene: Scene, key: Callable[[Any], str]) -> list[Any]:
    """The things that are the only ones with their name, or their color."""
    seen = [key(thing) for thing in scene.things]
    return [thing for thing in scene.things if seen.count(key(thing)) == 1]


def _color(rng: random.Random, scene: Scene) -> Exchange | None:
    if scene.has_digits:
        return "What color are the digits?", f"The digits are {scene.things[0].color}."
    if not (found := _only(scene, lambda thing: thing.name)):
        return None
    thing = rng.choice(found)
    return f"What color is the {thing.name}?", f"The {thing.name} is {thing.color}."


def _shape(rng: random.Random, scene: Scene) -> Exchange | None:
    found = [] if scene.has_digits else _only(scene, lambda thing: thing.color)
    if not found:
        return None
    thing = rng.choice(found)
    return f"What shape is {thing.color}?", f"The {thing.name} is {thing.color}."


def _count(rng: random.Random, scene: Scene) -> Exchange | None:
    what = "digits" if scene.has_digits else "shapes"
    if scene.has_digits or rng.random() < 0.4:
        return f"How many {what} do you see?", f"I see {len(scene.things)}."
    shown = [thing.color for thing in scene.things]
    color = rng.choice([*shown, *shown, rng.choice(sorted(COLORS))])
    return f"How many {color} shapes do you see?", f"I see {shown.count(color)}."


def _position(rng: random.Random, scene: Scene) -> Exchange | None:
    if scene.has_digits:
        return None
    thing = rng.choice(scene.things)
    if rng.random() < 0.5:
        place = scene.place(thing.cell)
        return f"What is at the {place}?", f"The {thing.color} {thing.name} is at the {place}."
    if not (found := _only(scene, lambda thing: thing.name)):
        return None
    thing = rng.choice(found)
    return f"Where is the {thing.name}?", f"The {thing.name} is at the {scene.place(thing.cell)}."


def _digits(rng: random.Random, scene: Scene) -> Exchange | None:
    if not scene.has_digits:
        return None
    return "What digits do you see?", f"I see {' '.join(thing.name for thing in scene.things)}."


_MAKERS: dict[str, Callable[[random.Random, Scene], Exchange | None]]
_MAKERS = {"color": _color, "shape": _shape, "count": _count, "position": _position, "digits": _digits}


def split_of(scene: Scene) -> str:
    """The split a scene belongs to, decided by what is on it alone: "train" or "heldout"."""
    content = repr((scene.rows, scene.columns, [(thing.name, thing.color, thing.cell) for thing in scene.things]))
    return "heldout" if hashlib.sha256(content.encode()).digest()[0] % HELD_OUT_ONE_IN == 0 else "train"


def picture_questions(
    seed: int,
    count: int,
    split: str = "train",
    kinds: Sequence[str] = KINDS,
    grids: Sequence[tuple[int, int]] = GRIDS,
) -> list[PictureQuestion]:
    """Return `count` questions of a split, kinds taking turns; the same arguments give the same list.

    A question may come after others about the same picture, whose right answers it then shows.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f'split must be "train" or "heldout", not {split!r}')
    rng = random.Random(f"pictures:{split}:{seed}")
    found: list[PictureQuestion] = []
    while len(found) < count:
        kind = kinds[len(found) % len(kinds)]
        maker = (
            scene_of_digits
            if kind == "digits" or (kind in ("color", "count") and rng.random() < 0.2)
            else scene_of_shapes
        )
        scene = maker(rng, rng.choice(grids))
        last = _MAKERS[kind](rng, scene)
        if split_of(scene) != split or last is None:
            continue
        drafts = [_MAKERS[rng.choice(KINDS)](rng, scene) for _ in range(rng.randrange(_LONGEST))]
        before = [exchange for exchange in dict.fromkeys(drafts) if exchange is not None and exchange != last]
        found.append(PictureQuestion(kind, scene, _conversation([*before, last]), last[1]))
    return found


def _conversation(exchanges: Sequence[Exchange]) -> list[dict[str, Any]]:
    """The turns up to the last question; the first one shows the picture."""
    messages: list[dict[str, Any]] = []
    for asked, reply in exchanges:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
    messages[0]["content"] = [{"type": "image"}, {"type": "text", "text": messages[0]["content"]}]
    return messages[:-1]
