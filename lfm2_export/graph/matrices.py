"""The matrices of a model, read off its trace: what a recipe's rules can match."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

from torch import Tensor

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.graph.trace import trace
from lfm2_export.model.decoder import skeleton

MatrixClass = Literal["embedding", "head", "conv", "linear"]


class Matrix(NamedTuple):
    """A module with a weight matrix, `shape` (rows, columns)."""

    path: str
    kind: MatrixClass  # embedding; head, which makes the logits; conv, a short convolution's projection; or linear
    shape: tuple[int, int]


@lru_cache(maxsize=16)
def matrices(config: LFM2Config) -> tuple[Matrix, ...]:
    """Every matrix of a model of that shape, in the order in which they are used."""
    network, model = trace(config, padded=False), skeleton(config)
    convolutions = {step.path for step in network.of_kind("short_conv")}

    def kind(step_kind: str, path: str, output: str) -> MatrixClass:
        if step_kind == "embedding":
            return "embedding"
        if output == network.logits:
            return "head"
        return "conv" if path.rpartition(".")[0] in convolutions else "linear"

    found = []
    for step in network.of_kind("embedding", "linear"):
        weight = model.get_submodule(step.path).weight
        assert isinstance(weight, Tensor)
        rows, columns = weight.shape
        found.append(Matrix(step.path, kind(step.kind, step.path, step.output), (rows, columns)))
    return tuple(found)
