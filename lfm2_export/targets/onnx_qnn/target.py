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
from lfm2_export.graph.steps import Network
from lfm2_export.model.decoder import Decoder
from lfm2_export.qualcomm import provider
from lfm2_export.qualcomm import soc as chips
from lfm2_export.qualcomm.calls import DECODE, PREFILL
from lfm2_export.quantize.calibration import Windows
from lfm2_export.quantize.scheme import QuantizationRule, needs_calibration, quantizable, rule_for
from lfm2_export.recipes import Recipe
from lfm2_export.targets.onnx_qnn.activation_ranges import OBSERVERS
from lfm2_export.targets.onnx_qnn.methods import make_methods
from lfm2_export.targets.onnx_qnn.passes import heads_apart
from lfm2_export.targets.onnx_qnn.shared_weights import save_sharing
from lfm2_export.targets.onnx_qnn.stored_weights import as_stored, wrong_weights
from lfm2_export.targets.onnx_qnn.table import TABLE
from lfm2_export.targets.target import Lowered, Stage, Target

_WEIGHTS = "weights.bin"
_CHUNK = 32  # rows of prefill, unless the recipe's options say otherwise
_PROTOBUF = 2 << 30  # bytes that a model may have in memory while onnxruntime's tool quantizes it


class OnnxQnnTarget(Target):
    """The lowering for Qualcomm's NPU through onnxruntime's QNN provider."""

    name = "onnx_qnn"
    steps = TABLE.keys()
    padded = True

    def network(self, config: LFM2Config) -> Network:
        return heads_apart(super().network(config), config)

    def check(self, recipe: Recipe, config: LFM2Config) -> None:
        super().check(recipe, config)
        _check_operators(recipe, config, self.network(config))

    def lower(self, decoder: Decoder, recipe: Recipe, folder: Path, stage: Stage, windows: Windows = ()) -> Lowered:
        """Write both graphs, and compile them for the SoC; LoweringError if an operator stays outside the NPU."""
        return self._lower(decoder, recipe, folder, stage, windows, probed=False)

    def lower_with_probes(
        self, decoder: Decoder, recipe: Recipe, folder: Path, stage: Stage, windows: Windows = ()
    ) -> Lowered:
        """Write the same graphs, which also return what goes into and comes out of every module."""
        return self._lower(decoder, recipe, folder, stage, windows, probed=True)

    def weights_error(self, decoder: Decoder, folder: Path) -> float:
        """Return the share of the stored matrices that are not the decoder's, in fp16 or as the nearest integers."""
        return wrong_weights(decoder, onnx.load(folder / "decode.onnx"))

    def as_stored(self, decoder: Decoder, recipe: Recipe) -> Decoder:
        return as_stored(decoder, recipe.quantization)

    def _lower(
        self, decoder: Decoder, recipe: Recipe, folder: Path, stage: Stage, windows: Windows, probed: bool
    ) -> Lowered:
        soc = _soc(recipe)
        rows = {DECODE: 1, PREFILL: min(recipe.options.get("prefill_chunk", _CHUNK), recipe.window)}
        with tempfile.TemporaryDirectory(dir=folder, prefix=".float") as scratch:
            made = make_methods(decoder, recipe, rows, Path(scratch), stage, windows, probed)
        save_sharing({f"{name}.onnx": method.model for name, method in made.items()}, folder, _WEIGHTS)
        specs = []
        for name, method in made.items():
            stage(f"compiling {name} for {soc}")
            file = f"{name}.{soc}.onnx" if recipe.options.get("context_binary", False) else f"{name}.onnx"
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


def _soc(recipe: Recipe) -> str:
    return str(recipe.options.get("soc", chips.DEFAULT))


def _check_operators(recipe: Recipe, config: LFM2Config, network: Network) -> None:
    """Refuse what the NPU or onnxruntime's provider cannot do."""
    unknown = sorted(set(recipe.options) - {"soc", "prefill_chunk", "context_binary"})
    if unknown:
        raise RecipeError(f"{recipe.name}: unknown options for the onnx_qnn target: {', '.join(unknown)}")
    if recipe.form != "explicit":
        raise RecipeError(f"{recipe.name}: form {recipe.form!r} is ExecuTorch's; the onnx_qnn target has 'explicit'")
    if recipe.cache != "float32":
        raise RecipeError(f"{recipe.name}: the onnx_qnn target's cache is float32 at its border; use cache: float32")
    chips.named(_soc(recipe))
    chunk = recipe.options.get("prefill_chunk", _CHUNK)
    if type(chunk) is not int or not 2 <= chunk <= recipe.window:
        raise RecipeError(f"{recipe.name}: options.prefill_chunk is {chunk!r}; expected 2 to {recipe.window} (window)")
    if type(recipe.options.get("context_binary", False)) is not bool:
        raise RecipeError(f"{recipe.name}: options.context_binary is true or false")
    integers = needs_calibration(recipe.quantization)
    for path, kind, _ in quantizable(config):
        _check_rule(recipe, path, kind, rule_for(path, kind, recipe.quantization), integers)
    if recipe.calibration is not None and recipe.calibration.observer not in OBSERVERS:
        raise RecipeError(f"{recipe.name}: onnxruntime calibrates by {' or '.join(OBSERVERS)}")
    if recipe.weights != "nearest":
        raise RecipeError(f"{recipe.name}: weights: onnxruntime's tool rounds to nearest")
    size = 4 * sum(rows * columns for _, _, (rows, columns) in quantizable(config))
    if integers and size > _PROTOBUF:
        raise RecipeError(
            f"{recipe.name}: onnxruntime quantizes models of up to 2 GB in fp32, this one has {size / 1e9:.1f} GB; "
            "use onnx-qnn-fp16"
        )
    angles = {step.arguments for step in network.of_kind("rotary")}
    if angles - {(config.head_dim, config.rope_theta)}:
        raise RecipeError(f"{recipe.name}: the caller of an NPU method makes RoPE's factors of one kind, not {angles}")


def _check_rule(recipe: Recipe, path: str, kind: str, rule: QuantizationRule | None, integers: bool) -> None:
    if rule is None or rule.weight is None:
        raise RecipeError(f"{recipe.name}: {path}: the NPU has no fp32; give it a rule with fp16 or integer weights")
    where = f"{recipe.name}: quantization[{recipe.quantization.index(rule)}]: {path}:"
    if not integers:
        wanted = None if kind == "embedding" else "float16"
        if rule.weight.bits != 16 or rule.activation != wanted:
            raise RecipeError(f"{where} either everything is fp16 (bits 16, activation float16) or everything int16")
        return
    if rule.activation != "int16":
        raise RecipeError(f"{where} either everything has int16 activations or nothing has")
    if rule.weight.group is not None:
        raise RecipeError(f"{where} the provider computes weight groups wrongly beside int16; leave out the group")
    bits = (16,) if kind == "embedding" else (4, 8)
    if rule.weight.bits not in bits:
        raise RecipeError(
            f"{where} {kind} weights have {' or '.join(map(str, bits))} bits here, not {rule.weight.bits}"
        )
