"""Both methods as ONNX models: written in float and, for 16-bit activations, calibrated and quantized."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import onnx

from lfm2_export.artifact.manifest import TensorSpec
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.progress import Progress
from lfm2_export.recipes import Recipe
from lfm2_export.targets.onnx_qnn.activation_ranges import activation_ranges
from lfm2_export.targets.onnx_qnn.float_graph import build
from lfm2_export.targets.onnx_qnn.probes import add_probes
from lfm2_export.targets.onnx_qnn.qdq import hiding, quantized, with_mask

_FAR = 1e4  # hides a column in fp16 and fp32 for good


class Method(NamedTuple):
    """A model, and its inputs and outputs as the manifest records them."""

    model: onnx.ModelProto
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


def make_methods(
    decoder: Decoder,
    recipe: Recipe,
    rows: Mapping[str, int],
    scratch: Path,
    progress: Progress,
    sequences: TokenSequences,
    probed: bool = False,
) -> dict[str, Method]:
    """Make the model of every method, named with its number of rows; `scratch` is a folder for what lies between.

    With `sequences` they are calibrated on these tokens; with `probed` they also return what goes into and comes out of
    every module.
    """
    file, config, window, hide = scratch / "float.onnx", decoder.config, recipe.window, _FAR
    if sequences:
        assert recipe.calibration is not None  # Recipe.check: sequences come from it
        progress("calibrating")
        longest = max(rows.values())
        written = build(decoder, longest, window, _FAR)
        written.graph.save(file)
        ranges = activation_ranges(written, file, config, longest, window, sequences, recipe.calibration)
        hide = hiding(ranges, written.scores)
    made = {}
    for name, count in rows.items():
        progress(f"{'quantizing' if sequences else 'building'} {name}")
        written = build(decoder, count, window, hide)
        written.graph.save(file)
        model = onnx.load(file)
        if sequences:
            model = quantized(model, with_mask(ranges, hide, written.scores), config, recipe.quantization)
        extra = add_probes(model, file, written.points) if probed else []
        made[name] = Method(model, written.graph.inputs, [*written.graph.outputs, *extra])
    return made
