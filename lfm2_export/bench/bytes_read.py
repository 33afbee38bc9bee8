"""How many bytes a decode step must read: the figure that bounds its speed on any machine.

Counted from the recipe and the model's shape, not from files: a step reads the head whole, but one row of the
embedding, and of a layer's experts those that its token chose. Norms, biases and conv kernels (under 0.1 %) are left
out.
"""

from __future__ import annotations

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.checkpoint.config import LFM2Config, from_dict
from lfm2_export.graph.matrices import matrices
from lfm2_export.model import state
from lfm2_export.quantize.scheme import QuantizationRule, rule_for
from lfm2_export.quantize.size import matrix_bytes, share_read


def weight_bytes(manifest: Manifest) -> int:
    """Return the bytes of every matrix a step reads once, at its recipe's width, with its scales."""
    rules = tuple(QuantizationRule.model_validate(rule) for rule in manifest.recipe["quantization"])
    config = _config(manifest)
    read = (matrix for matrix in matrices(config) if matrix.kind != "embedding")
    return int(
        sum(share_read(config, kind) * matrix_bytes(shape, rule_for(path, kind, rules)) for path, kind, shape in read)
    )


def cache_bytes(manifest: Manifest) -> int:
    """Return the bytes of keys and values of one token over all layers, in the recipe's cache precision."""
    return state.cache_bytes(_config(manifest), manifest.recipe["cache"])


def _config(manifest: Manifest) -> LFM2Config:
    return from_dict(manifest.source.config, "manifest.json")
