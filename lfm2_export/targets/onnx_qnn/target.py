"""ONNX for Qualcomm's NPU through onnxruntime: two static graphs, `decode` (one row) and `prefill` (a chunk of rows).

Weights and activations are fp16, or integers calibrated on real tokens (QDQ). The graphs serve every SoC; with
`options.context_binary` they are also compiled for the one named, which saves the phone the compilation.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

import onnx

from lfm2_export.artifact.manifest import Delegation, MethodSpec
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.errors import RecipeError
from lfm2_export.graph.matrices import matrices
from lfm2_export.graph.steps import Network
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.progress import Progress
from lfm2_export.qualcomm import provider
from lfm2_export.quantize.scheme import needs_calibration
from lfm2_export.recipes import Recipe
from lfm2_export.static_calls import DECODE, PREFILL, angle_kinds
from lfm2_export.targets.onnx_qnn.capabilities import CAPABILITIES
from lfm2_export.targets.onnx_qnn.methods import make_methods
from lfm2_export.targets.onnx_qnn.passes import heads_apart
from lfm2_export.targets.onnx_qnn.shared_weights import save_sharing
from lfm2_export.targets.onnx_qnn.stored_weights import as_stored, wrong_weights
from lfm2_export.targets.onnx_qnn.table import TABLE
from lfm2_export.targets.target import Lowered, Target

_WEIGHTS = "weights.bin"
_PROTOBUF = 2 << 30  # bytes that a model may have in memory while onnxruntime's tool quantizes it


class OnnxQnnTarget(Target):
    """The lowering for Qualcomm's NPU through onnxruntime's QNN provider."""

    name = "onnx_qnn"
    steps = TABLE.keys()
    capabilities = CAPABILITIES
    padded = True

    def network(self, config: LFM2Config) -> Network:
        return heads_apart(super().network(config), config)

    def check(self, recipe: Recipe, config: LFM2Config) -> None:
        super().check(recipe, config)
        _check_model(recipe, config, self.network(config))

    def half(self, recipe: Recipe) -> bool:
        return not needs_calibration(recipe.quantization)

    def lower(
        self, decoder: Decoder, recipe: Recipe, folder: Path, progress: Progress, sequences: TokenSequences = ()
    ) -> Lowered:
        """Write both graphs, and compile them for the SoC; LoweringError if an operator stays outside the NPU."""
        return self._lower(decoder, recipe, folder, progress, sequences, probed=False)

    def lower_with_probes(
        self, decoder: Decoder, recipe: Recipe, folder: Path, progress: Progress, sequences: TokenSequences = ()
    ) -> Lowered:
        """Write the same graphs, which also return what goes into and comes out of every module."""
        return self._lower(decoder, recipe, folder, progress, sequences, probed=True)

    def weights_error(self, decoder: Decoder, folder: Path) -> float:
        """Return the share of the stored matrices that are not the decoder's, in fp16 or as the nearest integers."""
        return wrong_weights(decoder, onnx.load(folder / "decode.onnx"))

    def as_stored(self, decoder: Decoder, recipe: Recipe) -> Decoder:
        return as_stored(decoder, recipe.quantization)

    def _lower(
        self,
        decoder: Decoder,
        recipe: Recipe,
        folder: Path,
        progress: Progress,
        sequences: TokenSequences,
        probed: bool,
    ) -> Lowered:
        soc = CAPABILITIES.option(recipe, "soc")
        rows = {DECODE: 1, PREFILL: min(CAPABILITIES.option(recipe, "prefill_chunk"), recipe.window)}
        with tempfile.TemporaryDirectory(dir=folder, prefix=".float") as scratch:
            made = make_methods(decoder, recipe, rows, Path(scratch), progress, sequences, probed)
        save_sharing({f"{name}.onnx": method.model for name, method in made.items()}, folder, _WEIGHTS)
        specs = []
        for name, method in made.items():
            progress(f"compiling {name} for {soc}")
            file = f"{name}.{soc}.onnx" if CAPABILITIES.option(recipe, "context_binary") else f"{name}.onnx"
            context = folder / file if file != f"{name}.onnx" else None
            opened = provider.open_model(folder / f"{name}.onnx", soc, context)
            inside = Delegation(backend="QNN", calls=opened.calls, delegated=opened.operators, fallback={})
            specs.append(
                MethodSpec(
                    name=name,
                    file=file,
                    inputs=method.inputs,
                    outputs=method.outputs,
                    max_tokens=rows[name],
                    delegation=inside,
                )
            )
        return Lowered(
            methods=specs,
            transport="slice",
            cache_layout="heads-time",
            versions={name: version(name) for name in ("onnx", "onnxruntime", "onnxruntime-qnn")},
            runtime_requirement=f"onnxruntime-qnn=={version('onnxruntime-qnn')}",
        )


TARGET = OnnxQnnTarget()


def _check_model(recipe: Recipe, config: LFM2Config, network: Network) -> None:
    """Refuse models that onnxruntime's tool cannot quantize, or the caller of a method has no inputs for."""
    size = 4 * sum(rows * columns for _, _, (rows, columns) in matrices(config))
    if needs_calibration(recipe.quantization) and size > _PROTOBUF:
        raise RecipeError(
            f"{recipe.name}: onnxruntime quantizes models of up to 2 GB in fp32, this one has {size / 1e9:.1f} GB; "
            "use onnx-qnn-fp16"
        )
    angles = {step.arguments for step in network.of_kind("rotary")}
    made = {(config.head_dim, *config.rotary(kind)) for kind in angle_kinds(config)}
    if angles - made:
        raise RecipeError(f"{recipe.name}: the caller of an NPU method makes RoPE's factors of {made}, not {angles}")
