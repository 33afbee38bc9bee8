"""The float graph with every activation at 16 bits and every matrix on integers, as QDQ pairs.

Done by onnxruntime's own tool, with what Qualcomm's NPU was found to need: matrices symmetric (the NPU takes no notice
of the zero point of 4-bit weights, the cause of its well-known wrong results in that mode) and with one scale per
output, which it computes right although the tool would rather not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.graph.matrices import matrices
from lfm2_export.quantize.scheme import Rules, rule_for
from lfm2_export.targets.onnx_qnn.activation_ranges import Range
from lfm2_export.targets.onnx_qnn.border import MASK, SLIDING_MASK
from lfm2_export.targets.onnx_qnn.weights import weight_name

_WEIGHT_TYPES = {4: QuantType.QInt4, 8: QuantType.QInt8}
_HIDDEN = 20.0  # exp(-20): what a hidden column weighs at most beside the best visible one


def hiding(ranges: Mapping[str, Range], scores: Iterable[str]) -> float:
    """Return what to subtract from a hidden column's score: no more than needed, since 16 bits must span it."""
    highest = max((max(-low, high) for low, high in (ranges[score] for score in scores)), default=0.0)
    return 2 * highest + _HIDDEN


def quantized(model: onnx.ModelProto, ranges: Mapping[str, Range], config: LFM2Config, rules: Rules) -> onnx.ModelProto:
    """Return the QDQ graph of a float one; `ranges` by tensor name."""
    graph = onnx.shape_inference.infer_shapes(model)
    settings = get_qnn_qdq_config(
        graph,
        None,
        activation_type=QuantType.QUInt16,
        weight_type=QuantType.QInt8,
        weight_symmetric=True,
        init_overrides=_weight_overrides(config, rules),
    )
    quantizer = QDQQuantizer(
        graph,
        per_channel=False,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt16,
        tensors_range=_tensors(ranges),
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        op_types_to_quantize=settings.op_types_to_quantize,
        extra_options=settings.extra_options,
    )
    quantizer.quantize_model()
    return quantizer.model.model


def _weight_overrides(config: LFM2Config, rules: Rules) -> dict[str, list[dict[str, Any]]]:
    """Every matrix but the embedding, whose rows become activations and so take theirs: 16 bits, one scale."""
    overrides = {}
    for path, kind, _ in matrices(config):
        rule = rule_for(path, kind, rules)
        if kind != "embedding" and rule is not None and rule.weight is not None:
            bits = _WEIGHT_TYPES[rule.weight.bits]
            overrides[weight_name(path)] = [{"quant_type": bits, "axis": 1, "symmetric": True}]
    return overrides


def with_mask(ranges: Mapping[str, Range], hide: float, scores: Mapping[str, str]) -> dict[str, Range]:
    """Return the ranges with those of what the mask touches, which follow from the scores and `hide`."""
    masked = {after: (ranges[before][0] - hide, ranges[before][1]) for before, after in scores.items()}
    masks = {name: (-hide, 0.0) for name in (MASK, SLIDING_MASK) if name in ranges}
    return {**ranges, **masks, **masked}


def _tensors(ranges: Mapping[str, Range]) -> TensorsData:
    """The ranges as the tool wants them."""
    data = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    return TensorsData(CalibrationMethod.MinMax, data)
