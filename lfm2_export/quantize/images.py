"""The image part of a vision-language model in the precision that a recipe asks for: one rule for all of its matrices.

What is not a matrix, norms, biases and a table of positions, stays in fp32.
"""

from __future__ import annotations

import math

from torch import nn

from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.errors import RecipeError
from lfm2_export.model.load import load_vision_encoder, tensor_shapes
from lfm2_export.model.vision.encoder import VisionEncoder, vision_skeleton
from lfm2_export.quantize.apply import quantize_module
from lfm2_export.quantize.scheme import QuantizationRule, describe_rule
from lfm2_export.quantize.size import matrix_bytes

_LEAST_GROUP = 16  # of inputs that share a scale: kernels have none smaller


def image_rules(config: VisionConfig, rule: QuantizationRule | None) -> dict[str, QuantizationRule | None]:
    """Return the rule of every matrix of the image part by its path; None for fp32.

    Where the rule's group does not divide a matrix's inputs, the largest half, quarter and so on of it that does takes
    its place. Raises RecipeError where none does.
    """
    shapes = _matrices(config)
    return {path: _fitting(path, columns, rule) for path, (_, columns) in shapes.items()}


def load_quantized_encoder(checkpoint: Checkpoint, rule: QuantizationRule | None) -> VisionEncoder:
    """Return the image part under that rule, each matrix rounded as it is read, by its own values alone.

    Raises CheckpointError for NaN or infinity.
    """
    assert checkpoint.vision is not None
    rules = image_rules(checkpoint.vision, rule)

    def loaded(encoder: VisionEncoder, path: str) -> None:
        if path in rules:
            quantize_module(encoder, path, rules[path])

    return load_vision_encoder(checkpoint, loaded)


def describe_images(config: VisionConfig, rule: QuantizationRule | None) -> str:
    """Return how the image part's matrices are stored, for people: `int8 g128, int8 g16`."""
    return ", ".join(dict.fromkeys(describe_rule(each) for each in image_rules(config, rule).values()))


def image_bytes(config: VisionConfig, rule: QuantizationRule | None) -> int:
    """Return the bytes of the image part's weights."""
    rules, shapes = image_rules(config, rule), _matrices(config)
    stored = sum(matrix_bytes(shapes[path], each) for path, each in rules.items())
    everything = sum(map(math.prod, tensor_shapes(config).values()))
    return stored + 4 * (everything - sum(map(math.prod, shapes.values())))


def _matrices(config: VisionConfig) -> dict[str, tuple[int, int]]:
    """Rows and columns of each."""
    modules = vision_skeleton(config).named_modules()
    return {path: (each.out_features, each.in_features) for path, each in modules if isinstance(each, nn.Linear)}


def _fitting(path: str, columns: int, rule: QuantizationRule | None) -> QuantizationRule | None:
    if rule is None or rule.weight is None or rule.weight.group is None:
        return rule
    group = rule.weight.group
    while columns % group and group > _LEAST_GROUP:
        group //= 2
    if columns % group:
        raise RecipeError(
            f"vision: int{rule.weight.bits}: {path} has {columns} inputs, and no group of {_LEAST_GROUP} or more "
            f"divides them; use --set vision=fp16"
        )
    return rule.model_copy(update={"weight": rule.weight.model_copy(update={"group": group})})
