"""How many HTP contexts a model needs: one holds less than 4 GB, weights and caches together.

ExecuTorch's guide for Qualcomm shows the failure, a context estimated at 4.03e9 bytes for which no place was found.
What the compiler adds to weights and caches (spill buffers, constants, the program itself) is left room for.
"""

from __future__ import annotations

import math

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.errors import RecipeError
from lfm2_export.graph.matrices import matrices
from lfm2_export.graph.steps import layer_of
from lfm2_export.model.state import state_shapes
from lfm2_export.quantize.scheme import rule_for
from lfm2_export.recipes import Recipe

CONTEXT_BYTES = 3_500_000_000  # for weights and caches
_ELEMENT_BYTES = 2  # of a cache: fp16 or 16-bit integers


def first_layers(layers: int, shards: int) -> tuple[int, ...]:
    """The layer that each shard after the first begins with; their numbers of layers differ by one at most."""
    return tuple(shard * layers // shards for shard in range(1, shards))


def shards_needed(config: LFM2Config, recipe: Recipe, copies: int, limit: int = CONTEXT_BYTES) -> int:
    """The smallest number of shards that all fit; `copies` of the weights lie in each (2: one for each method).

    RecipeError when even a shard per layer is too large.
    """
    layers = config.num_hidden_layers
    for shards in range(1, layers + 1):
        if max(_shard_bytes(config, recipe, shards, copies)) <= limit:
            return shards
    raise RecipeError(f"{recipe.name}: a single layer with its cache exceeds an NPU context of {limit / 1e9:.1f} GB")


def _shard_bytes(config: LFM2Config, recipe: Recipe, shards: int, copies: int) -> list[int]:
    """Of each shard; the first holds the embedding as well, the last the head."""
    sizes = [0] * shards
    starts = first_layers(config.num_hidden_layers, shards)

    def shard_of(layer: int) -> int:
        return sum(layer >= start for start in starts)

    for path, kind, shape in matrices(config):
        rule = rule_for(path, kind, recipe.quantization)
        assert rule is not None  # the target's check
        assert rule.weight is not None
        layer = layer_of(path)
        shard = shard_of(layer) if layer is not None else 0 if kind == "embedding" else shards - 1
        sizes[shard] += copies * math.prod(shape) * rule.weight.bits // 8
    for name, cache in state_shapes(config, recipe.window).items():
        # an input of both methods
        sizes[shard_of(int(name.rpartition(".")[2]))] += 2 * math.prod(cache) * _ELEMENT_BYTES
    return sizes
