"""What of a recipe is not in a target's table, as one line that names the place and what the target has instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lfm2_export.errors import nearest
from lfm2_export.graph.matrices import matrices
from lfm2_export.quantize.scheme import QuantizationRule, rule_for
from lfm2_export.targets.capabilities import Arithmetic, Capabilities, Stored, described, spelled

if TYPE_CHECKING:
    from lfm2_export.checkpoint.config import LFM2Config
    from lfm2_export.recipes import Recipe


def refusals(target: str, has: Capabilities, recipe: Recipe, config: LFM2Config) -> Iterator[str]:
    """Yield everything that the table of `target` does not have, options first: the rest depends on them."""
    if recipe.form not in has.forms:
        yield f"{recipe.name}: form: {recipe.form}; the {target} target has {' or '.join(has.forms)}"
    yield from _options(target, has, recipe, config)
    arithmetic = has.arithmetic_of(recipe)
    with_it = f"with {arithmetic.when} the {target} target" if arithmetic.when else f"the {target} target"
    if recipe.cache not in arithmetic.caches:
        yield f"{recipe.name}: cache: {recipe.cache}; {with_it} has cache: {' or '.join(arithmetic.caches)}"
    yield from _matrices(with_it, has, arithmetic, recipe, config)
    if recipe.weights not in has.methods:
        yield f"{recipe.name}: weights: {recipe.weights}; the {target} target has {', '.join(has.methods)}"
    observer = recipe.calibration.observer if recipe.calibration else None
    if has.observers and observer is not None and observer not in has.observers:
        yield f"{recipe.name}: calibration.observer: {observer}; the {target} target has {' or '.join(has.observers)}"


def _options(target: str, has: Capabilities, recipe: Recipe, config: LFM2Config) -> Iterator[str]:
    if unknown := sorted(recipe.options.keys() - has.options.keys()):
        known = ", ".join(has.options)
        given = ", ".join(name + nearest(name, has.options) for name in unknown)
        yield f"{recipe.name}: unknown options for the {target} target: {given}; it has {known}"
    limits = {"window": recipe.window, "layers": config.num_hidden_layers}
    for name, option in has.options.items():
        given = has.option(recipe, name)
        if (expected := option.expected(given, limits)) is not None:
            yield f"{recipe.name}: options.{name} is {spelled(given)}; expected {expected}"


def _matrices(
    with_it: str, has: Capabilities, arithmetic: Arithmetic, recipe: Recipe, config: LFM2Config
) -> Iterator[str]:
    for path, kind, _ in matrices(config):
        rule, entries = rule_for(path, kind, recipe.quantization), arithmetic.entries(kind)
        if any(entry.holds(rule) for entry in entries):
            continue
        where = path if rule is None else f"quantization[{recipe.quantization.index(rule)}]: {path}"
        given = f"{described(rule)}{'' if rule else ' (no rule fits it)'}"
        weight = rule.weight if rule else None
        wanted = {"embedding": "an embedding", "expert": "an expert"}.get(kind, "a product")
        alike = [entry for entry in entries if weight and entry.bits == weight.bits]
        has_there = "; or ".join(map(str, alike or entries)) or "nothing"
        here = any(_stores(entry, rule) for entry in entries)
        fitting = [
            each.when
            for each in has.arithmetics
            if any(entry.holds(rule) or (not here and _stores(entry, rule)) for entry in each.entries(kind))
        ]
        elsewhere = f"; what is given needs {' or '.join(fitting)}" if fitting else ""
        yield f"{recipe.name}: {where}: {given}; {with_it} has for {wanted}: {has_there}{elsewhere}"


def _stores(entry: Stored, rule: QuantizationRule | None) -> bool:
    """Whether weights are of that kind, whatever their products' inputs; 16 bits are integers beside int16 only."""
    weight, activation = (rule.weight, rule.activation) if rule else (None, None)
    return entry.stores(weight) and ("int16" in entry.activations) == (activation == "int16")
