"""What a search may choose from: the modules, and for each the weights that its target can store."""

from __future__ import annotations

from typing import NamedTuple

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.errors import UsageError
from lfm2_export.graph.matrices import matrices
from lfm2_export.graph.steps import layer_of
from lfm2_export.quantize.scheme import QuantizationRule, WeightScheme
from lfm2_export.quantize.size import matrix_bytes

# coarsest first; group None is per row
_SCHEMES: dict[str, tuple[WeightScheme, ...]] = {
    "xnnpack": (
        *(WeightScheme(bits=4, group=group, scale="bfloat16") for group in (128, 64, 32)),
        WeightScheme(bits=8),
    ),
    "onnx": (
        *(WeightScheme(bits=4, group=group) for group in (128, 64, 32)),
        WeightScheme(bits=8, group=32),
    ),
}
_ACTIVATIONS = {"xnnpack": "int8-token", "onnx": "int8-block"}
TARGETS = tuple(_SCHEMES)


class Unit(NamedTuple):
    """Modules that are decided together: one, or an embedding and the head that shares its storage."""

    paths: tuple[str, ...]
    shape: tuple[int, int]
    layer: int | None  # None: embedding or head
    options: tuple[WeightScheme, ...]

    def stored(self, option: WeightScheme) -> int:
        """Bytes in the file."""
        return matrix_bytes(self.shape, QuantizationRule(match="*", weight=option))

    def read(self, option: WeightScheme) -> int:
        """Bytes read for every decoded token: of an embedding that is not the head as well, a single row."""
        return self.stored(option) // (self.shape[0] if self.paths == ("embed_tokens",) else 1)


def units(config: LFM2Config, target: str) -> list[Unit]:
    """Every matrix of the model, in the model's order. UsageError for a target without a choice of weights."""
    if target not in _SCHEMES:
        raise UsageError(f"tune chooses weights for {' and '.join(TARGETS)}, not for {target!r}")
    found = []
    for path, kind, shape in matrices(config):
        if kind == "head" and config.tie_word_embeddings:
            continue
        paths = (path, "lm_head") if kind == "embedding" and config.tie_word_embeddings else (path,)
        options = tuple(each for each in _SCHEMES[target] if shape[1] % (each.group or 1) == 0)
        found.append(Unit(paths, shape, layer_of(path), options))
    return found


def rule(path: str, option: WeightScheme, target: str) -> QuantizationRule:
    """The recipe's line for one module."""
    activation = None if path == "embed_tokens" else _ACTIVATIONS[target]
    return QuantizationRule.model_validate({"match": path, "weight": option, "activation": activation})


def named(option: WeightScheme) -> str:
    """For people: "int4 g32"."""
    return f"int{option.bits} " + (f"g{option.group}" if option.group else "per row")
