"""What a target can store and compute, said once: `check`, `tune` and docs/targets.md go by it.

Each target's table is `CAPABILITIES` in its own `capabilities.py`, which imports no library of the target.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from lfm2_export.quantize.method import Method
from lfm2_export.quantize.scheme import (
    Activation,
    Precision,
    QuantizationRule,
    Scale,
    WeightScheme,
    needs_calibration,
)

if TYPE_CHECKING:
    from lfm2_export.recipes import Recipe

FLOAT32 = 32  # the bits of a matrix that no rule makes smaller


@dataclass(frozen=True)
class Groups:
    """The inputs of a matrix that may share a scale: all of a row's, or groups of multiples of `step` (0: none)."""

    row: bool = True
    step: int = 0
    doubled: bool = False  # of the multiples only 1, 2, 4, 8 and so on

    def __contains__(self, group: int | None) -> bool:
        if group is None or not self.step:
            return group is None and self.row
        times, rest = divmod(group, self.step)
        return rest == 0 and times > 0 and not (self.doubled and times & (times - 1))

    def __str__(self) -> str:
        few = ", ".join(str(self.step * times) for times in (1, 2, 4))
        some = "of any size" if self.step == 1 else f"of {few}, …" if self.doubled else f"of a multiple of {self.step}"
        grouped = f"in groups {some}" if self.step else ""
        return " or ".join(filter(None, ("per row" if self.row else "", grouped)))


PER_ROW, ANY_GROUP = Groups(), Groups(step=1)


@dataclass(frozen=True)
class Stored:
    """One way to store a matrix, and what its products may round their inputs to; the first is what `tune` takes."""

    bits: int  # 4, 8, 16 or FLOAT32
    activations: tuple[Activation | None, ...] = (None,)
    groups: Groups = PER_ROW
    scales: tuple[Scale, ...] = get_args(Scale)

    def stores(self, weight: WeightScheme | None) -> bool:
        """Return whether weights of that scheme (None: fp32) are stored like this."""
        if weight is None:
            return self.bits == FLOAT32
        scaled = weight.bits < 16  # others have no scale of the recipe's choice
        return weight.bits == self.bits and weight.group in self.groups and (not scaled or weight.scale in self.scales)

    def holds(self, rule: QuantizationRule | None) -> bool:
        """Return whether a matrix under that rule (None: no rule fits it) is stored and multiplied like this."""
        if rule is None:
            return self.stores(None) and None in self.activations
        return self.stores(rule.weight) and rule.activation in self.activations

    @property
    def weights(self) -> str:
        """Return what is stored, in words."""
        return _weights(self.bits, str(self.groups), static="int16" in self.activations)

    def __str__(self) -> str:
        scale = "" if self.bits >= 16 or self.scales == get_args(Scale) else f"scale: {' or '.join(self.scales)}"
        rounded = " or ".join(each or "none" for each in self.activations)
        activation = "" if self.activations == (None,) else f"activation: {rounded}"
        return ", ".join(filter(None, (self.weights, scale, activation)))


@dataclass(frozen=True)
class Arithmetic:
    """A combination that one file may hold: matrices that are looked up in, matrices that are multiplied, caches.

    It is a recipe's when the recipe's options have the values of `options` and, unless `static` is None, some rule has
    int16 activations (True) or none has (False). `when` says that for people.
    """

    embedding: tuple[Stored, ...]
    others: tuple[Stored, ...]
    caches: tuple[str, ...]
    experts: tuple[Stored, ...] = ()  # of a mixture; none where its operator has no such arithmetic
    when: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    static: bool | None = None

    def entries(self, kind: str) -> tuple[Stored, ...]:
        """Return what a matrix of that class can be."""
        return {"embedding": self.embedding, "expert": self.experts}.get(kind, self.others)


