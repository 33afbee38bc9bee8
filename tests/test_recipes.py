"""Recipes: the built-in ones are valid, and a wrong one is refused with its line before anything is read or written."""

from __future__ import annotations

from pathlib import Path

import pytest
from decoders import config

from lfm2_export import recipes, runtimes, targets
from lfm2_export.errors import MissingDependencyError, RecipeError, UsageError
from lfm2_export.quantize.scheme import QuantizationRule, WeightScheme, check_rules, describe, rule_for

SHAPE = {"hidden_size": 128, "intermediate_size": 384, "head_dim": 32, "max_position_embeddings": 1024}
CONFIG = config(**SHAPE, layer_types=("conv", "full_attention"))

GOOD = """\
name: mine
summary: a recipe of my own
target: xnnpack
window: 64
quantization:
  - match: linear
    weight: {bits: 4, group: 32}
gates:
  lowering: {max_error: 0.01}
  quality: {mean_kld: 0.1, top1: 0.9}
"""

HOSTILE = {
    "unknown key": (GOOD.replace("window", "windou"), ":4: windou"),
    "bits that no format has": (GOOD.replace("bits: 4", "bits: 5"), ":7: quantization.0.weight.bits"),
    "negative group": (GOOD.replace("group: 32", "group: -1"), ":7: quantization.0.weight.group"),
    "text for a number": (GOOD.replace("window: 64", "window: many"), ":4: window"),
    "window of one": (GOOD.replace("window: 64", "window: 1"), ":4: window"),
    "no gates": (GOOD.partition("gates:")[0], "gates"),
    "gate that is not a share": (GOOD.replace("top1: 0.9", "top1: 9"), ":10: gates.quality.top1"),
    "name that is a path": (GOOD.replace("name: mine", "name: ../mine"), ":1: name"),
    "unknown form": (GOOD + "form: hidden\n", ":11: form"),
    "broken YAML": (GOOD + "  - [", "not valid YAML"),
    "a list": ("- a\n- b\n", "a recipe is a mapping"),
    "empty": ("", "a recipe is a mapping"),
    "binary": ("\x00\x01\x02", "not valid YAML"),
    "a Python object": ("!!python/object/apply:os.system [echo]", "a recipe is a mapping"),
    "duplicate keys": (GOOD + "name: again\n", "not valid YAML"),
    "endless nesting": ("[" * 100_000, "not valid YAML"),
    "huge": ("#" * 2_000_000, "larger than"),
    "a date that is none": (GOOD + "options: {when: 2001-99-99}\n", "month must be"),
    "a date": (GOOD + "options: {when: 2001-01-01}\n", "plain values"),
    "not a number": (GOOD + "options: {x: .nan}\n", "plain values"),
    "a number beyond float": (GOOD + "options: {x: 1e999}\n", "plain values"),
    "a number of 5000 digits": (GOOD.replace("64", "9" * 5000), "not valid YAML"),
    "a tag that does not fit, int": (GOOD + "options: {x: !!int abc}\n", "not valid YAML"),
    "a tag that does not fit, bool": (GOOD + "options: {x: !!bool abc}\n", "not valid YAML"),
    "a character beyond Unicode": (GOOD + 'options: {x: "\\U00110000"}\n', "not valid YAML"),
    "a character far beyond Unicode": (GOOD + 'options: {x: "\\U999999999"}\n', "not valid YAML"),
    "half a character": (GOOD + 'options: {x: "\\ud800"}\n', "plain values"),
    "a value that holds itself": (GOOD + "options: &x {a: *x}\n", "aliases"),
    "a billion laughs": (GOOD + "options:\n  a: &a [x, x]\n  b: &b [*a, *a]\n  c: [*b, *b]\n", "aliases"),
    "a key that is a list": (GOOD + "? [a, b]\n: c\n", "keys must be str"),
    "a line break in a key": (GOOD + '"a\\nb": c\n', "a\\nb"),
    "two documents": (GOOD + "---\n" + GOOD, "not valid YAML"),
    "YAML of the future": ("%YAML 9.9\n---\n" + GOOD, "not valid YAML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_wrong_recipe_is_refused_in_one_line(name, tmp_path: Path):
    text, expected = HOSTILE[name]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        recipes.load(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert expected in message


def test_a_recipe_that_does_not_exist_names_those_that_do():
    with pytest.raises(RecipeError, match="xnnpack-int8"):
        recipes.load("xnnpack-int3")


def test_a_slip_of_the_pen_is_answered_with_what_is_nearest():
    with pytest.raises(RecipeError, match="did you mean xnnpack-int4"):
        recipes.load("xnpack-int4")
    with pytest.raises(RecipeError, match="did you mean window"):
        recipes.load("xnnpack-int4", ["windou=64"])
    with pytest.raises(RecipeError, match="did you mean max_error"):
        recipes.load("xnnpack-int4", ["gates.lowering.max_eror=1"])
    with pytest.raises(RecipeError, match="did you mean speculation"):
        targets.find("xnnpack").check(recipes.load("xnnpack-int4", ["options.speculatoin=1"]), CONFIG)
    with pytest.raises(RecipeError, match="did you mean onnx"):
        targets.find("onx")
    with pytest.raises(UsageError, match="did you mean executorch"):
        runtimes.find("executorh")


def test_a_window_nobody_asked_for_is_at_most_what_the_model_allows(tmp_path: Path):
    short = config(**SHAPE | {"max_position_embeddings": 256}, layer_types=("conv", "full_attention"))
    own = tmp_path / "own.yaml"
    own.write_text(GOOD)
    assert recipes.load("xnnpack-int4").within(short).window == 256
    assert recipes.load("xnnpack-int4").within(CONFIG).window == 1024
    assert not recipes.asks_for_window("xnnpack-int4", ["weights=mse"])
    assert recipes.asks_for_window("xnnpack-int4", ["window=1024"])
    assert recipes.asks_for_window(str(own), [])
    tiny = config(**SHAPE | {"max_position_embeddings": 16}, layer_types=("conv", "full_attention"))
    with pytest.raises(RecipeError, match="exceeds the model's 16 positions"):
        recipes.load("xnnpack-int4").within(tiny).check(tiny)


@pytest.mark.parametrize("name", recipes.names())
def test_every_built_in_recipe_fits_nano_and_names_a_target(name):
    recipe = recipes.load(name)
    assert recipe.name == name
    recipe.check(CONFIG)
    try:
        targets.find(recipe.target).check(recipe, CONFIG)
    except MissingDependencyError as error:  # asked for last, once the recipe itself was found good
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("window=128", lambda recipe: recipe.window == 128),
        ("quantization.0.weight.bits=8", lambda recipe: recipe.quantization[0].weight.bits == 8),
        ("gates.quality.top1=0.5", lambda recipe: recipe.gates.quality.top1 == 0.5),
    ],
)
def test_set_changes_one_value(override, read):
    assert read(recipes.load("xnnpack-int4", [override]))


@pytest.mark.parametrize(
    "override",
    [
        *("window", "=3", "window.deep=3", "quantization.9.match=head", "gates.quality.top1=[", "windou=3"),
        *("window=2001-99-99", "quantization.².match=head", "window=*x", "window=!!int x", "options.x=.nan"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(override):
    with pytest.raises(RecipeError) as caught:
        recipes.load("xnnpack-int4", [override])
    assert "\n" not in str(caught.value)


def test_a_step_is_judged_by_what_the_cache_rounds_to():
    assert recipes.load("xnnpack-int8").judged_by.lowering.median_step == 2.5e-6
    assert recipes.load("xnnpack-int8", ["cache=bfloat16"]).judged_by.lowering.median_step == 0.03
    assert recipes.load("qnn-fp16").judged_by == recipes.load("qnn-fp16").gates  # wide enough for float16


def test_the_first_matching_rule_wins():
    rules = (
        QuantizationRule(match="layers.0.*", weight=WeightScheme(bits=8)),
        QuantizationRule(match="linear", weight=WeightScheme(bits=4, group=32)),
    )
    assert rule_for("layers.0.feed_forward.w1", "linear", rules) is rules[0]
    assert rule_for("layers.1.feed_forward.w1", "linear", rules) is rules[1]
    assert rule_for("lm_head", "head", rules) is None
    assert describe(rules, CONFIG)["linear"] == "int8 per channel, int4 g32"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (QuantizationRule(match="linear", weight=WeightScheme(bits=4, group=100)), "group 100 does not divide"),
        (QuantizationRule(match="layers.9.*", weight=WeightScheme(bits=8)), "fits no module"),
        (QuantizationRule(match="head", activation="int8-token"), "needs quantized weights"),
    ],
)
def test_rules_that_cannot_work_for_a_shape_are_refused(rule, expected):
    with pytest.raises(RecipeError, match=expected):
        check_rules((rule,), CONFIG)


def test_a_window_larger_than_the_model_is_refused():
    with pytest.raises(RecipeError, match="exceeds the model's 1024 positions"):
        recipes.load("xnnpack-int4", ["window=2048"]).check(CONFIG)
