"""Are the weights in the file the decoder's? Each stored matrix, read back, against the one it was made from."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from lfm2_export.model.decoder import Decoder
from lfm2_export.quantize.scheme import quantizable
from lfm2_export.targets._onnx_qnn.decoder import weight_name

_HALF_A_STEP = 0.501


def wrong_weights(decoder: Decoder, model: onnx.ModelProto) -> float:
    """Share of the decoder's matrices that the file lacks or holds otherwise (fp16 must be equal, integers nearest)."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    paths = [path for path, _, _ in quantizable(decoder.config)]
    return sum(not _holds(decoder, path, stored) for path in paths) / len(paths)


def _holds(decoder: Decoder, path: str, stored: dict[str, onnx.TensorProto]) -> bool:
    """Whether one matrix is there; a head that is missing is the embedding's, turned on loading."""
    weight = decoder.get_parameter(f"{path}.weight").detach().numpy()
    name = weight_name(path)
    if f"{name}_quantized" in stored:
        wanted = weight if path == "embed_tokens" else weight.T
        values, scale, zero = (
            numpy_helper.to_array(stored[f"{name}_{part}"]).astype(np.float32)
            for part in ("quantized", "scale", "zero_point")
        )
        return bool((np.abs(wanted - (values - zero) * scale) <= _HALF_A_STEP * scale).all())
    half = stored.get(f"{path}.weight_fp16")
    if half is None:
        half = stored.get("embed_tokens.weight_fp16") if path == "lm_head" else None
        return half is not None and np.array_equal(numpy_helper.to_array(half), weight)
    wanted = weight if path == "embed_tokens" else weight.T
    return np.array_equal(numpy_helper.to_array(half), wanted)
