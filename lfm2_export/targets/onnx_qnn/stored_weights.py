"""The weights in the file: what rounding makes of the decoder's, and whether they are those that are stored."""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from lfm2_export.graph.matrices import matrices
from lfm2_export.model.decoder import Decoder
from lfm2_export.quantize.scheme import Rules, rule_for
from lfm2_export.targets.onnx_qnn.weights import half_name, weight_name

_HALF_A_STEP = 0.501
_SCALED_TO = {4: 7.5, 8: 127}  # the integer, or what lies between two, that a row's largest weight becomes


@torch.no_grad()
def as_stored(decoder: Decoder, rules: Rules) -> Decoder:
    """Return a decoder with the matrices that onnxruntime's tool stores: integers with one scale per output, in fp32.

    fp16 ones it has already, and an embedding's 16 bits are as good as fp32. The given decoder is not changed.
    """
    own = copy.deepcopy(decoder, {id(tensor): tensor for tensor in decoder.parameters()})  # the tensors are shared
    for path, kind, _ in matrices(own.config):
        rule = rule_for(path, kind, rules)
        if kind == "embedding" or rule is None or rule.weight is None or rule.activation != "int16":
            continue
        module = cast(nn.Linear, own.get_submodule(path))
        limit = _SCALED_TO[rule.weight.bits]
        largest = module.weight.abs().amax(1, keepdim=True)
        scales = torch.where(largest > 0, largest / limit, 1)
        lowest, highest = -int(limit + 0.5), int(limit)
        integers = (module.weight / scales).round().clamp(lowest, highest)
        module.weight = nn.Parameter(integers * scales, requires_grad=False)
    return own


def wrong_weights(decoder: Decoder, model: onnx.ModelProto) -> float:
    """Return the share of the decoder's matrices that the file lacks or holds otherwise.

    fp16 ones must be equal, integers the nearest.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    every = matrices(decoder.config)
    tables = [path for path, kind, _ in every if kind == "embedding"]
    wrong = [path for path, _, _ in every if not _holds(stored, decoder, path, tables)]
    return len(wrong) / len(every)


def _holds(stored: dict[str, onnx.TensorProto], decoder: Decoder, path: str, tables: list[str]) -> bool:
    """Whether one matrix is there; a product's that is missing is an embedding's, turned on loading."""
    weight = decoder.get_parameter(f"{path}.weight").detach().numpy()
    wanted = weight if path in tables else weight.T
    name = weight_name(path)
    if f"{name}_quantized" in stored:
        values, scale, zero = (
            numpy_helper.to_array(stored[f"{name}_{part}"]).astype(np.float32)
            for part in ("quantized", "scale", "zero_point")
        )
        return bool((np.abs(wanted - (values - zero) * scale) <= _HALF_A_STEP * scale).all())
    if half_name(path) in stored:
        return np.array_equal(numpy_helper.to_array(stored[half_name(path)]), wanted)
    shared = (numpy_helper.to_array(stored[half_name(table)]) for table in tables if half_name(table) in stored)
    return any(np.array_equal(table, weight) for table in shared)
