"""What range each activation takes on the calibration tokens: onnxruntime's calibrators over the float graph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.quantize.calibration import Calibration
from lfm2_export.static_calls import graph_inputs, static_state, write_back
from lfm2_export.targets.onnx_qnn.float_graph import FloatGraph

OBSERVERS = {"min-max": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}
_QUIET = 3  # onnxruntime's log level: errors only
Range = tuple[float, float]
Arrays = dict[str, np.ndarray]


def activation_ranges(
    prefill: FloatGraph,
    model: Path,
    config: LFM2Config,
    rows: int,
    window: int,
    sequences: TokenSequences,
    calibration: Calibration,
) -> dict[str, Range]:
    """Return (lowest, highest) of every float tensor of a prefill graph, saved as `model`, over whole conversations.

    A state is read under one name and written under another; both, and the tensor that joins them, get the widest
    range of the three, so that a value keeps its integer on the way through.
    """
    method = OBSERVERS[calibration.observer]
    extra = {"percentile": calibration.percentile, "symmetric": False}
    augmented = str(model.with_suffix(".calibration.onnx"))
    calibrator = create_calibrator(model, None, augmented, method, use_external_data_format=True, extra_options=extra)
    calibrator.collect_data(_Conversations(model, config, rows, window, sequences))
    data: TensorsData = calibrator.compute_data()
    ranges = {name: (float(np.min(values.lowest)), float(np.max(values.highest))) for name, values in data.items()}
    for state, joined in prefill.joined.items():
        _unite(ranges, state, f"new_{state}", joined)
    return ranges


class _Conversations(CalibrationDataReader):
    """The inputs of every call of every window, the state carried from call to call by the float graph itself."""

    def __init__(self, model: Path, config: LFM2Config, rows: int, window: int, sequences: TokenSequences) -> None:
        self._config, self._rows, self._window, self._sequences = config, rows, window, sequences
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _QUIET
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._calls = self._all()

    def get_next(self) -> Arrays | None:
        return next(self._calls, None)

    def _all(self) -> Iterator[Arrays]:
        for tokens in self._sequences:
            state = static_state(self._config, self._window)
            for start in range(0, len(tokens), self._rows):
                chunk = tokens[start : start + self._rows]
                inputs = graph_inputs(self._config, chunk, start, self._rows, self._window) | state
                arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
                yield {name: array.copy() for name, array in arrays.items()}
                new = self._session.run([f"new_{name}" for name in state], arrays)
                write_back(state, map(torch.from_numpy, new), start, len(chunk))


def _unite(ranges: dict[str, Range], *names: str) -> None:
    lows, highs = zip(*(ranges[name] for name in names), strict=True)
    for name in names:
        ranges[name] = (min(lows), max(highs))
