"""The matrices of a model, read off its trace: what a recipe's rules can match, and which of them share an input."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

from torch import Tensor, nn

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.graph.steps import layer_of
from lfm2_export.graph.trace import trace
from lfm2_export.model.decoder import skeleton

MatrixClass = Literal["embedding", "head", "conv", "linear", "gate", "expert"]


class Matrix(NamedTuple):
    """A module with a weight matrix, `shape` (rows, columns)."""

    path: str
    kind: MatrixClass  # embedding; head, which makes the logits; conv, a short convolution's projection; gate, whose
    # results weigh others; expert, of which a token uses a few; or linear
    shape: tuple[int, int]


@lru_cache(maxsize=16)
def matrices(config: LFM2Config) -> tuple[Matrix, ...]:
    """Every matrix of a model of that shape, in the order in which they are used."""
    network, model = trace(config, padded=False), skeleton(config)
    convolutions = {step.path for step in network.of_kind("short_conv")}
    gates = {value for step in network.of_kind("gate_heads") for value in step.inputs[1:]}
    gates |= {step.inputs[0] for step in network.of_kind("choose_experts")}

    def kind(step_kind: str, path: str, output: str) -> MatrixClass:
        if step_kind == "embedding":
            return "embedding"
        if output == network.logits:
            return "head"
        if output in gates:
            return "gate"
        return "conv" if path.rpartition(".")[0] in convolutions else "linear"

    found: list[Matrix] = []
    for step in network.of_kind("embedding", "linear", "experts"):
        if step.kind == "experts":
            experts = model.get_submodule(step.path).named_modules(prefix=step.path)
            parts = [(path, part) for path, part in experts if isinstance(part, nn.Linear)]
            found += [Matrix(path, "expert", (part.out_features, part.in_features)) for path, part in parts]
            continue
        weight = model.get_submodule(step.path).weight
        assert isinstance(weight, Tensor)
        rows, columns = weight.shape
        found.append(Matrix(step.path, kind(step.kind, step.path, step.output), (rows, columns)))
    return tuple(found)


def mixtures(config: LFM2Config, layer: int) -> tuple[str, ...]:
    """Return the modules of a layer that hold all of its experts: one, or none."""
    return tuple(step.path for step in trace(config, padded=False).of_kind("experts") if layer_of(step.path) == layer)


class Siblings(NamedTuple):
    """Matrices that multiply one and the same value, in the order in which they are used."""

    value: str
    paths: tuple[str, ...]


@lru_cache(maxsize=1024)
def siblings(config: LFM2Config, layer: int | None) -> tuple[Siblings, ...]:
    """Return the matrices of a layer (None: of no layer, the head) by what they multiply, in the order of the trace."""
    found: dict[str, list[str]] = {}
    for step in trace(config, padded=False).of_kind("linear"):
        if layer_of(step.path) == layer:
            found.setdefault(step.inputs[0], []).append(step.path)
    return tuple(Siblings(value, tuple(paths)) for value, paths in found.items())
