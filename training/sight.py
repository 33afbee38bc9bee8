"""Teaches the tower to see before the decoder has to speak of it.

A small classifier behind the projector says of each image token what its cell holds: a shape or digit, its color, its
row and column, how many things there are and how many in this color. That is learned on every cell at once, at a fifth
of the cost of a question, and the decoder then begins with image tokens that mean something. The classifier is dropped.
"""

import itertools
import random
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from loop import report, train
from pictures import look
from torch import nn
from transformers import Lfm2VlForConditionalGeneration

from lfm2_export.checkpoint.nano_vl.scenes import COLORS, DIGITS, GRIDS, SHAPES, Scene
from lfm2_export.checkpoint.nano_vl.tasks import picture_questions

NAMES, SHADES = ("", *SHAPES, *DIGITS), ("", *COLORS)
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
FEW = 5  # counts from 0 to 4
HEADS = {  # and how many classes each has
    "name": len(NAMES),
    "color": len(SHADES),
    "row": len(ROWS),
    "column": len(COLUMNS),
    "all": FEW,
    "alike": FEW,
}


def labels(scene: Scene) -> list[list[int]]:
    """For each cell of a scene the right class of each head."""
    held = {thing.cell: thing for thing in scene.things}
    shown = [thing.color for thing in scene.things]
    found = []
    for cell in range(scene.rows * scene.columns):
        row, column = (2 * at // (size - 1) for at, size in zip(divmod(cell, scene.columns), scene.grid, strict=True))
        name, color = (held[cell].name, held[cell].color) if cell in held else ("", "")
        found.append([NAMES.index(name), SHADES.index(color), row, column, len(shown), shown.count(color)])
    return found


class Sight(nn.Module):
    """The classifier: all heads in one matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.Linear(width, sum(HEADS.values()))

    def loss(self, tokens: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
        """The mean loss over heads of image tokens `[N, width]` with classes `[N, heads]`, and each head's accuracy."""
        scores = self.heads(F.rms_norm(tokens, tokens.shape[-1:])).split([*HEADS.values()], dim=-1)
        losses = [F.cross_entropy(score, right[:, head]) for head, score in enumerate(scores)]
        known = [(score.argmax(-1) == right[:, head]).float().mean().item() for head, score in enumerate(scores)]
        return sum(losses, torch.zeros(())) / len(HEADS), known


Looked = tuple[dict[str, torch.Tensor], torch.Tensor]


def sighted_batches(size: int, seed: int) -> Iterator[Looked]:
    """Endless pictures of the training split: what the tower takes, and the classes of all cells."""
    for step in itertools.count(seed):
        grid = random.Random(step).choice(GRIDS)
        scenes = [question.scene for question in picture_questions(step, size, grids=(grid,))]
        yield look(scenes), torch.tensor([labels(scene) for scene in scenes]).flatten(0, 1)


def image_tokens(model: Lfm2VlForConditionalGeneration, pictures: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the projector hands to the decoder, `[tokens, width]`."""
    return torch.cat(model.get_image_features(**pictures).pooler_output)


def learn_to_see(
    model: Lfm2VlForConditionalGeneration, size: int, steps: int, rate: float, seed: int, keep: Callable[[], None]
) -> None:
    """Train tower and projector in place, on so many pictures a step."""
    sight = Sight(model.config.text_config.hidden_size)
    eyes = nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector, sight])
    known: dict[str, float] = {}

    def loss_of(looked: Looked, step: int, done: float) -> torch.Tensor:
        loss, shares = sight.loss(image_tokens(model, looked[0]), looked[1])
        known.update(zip(HEADS, shares, strict=True))
        return loss

    train(eyes, sighted_batches(size, seed), loss_of, steps, rate, lambda note: report(f"sight, {note}", known), keep)
    _match_scale(model, image_tokens(model, next(sighted_batches(size, seed))[0]))
    keep()


def _match_scale(model: Lfm2VlForConditionalGeneration, tokens: torch.Tensor) -> None:
    """Make image tokens as large as the embeddings of words, which the decoder is used to."""
    words = model.get_input_embeddings().weight
    last = model.model.multi_modal_projector.linear_2
    with torch.no_grad():
        ratio = words.pow(2).mean().sqrt() / tokens.pow(2).mean().sqrt()
        last.weight *= ratio
        last.bias *= ratio
