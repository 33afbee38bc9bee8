"""How many bytes a decode step must read: the figure that bounds its speed on any machine.

Counted from the recipe and the model's shape, not from files: a step reads the head whole, but one row of the
embedding. Norms, biases and conv kernels (under 0.1 %) are left out.
"""

from __future__ import annotations

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.checkpoint.config import LFM2Config, from_dict
from lfm2_export.quantize.scheme import QuantizationRule, WeightScheme, quantizable, rule_for

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


def weight_bytes(manifest: Manifest) -> int:
    """Every matrix but the embedding once, at its recipe's width, with its scales."""
    rules = tuple(QuantizationRule.model_validate(rule) for rule in manifest.recipe["quantization"])
    total = 0
    for path, kind, (rows, columns) in quantizable(_config(manifest)):
        rule = rule_for(path, kind, rules)
        total += 0 if kind == "embedding" else _matrix(rows, columns, rule.weight if rule else None)
    return total


def cache_bytes(manifest: Manifest) -> int:
    """Keys and values of one token over all attention layers, in the recipe's cache precision."""
    config, width = _config(manifest), _BYTES[manifest.recipe["cache"]]
    return 2 * len(config.attention_layers) * config.num_key_value_heads * config.head_dim * width


def _matrix(rows: int, columns: int, scheme: WeightScheme | None) -> int:
    if scheme is None:
        return 4 * rows * columns
    if scheme.bits == 16:
        return 2 * rows * columns
    groups = columns // scheme.group if scheme.group else 1
    return rows * columns * scheme.bits // 8 + rows * groups * _BYTES[scheme.scale]


def _config(manifest: Manifest) -> LFM2Config:
    return from_dict(manifest.source.config, "manifest.json")
