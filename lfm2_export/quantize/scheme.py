"""What is quantized and how: rules from a recipe, matched to modules of the traced model.

The first rule whose `match` fits a module wins; a module that no rule fits stays fp32. `match` is a module
class (`embedding`, `head`, `conv` for the projections of a short convolution, `gate` for what weighs heads or
experts, `expert` for the matrices of a mixture's experts, `linear` for every other matrix, experts included)
or a glob over the module's path (`layers.*.feed_forward.w2`).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.errors import RecipeError
from lfm2_export.graph.matrices import matrices

MODULE_CLASSES = ("embedding", "head", "conv", "linear", "gate", "expert")
_OF_SOME_MODELS = ("gate", "expert")  # a recipe for the whole family may name them

Scale = Literal["float32", "bfloat16", "float16"]
Activation = Literal["int8-token", "int8-block", "float16", "int16"]
Precision = Literal["fp32", "fp16", "int8", "int8-token"]  # of the image part, see `images.py`


class WeightScheme(BaseModel):
    """Symmetric integer weights with one scale per `group` inputs (per output row when None), or fp16 (bits 16)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bits: Literal[4, 8, 16]
    group: int | None = Field(default=None, gt=0)
    scale: Scale = "float32"  # precision the scales are rounded to


class QuantizationRule(BaseModel):
    """One line of a recipe's `quantization`: which modules, which weights, which activations.

    `activation`: None keeps them in float; `int8-token` is dynamic, asymmetric, one scale per token
    (XNNPACK's qd8); `int8-block` is dynamic, symmetric, one scale per token and weight group
    (onnxruntime's MatMulNBits at accuracy level 4); `float16` rounds what goes into a product and what comes out;
    `int16` is static, asymmetric, one scale per tensor chosen by calibration (Qualcomm's NPU), and with it 16 bits of
    weight are integers too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    match: str
    weight: WeightScheme | None = None
    activation: Activation | None = None


Rules = tuple[QuantizationRule, ...]


def rule_for(path: str, module_class: str, rules: Rules) -> QuantizationRule | None:
    """The first rule that fits, or None.

    Gates and routers weigh whole heads and experts, and are small: they become integers only by a rule that names them,
    as `gate` or by their path.
    """
    for rule in rules:
        integers = rule.weight is not None and rule.weight.bits < 16
        if module_class == "gate" and integers and rule.match not in ("gate", path):
            continue
        if rule.match == module_class or (rule.match, module_class) == ("linear", "expert"):
            return rule
        if rule.match not in MODULE_CLASSES and fnmatchcase(path, rule.match):
            return rule
    return None


def rules_by_path(config: LFM2Config, rules: Rules) -> dict[str, QuantizationRule | None]:
    """Return the rule of every matrix by its path; None for one that stays fp32."""
    return {path: rule_for(path, kind, rules) for path, kind, _ in matrices(config)}


def check_rules(rules: Rules, config: LFM2Config) -> None:
    """Refuse rules that cannot be applied to this shape, before any weight is read.

    Raises RecipeError for a rule that matches nothing (but for gates and experts, which some models lack) and for a
    group that does not divide a width.
    """
    modules = matrices(config)
    for number, rule in enumerate(rules):
        optional = rule.match in _OF_SOME_MODELS
        if not optional and not any(rule_for(path, kind, (rule,)) for path, kind, _ in modules):
            raise RecipeError(f"quantization[{number}]: match {rule.match!r} fits no module of this model")
        if rule.weight is not None and rule.weight.bits == 16 and rule.weight.group is not None:
            raise RecipeError(f"quantization[{number}]: fp16 weights (bits 16) have no scales and so no group")
        if rule.weight is not None and rule.weight.bits == 16 and rule.activation not in (None, "float16", "int16"):
            raise RecipeError(f"quantization[{number}]: int8 activations go with integer weights, not with bits 16")
        if rule.activation and rule.weight is None:
            raise RecipeError(f"quantization[{number}]: activation {rule.activation!r} needs quantized weights")
    for path, kind, (_, columns) in modules:
        chosen = rule_for(path, kind, rules)
        if chosen is None or chosen.weight is None or chosen.weight.group is None:
            continue
        if columns % chosen.weight.group:
            raise RecipeError(
                f"quantization[{rules.index(chosen)}]: group {chosen.weight.group} does not divide the "
                f"{columns} inputs of {path}; use a divisor of {columns}"
            )


def needs_calibration(rules: Rules) -> bool:
    """Return whether some rule's scales are chosen from activations seen on real tokens."""
    return any(rule.activation == "int16" for rule in rules)


def has_integers(rules: Rules) -> bool:
    """Return whether some rule makes integers of weights."""
    return any(rule.weight is not None and (rule.weight.bits < 16 or rule.activation == "int16") for rule in rules)


def describe(rules: Rules, config: LFM2Config) -> dict[str, str]:
    """Module class → how its modules are quantized, for people: `{"linear": "int4 g32 + int8-token"}`."""
    found: dict[str, list[str]] = {kind: [] for kind in MODULE_CLASSES}
    for path, kind, _ in matrices(config):
        text = describe_rule(rule_for(path, kind, rules))
        if text not in found[kind]:
            found[kind].append(text)
    return {kind: ", ".join(texts) for kind, texts in found.items() if texts}


def describe_rule(rule: QuantizationRule | None) -> str:
    """Return how a rule (None: none fits) makes a matrix, for people: `int4 g32 + int8-token`."""
    if rule is None or rule.weight is None:
        return "fp32"
    if rule.weight.bits == 16 and rule.activation != "int16":
        return "fp16"
    grouping = f"g{rule.weight.group}" if rule.weight.group else "per channel"
    return f"int{rule.weight.bits} {grouping}" + (f" + {rule.activation}" if rule.activation else "")