@dataclass(frozen=True)
class OneOf:
    """An option with a few values; `values` may be a function, where a library must be asked."""

    default: object
    values: tuple[object, ...] | Callable[[], tuple[object, ...]]
    what: str

    def expected(self, given: object, limits: Mapping[str, int]) -> str | None:
        """Return what was expected of a value that is not allowed, or None."""
        allowed = self.values() if callable(self.values) else self.values
        if any(given == each and type(given) is type(each) for each in allowed):
            return None
        return f"one of {', '.join(map(spelled, allowed))}"


@dataclass(frozen=True)
class Whole:
    """An option that is a whole number, from `low` to a number of the recipe's; or None, where that is its default."""

    default: int | None
    low: int
    what: str
    high: Literal["window", "layers"] | None = None

    def expected(self, given: object, limits: Mapping[str, int]) -> str | None:
        """Return what was expected of a value that is not allowed, or None; `limits` are the recipe's own numbers."""
        if given is None and self.default is None:
            return None
        highest = limits[self.high] if self.high else None
        if isinstance(given, int) and not isinstance(given, bool) and self.low <= given and given <= (highest or given):
            return None
        span = f"{self.low} to {highest} ({self.high})" if self.high else f"a whole number of at least {self.low}"
        return span + (", or null" if self.default is None else "")


def switch(default: bool, what: str) -> OneOf:
    """Return an option that is true or false."""
    return OneOf(default, (False, True), what)


@dataclass(frozen=True)
class Capabilities:
    """The table of one target."""

    title: str  # what computes it
    arithmetics: tuple[Arithmetic, ...]
    options: Mapping[str, OneOf | Whole] = field(default_factory=dict)
    forms: tuple[str, ...] = ("explicit",)
    methods: tuple[Method, ...] = get_args(Method)  # by which weights may come to their integers
    observers: tuple[str, ...] = ()  # that may choose the ranges of int16 activations
    slow_caches: Mapping[str, str] = field(default_factory=dict)  # precision → what it does to speed, and where
    unwritten: Mapping[str, str] = field(default_factory=dict)  # kind of step that it does not write → why not
    vision: Mapping[Precision, QuantizationRule | None] = field(default_factory=lambda: {"fp32": None})  # its matrices,
    # the default first
    images: tuple[str, ...] = ()  # the vision-language models, by model type, whose image part it writes

    def option(self, recipe: Recipe, name: str) -> Any:
        """Return the recipe's value of an option, or its default."""
        return recipe.options.get(name, self.options[name].default)

    def image_rule(self, recipe: Recipe) -> QuantizationRule | None:
        """Return the rule that an artifact's image part is under; None for fp32."""
        return None if recipe.vision is None else self.vision[recipe.vision]

    def arithmetic_of(self, recipe: Recipe) -> Arithmetic:
        """Return what the recipe asks for."""
        static = needs_calibration(recipe.quantization)
        return next(
            each
            for each in self.arithmetics
            if each.static in (None, static) and all(self.option(recipe, k) == v for k, v in each.options.items())
        )

    @property
    def dynamic(self) -> Arithmetic:
        """Return what a recipe without options and without static activations asks for."""
        default = {name: option.default for name, option in self.options.items()}
        return next(each for each in self.arithmetics if not each.static and each.options.items() <= default.items())


def described(rule: QuantizationRule | None) -> str:
    """Return what a rule (None: no rule fits) makes of a matrix, in the words of the table."""
    if rule is None or rule.weight is None:
        return _weights(FLOAT32, "", static=False)
    bits, group, activation = rule.weight.bits, rule.weight.group, rule.activation
    weights = _weights(bits, f"in groups of {group}" if group else "per row", static=activation == "int16")
    scale = f"scale: {rule.weight.scale}" if bits < 16 else ""
    return ", ".join(filter(None, (weights, scale, f"activation: {activation}" if activation else "")))


def _weights(bits: int, groups: str, static: bool) -> str:
    if bits == FLOAT32:
        return "float32"
    return "fp16 (bits: 16)" if bits == 16 and not static else f"int{bits} {groups}"


def spelled(value: object) -> str:
    """Return an option's value as a recipe spells it."""
    return value if isinstance(value, str) else json.dumps(value)
