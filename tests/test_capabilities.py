"""What a target can store and compute is its table: refusals, tune's choices and docs/targets.md follow from it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from decoders import config

from lfm2_export import recipes, targets
from lfm2_export.errors import RecipeError
from lfm2_export.quantize.scheme import QuantizationRule, WeightScheme
from lfm2_export.recipes import Recipe
from lfm2_export.targets.capabilities import ANY_GROUP, PER_ROW, Arithmetic, Capabilities, Groups, OneOf, Stored, Whole
from lfm2_export.targets.onnx_qnn.activation_ranges import OBSERVERS
from lfm2_export.targets.page import page
from lfm2_export.targets.refusals import refusals
from lfm2_export.tune.choices import choices

FLOAT = Arithmetic(
    when="options.mode: float",
    options={"mode": "float"},
    embedding=(Stored(32),),
    others=(Stored(32), Stored(8, ("int8-token",)), Stored(4, ("int8-token",), Groups(row=False, step=32))),
    caches=("float32",),
)
STATIC = Arithmetic(
    when="options.mode: integer",
    options={"mode": "integer"},
    embedding=(Stored(16, ("int16",)),),
    others=(Stored(8, ("int16",)),),
    caches=("float16",),
)
TABLE = Capabilities(
    title="A toy",
    arithmetics=(FLOAT, STATIC),
    options={
        "mode": OneOf("float", ("float", "integer"), "of everything"),
        "chunk": Whole(4, 2, "rows", high="window"),
        "parts": Whole(None, 1, "files", high="layers"),
    },
    methods=("nearest", "mse"),
)


def recipe(*rules: tuple[str, int, int | None, str | None], **changes: Any) -> Recipe:
    """A recipe of such rules: match, bits, group, activation."""
    quantization = tuple(
        QuantizationRule.model_validate({"match": m, "weight": {"bits": b, "group": g}, "activation": a})
        for m, b, g, a in rules
    )
    return recipes.load("xnnpack-fp32").model_copy(
        update={"name": "mine", "window": 64, "quantization": quantization, **changes}
    )


def first(wanted: Recipe) -> str | None:
    return next(refusals("toy", TABLE, wanted, config()), None)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (recipe(), None),
        (recipe(("linear", 8, None, "int8-token")), None),
        (recipe(("linear", 4, 64, "int8-token")), None),
        (recipe(options={"chunk": 64, "parts": 6}), None),
        (recipe(options={"parts": None}), None),
        (recipe(form="resident"), "mine: form: resident; the toy target has explicit"),
        (recipe(options={"spin": 1}), "mine: unknown options for the toy target: spin; it has mode, chunk, parts"),
        (recipe(options={"mode": "fast"}), "mine: options.mode is fast; expected one of float, integer"),
        (recipe(options={"chunk": 65}), "mine: options.chunk is 65; expected 2 to 64 (window)"),
        (recipe(options={"chunk": 1}), "mine: options.chunk is 1; expected 2 to 64 (window)"),
        (recipe(options={"chunk": True}), "mine: options.chunk is true; expected 2 to 64 (window)"),
        (recipe(options={"chunk": None}), "mine: options.chunk is null; expected 2 to 64 (window)"),
        (recipe(options={"parts": 7}), "mine: options.parts is 7; expected 1 to 6 (layers), or null"),
        (
            recipe(cache="float16"),
            "mine: cache: float16; with options.mode: float the toy target has cache: float32",
        ),
        (recipe(weights="awq"), "mine: weights: awq; the toy target has nearest, mse"),
        (
            recipe(("head", 8, None, "int8-token"), ("linear", 4, 48, "int8-token")),
            "mine: quantization[1]: layers.0.feed_forward.w1: int4 in groups of 48, scale: float32, "
            "activation: int8-token; with options.mode: float the toy target has for a product: int4 in groups of a "
            "multiple of 32, activation: int8-token",
        ),
        (
            recipe(("embedding", 16, None, None)),
            "mine: quantization[0]: embed_tokens: fp16 (bits: 16); with options.mode: float the toy target has for an "
            "embedding: float32",
        ),
        (
            recipe(("conv", 8, None, "int16")),
            "mine: quantization[0]: layers.0.conv.b_proj: int8 per row, scale: float32, activation: int16; with "
            "options.mode: float the toy target has for a product: int8 per row, activation: int8-token; what is given "
            "needs options.mode: integer",
        ),
        (
            recipe(options={"mode": "integer"}, cache="float16"),
            "mine: embed_tokens: float32 (no rule fits it); with options.mode: integer the toy target has for an "
            "embedding: int16 per row, activation: int16; what is given needs options.mode: float",
        ),
    ],
)
def test_a_refusal_names_the_place_and_what_there_is_instead(wanted: Recipe, message: str | None) -> None:
    assert first(wanted) == message


def test_a_targets_check_is_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    target, wanted = targets.find("xnnpack"), recipes.load("xnnpack-fp32")
    target.check(wanted, config())
    narrowed = replace(targets.capabilities("xnnpack"), forms=("resident",))
    monkeypatch.setattr(type(target), "capabilities", narrowed)
    with pytest.raises(RecipeError, match="the xnnpack target has resident"):
        target.check(wanted, config())


@pytest.mark.parametrize(
    ("groups", "inside", "outside"),
    [
        (PER_ROW, [None], [1, 32]),
        (ANY_GROUP, [None, 1, 7, 48], []),
        (Groups(row=False, step=32), [32, 64, 96], [None, 16, 48]),
        (Groups(row=False, step=16, doubled=True), [16, 32, 64, 512], [None, 8, 48, 96]),
    ],
)
def test_groups(groups: Groups, inside: list[int | None], outside: list[int | None]) -> None:
    assert all(group in groups for group in inside)
    assert not any(group in groups for group in outside)


def test_tune_chooses_from_the_tables() -> None:
    four = [WeightScheme(bits=4, group=group) for group in (128, 64, 32)]
    halved = [each.model_copy(update={"scale": "bfloat16"}) for each in four]
    found = {name: list(choices(targets.capabilities(name).dynamic)) for name in targets.names()}
    assert found == {
        "coreml": [],
        "onnx": [*four, WeightScheme(bits=8, group=32)],
        "onnx_qnn": [],
        "qnn": [],
        "xnnpack": [*halved, WeightScheme(bits=8)],
    }


def test_the_page_is_made_from_the_tables() -> None:
    """`python -m lfm2_export.targets.page > docs/targets.md` after a change of a table."""
    assert (Path(__file__).parent.parent / "docs" / "targets.md").read_text(encoding="utf-8") == page()


def test_what_is_promised_of_calibration_is_there() -> None:
    assert set(targets.capabilities("onnx_qnn").observers) == OBSERVERS.keys()


def test_reading_a_table_imports_no_library_of_a_target() -> None:
    program = (
        "import sys; from lfm2_export import targets; [targets.capabilities(name) for name in targets.names()]; "
        "print({'executorch', 'onnx', 'onnxruntime'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
