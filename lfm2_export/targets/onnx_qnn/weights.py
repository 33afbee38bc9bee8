"""The decoder's matrices in a float graph, under the names by which they are quantized and read back."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from lfm2_export.model.decoder import Decoder
from lfm2_export.targets.onnx_graph import Graph


def weight_name(path: str) -> str:
    """Return the graph's name of a module's matrix: `[inputs, outputs]`, or an embedding's `[vocab, hidden]`."""
    return f"{path}.weight"


def half_name(path: str) -> str:
    """Return the name under which a module's matrix is stored in fp16."""
    return f"{path}.weight_fp16"


def matrix(graph: Graph, path: str, weight: Tensor, transposed: bool = False) -> str:
    """Write a weight as float32; one that is stored in fp16 is widened when the model is loaded."""
    half = weight.dtype == torch.float16
    shape = weight.shape[::-1] if transposed else weight.shape

    def make() -> np.ndarray:
        array = weight.detach().numpy()
        return array.transpose() if transposed else array

    stored = graph.weight(
        half_name(path) if half else weight_name(path), np.float16 if half else np.float32, shape, make
    )
    return graph.op("Cast", weight_name(path), stored, to=TensorProto.FLOAT) if half else stored


def product_matrix(graph: Graph, decoder: Decoder, path: str, tables: Iterable[str]) -> str:
    """Write a product's matrix, `[inputs, outputs]`; in fp16 one that is an embedding's is that, turned on loading.

    `tables` are the embeddings' paths.
    """
    weight = decoder.get_parameter(weight_name(path))
    for table in tables:
        other = decoder.get_parameter(weight_name(table))
        if weight.dtype == other.dtype == torch.float16 and torch.equal(weight, other):
            return graph.op("Transpose", weight_name(path), weight_name(table), perm=[1, 0])
    return matrix(graph, path, weight, transposed=True)
