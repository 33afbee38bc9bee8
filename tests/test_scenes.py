"""Drawn scenes and what is asked of them: right answers, held-out ones apart, things that can be told apart."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lfm2_export.checkpoint.nano_vl.drawing import draw
from lfm2_export.checkpoint.nano_vl.scenes import CELL, COLORS, DIGITS, GRIDS, SHAPES, Scene, Thing
from lfm2_export.checkpoint.nano_vl.tasks import KINDS, picture_questions, split_of


def exchanges(question) -> list[tuple[str, str]]:
    """Every question of a conversation with its answer."""
    said = [message["content"] for message in question.messages]
    said[0] = said[0][1]["text"]
    return list(zip(said[::2], [*said[1::2], question.answer], strict=True))


def seen_by(scene: Scene, asked: str) -> str:
    """The answer, worked out from the scene anew."""
    things = scene.things
    if found := re.fullmatch(r"What color is the (\w+)\?", asked):
        return f"The {found[1]} is {next(thing.color for thing in things if thing.name == found[1])}."
    if asked == "What color are the digits?":
        return f"The digits are {things[-1].color}."
    if found := re.fullmatch(r"What shape is (\w+)\?", asked):
        return f"The {next(thing.name for thing in things if thing.color == found[1])} is {found[1]}."
    if found := re.fullmatch(r"How many (?:shapes|digits) do you see\?", asked):
        return f"I see {len(things)}."
    if found := re.fullmatch(r"How many (\w+) shapes do you see\?", asked):
        return f"I see {sum(thing.color == found[1] for thing in things)}."
    if found := re.fullmatch(r"Where is the (\w+)\?", asked):
        return (
            f"The {found[1]} is at the {next(scene.place(thing.cell) for thing in things if thing.name == found[1])}."
        )
    if found := re.fullmatch(r"What is at the ([a-z ]+)\?", asked):
        there = next(thing for thing in things if scene.place(thing.cell) == found[1])
        return f"The {there.color} {there.name} is at the {found[1]}."
    assert asked == "What digits do you see?"
    return f"I see {' '.join(thing.name for thing in things)}."


def test_questions_are_the_same_each_time_and_their_answers_are_right():
    asked = picture_questions(3, 200)
    assert asked == picture_questions(3, 200)
    assert asked != picture_questions(4, 200)
    assert {question.kind for question in asked} == set(KINDS)
    for question in asked:
        for said, answer in exchanges(question):
            assert answer == seen_by(question.scene, said)


def test_held_out_scenes_are_not_in_the_training_split():
    held_out, trained = picture_questions(0, 100, "heldout"), picture_questions(1, 800, "train")
    assert {split_of(question.scene) for question in held_out} == {"heldout"}
    assert {split_of(question.scene) for question in trained} == {"train"}


@pytest.mark.parametrize("grid", set(GRIDS))
def test_every_cell_has_a_name_of_its_own(grid):
    rows, columns = grid
    scene = Scene(rows, columns, (), 0)
    names = [scene.place(cell) for cell in range(rows * columns)]
    assert len(set(names)) == len(names)
    assert names[0] == "top left"
    assert names[-1] == "bottom right"


@pytest.mark.parametrize("name", [*SHAPES, *DIGITS])
def test_a_thing_is_drawn_in_its_color_within_its_cell(name):
    for seed, (color, rgb) in enumerate(COLORS.items()):
        scene = Scene(2, 3, (Thing(name, color, 4),), seed)
        pixels = np.asarray(draw(scene)).astype(int)
        assert pixels.shape == (2 * CELL, 3 * CELL, 3)
        assert np.array_equal(pixels, np.asarray(draw(scene)))
        ground = pixels[0, 0]
        drawn = np.argwhere(np.abs(pixels - ground).max(-1) > 3)
        assert (drawn >= [CELL, CELL]).all()
        assert (drawn < [2 * CELL, 2 * CELL]).all()
        assert (np.abs(pixels - rgb).max(-1) <= 14).sum() > 20


def test_things_do_not_look_alike():
    drawn = {name: np.asarray(draw(Scene(2, 2, (Thing(name, "black", 0),), 5))) for name in (*SHAPES, *DIGITS)}
    assert len({pixels.tobytes() for pixels in drawn.values()}) == len(drawn)
