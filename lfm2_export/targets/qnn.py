"""ExecuTorch `.pte` for Qualcomm's NPU (HTP): one method for a token, one for a chunk, over the caller's state.

Everything runs on the NPU; a node that does not fails the export unless the recipe's options allow it. The file for
the phone stores weights that both methods use once. The emulator, on which an artifact is proven, cannot load such a
file, so a second one is compiled for it from the same networks (`emulator.pte`); an app needs only `model.pte`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lfm2_export.artifact.manifest import Delegation, MethodSpec, Npu, TensorSpec
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.errors import LoweringError, RecipeError
from lfm2_export.model.decoder import Decoder
from lfm2_export.qualcomm import sdk
from lfm2_export.qualcomm import soc as chips
from lfm2_export.qualcomm.calls import DECODE, PREFILL, npu_state
from lfm2_export.quantize.calibration import Windows
from lfm2_export.quantize.scheme import needs_calibration, quantizable, rule_for
from lfm2_export.quantize.static_weights import METHODS, static_weights
from lfm2_export.recipes import Recipe
from lfm2_export.targets._compiling import no_collection, quiet
from lfm2_export.targets._qnn.capacity import first_layers, shards_needed
from lfm2_export.targets._qnn.network import NpuDecoder
from lfm2_export.targets.target import Lowered, Methods, Stage

FILE, EMULATOR_FILE = "model.pte", "emulator.pte"
_OPTIONS = {"soc": chips.DEFAULT, "prefill_chunk": 32, "weight_sharing": True, "allow_fallback": False, "shards": None}


def check(recipe: Recipe, config: LFM2Config) -> None:
    """Refuse what this target cannot do, and say so when Qualcomm's libraries are missing."""
    if recipe.form != "explicit":
        raise RecipeError(f"{recipe.name}: the qnn target has only the 'explicit' form")
    unknown = sorted(set(recipe.options) - set(_OPTIONS))
    if unknown:
        raise RecipeError(f"{recipe.name}: unknown options for the qnn target: {', '.join(unknown)}")
    chunk = _option(recipe, "prefill_chunk")
    if type(chunk) is not int or not 2 <= chunk <= recipe.window:
        raise RecipeError(f"{recipe.name}: options.prefill_chunk is {chunk!r}; expected 2 to the window")
    for name in ("weight_sharing", "allow_fallback"):
        if type(_option(recipe, name)) is not bool:
            raise RecipeError(f"{recipe.name}: options.{name} is {_option(recipe, name)!r}; expected true or false")
    shards, layers = _option(recipe, "shards"), len(config.layer_types)
    if shards is not None and (type(shards) is not int or not 1 <= shards <= layers):
        raise RecipeError(f"{recipe.name}: options.shards is {shards!r}; expected 1 to {layers}, or null: as needed")
    if recipe.weights not in METHODS:
        raise RecipeError(f"{recipe.name}: weights: {recipe.weights}: for the NPU they are {', '.join(METHODS)}")
    _check_rules(recipe, config)
    _check_chip(recipe, config, chips.named(_option(recipe, "soc")))
    sdk.version()


def lower(decoder: Decoder, recipe: Recipe, folder: Path, stage: Stage, windows: Windows = ()) -> Lowered:
    """Write `model.pte`, and `emulator.pte` where the first cannot run on the emulator."""
    config, soc, chunk = decoder.config, chips.named(_option(recipe, "soc")), _option(recipe, "prefill_chunk")
    half = not needs_calibration(recipe.quantization)
    grouped = any(rule.weight is not None and rule.weight.group is not None for rule in recipe.quantization)
    methods = _methods(decoder, recipe, windows, stage)
    shared = bool(_option(recipe, "weight_sharing")) and soc.shares_weights
    files = {FILE: shared} | ({EMULATOR_FILE: False} if shared else {})
    from lfm2_export.targets._qnn.compile import compiled
    from lfm2_export.targets._qnn.quantized import example

    # counted for the file that stores weights twice: what is proven on the emulator has the phone's cuts
    shards = _option(recipe, "shards") or shards_needed(config, recipe, copies=2)
    starts = first_layers(len(config.layer_types), shards)
    examples = {name: example(config, recipe.window, rows) for name, rows in _rows(chunk).items()}
    with quiet(), no_collection(), torch.no_grad():
        for name, share in files.items():
            stage(f"compiling {name} for {soc.name}" + (" (weights stored once)" if share else ""))
            reports = compiled(
                methods, examples, soc, folder / name, half=half, share=share, grouped=grouped, starts=starts
            )
            _refuse_fallback(reports, recipe)
    return Lowered(
        methods=[_method(name, rows, config, recipe.window, reports[name]) for name, rows in _rows(chunk).items()],
        transport="slice",
        cache_layout="heads-time",
        versions={name: version(name) for name in ("executorch", "torch", "torchao")} | {"qnn": sdk.version()},
        runtime_requirement=f"executorch=={version('executorch')} with the QNN backend",
        npu=Npu(
            soc=soc.name,
            htp=soc.generation,
            shards=shards,
            weights_shared=shared,
            emulator_file=list(files)[-1],
        ),
    )


def weights_error(decoder: Decoder, folder: Path) -> None:
    """None: the compiled program's weights lie in Qualcomm's own format."""
    return


def reference(decoder: Decoder, recipe: Recipe, windows: Windows) -> Methods | None:
    """The same quantized model in eager PyTorch, by method; None in fp16, where the decoder itself is that."""
    if not needs_calibration(recipe.quantization):
        return None
    return _methods(decoder, recipe, windows, lambda _: None)


def _methods(decoder: Decoder, recipe: Recipe, windows: Windows, stage: Stage) -> dict[str, nn.Module]:
    sdk.prepare()
    if recipe.calibration is None:
        return dict(_networks(decoder, recipe))
    stage(f"choosing the weights' scales ({recipe.weights})")
    rounded = static_weights(decoder, recipe.quantization, windows, recipe.weights)
    stage(f"calibrating on {sum(map(len, windows))} tokens")
    networks, soc = _networks(rounded.decoder, recipe), chips.named(_option(recipe, "soc"))
    with quiet():
        from lfm2_export.targets._qnn.quantized import quantized

        return dict(quantized(networks, rounded.scales, decoder.config, recipe, soc, windows))


def _networks(decoder: Decoder, recipe: Recipe) -> dict[str, NpuDecoder]:
    rows = _rows(_option(recipe, "prefill_chunk"))
    return {name: NpuDecoder(decoder, recipe.window, count).eval() for name, count in rows.items()}


def _rows(chunk: int) -> dict[str, int]:
    return {DECODE: 1, PREFILL: chunk}


def _option(recipe: Recipe, name: str) -> Any:
    return recipe.options.get(name, _OPTIONS[name])


def _check_rules(recipe: Recipe, config: LFM2Config) -> None:
    chosen = {path: (kind, rule_for(path, kind, recipe.quantization)) for path, kind, _ in quantizable(config)}
    static = needs_calibration(recipe.quantization)
    for path, (kind, rule) in chosen.items():
        where = f"{recipe.name}: {path}:"
        if rule is None or rule.weight is None:
            raise RecipeError(f"{where} HTP has no fp32; give it bits 16 (fp16), or int16 activations")
        if static != (rule.activation == "int16"):
            raise RecipeError(f"{where} a program is fp16 throughout, or has int16 activations throughout")
        if static and kind == "embedding" and rule.weight.bits != 16:
            raise RecipeError(f"{where} HTP looks an embedding up in its activations' format; use bits 16")
        if not static and (rule.weight.bits != 16 or rule.activation not in (None, "float16")):
            raise RecipeError(f"{where} integer weights need int16 activations on the NPU")
        if static and rule.weight.group is not None and (rule.weight.bits != 4 or rule.weight.group % 16):
            raise RecipeError(f"{where} HTP has groups of 4-bit weights only, of a multiple of 16")
    if recipe.cache != ("float32" if static else "float16"):
        raise RecipeError(f"{recipe.name}: cache {recipe.cache}: it is float16 in an fp16 program, else float32 here")


def _check_chip(recipe: Recipe, config: LFM2Config, soc: chips.Soc) -> None:
    """Refuse weights and arithmetic that this chip's generation lacks."""
    half = not needs_calibration(recipe.quantization)
    for path, kind, _ in () if half else quantizable(config):
        rule = rule_for(path, kind, recipe.quantization)
        if kind == "embedding" or rule is None or rule.weight is None:
            continue
        what, since = ("groups of weights (LPBQ)", 69) if rule.weight.group else ("16-bit weights", 73)
        if soc.generation < since and (rule.weight.group or rule.weight.bits == 16):
            raise RecipeError(f"{recipe.name}: {path}: {what} need HTP v{since}, {soc.name} has v{soc.generation}")
    lacking = soc.lacks(half, bool(config.attention_layers))
    if lacking is not None:
        raise RecipeError(f"{recipe.name}: {soc.name} (HTP v{soc.generation}) has no {lacking}")


def _refuse_fallback(reports: Mapping[str, Delegation], recipe: Recipe) -> None:
    left = {f"{name} × {count}" for report in reports.values() for name, count in report.fallback.items()}
    if left and not _option(recipe, "allow_fallback"):
        raise LoweringError(f"outside the NPU: {', '.join(sorted(left))}; --allow-fallback accepts that")


def _method(name: str, rows: int, config: LFM2Config, window: int, report: Delegation) -> MethodSpec:
    state = npu_state(config, window)
    inputs = [
        TensorSpec(name="tokens", dtype="int32", shape=[1, rows]),
        TensorSpec(name="position", dtype="int32", shape=[1]),
        TensorSpec(name="length", dtype="int32", shape=[1]),
        TensorSpec(name="mask", dtype="float32", shape=[1, 1, rows, window + rows]),
        *(TensorSpec(name=key, dtype="float32", shape=list(tensor.shape)) for key, tensor in state.items()),
    ]
    outputs = [TensorSpec(name="logits", dtype="float32", shape=[1, 1, config.vocab_size])]
    outputs += [_new(f"new_{key}", tensor, rows) for key, tensor in state.items()]
    return MethodSpec(name=name, file=FILE, inputs=inputs, outputs=outputs, max_tokens=rows, delegation=report)


def _new(name: str, tensor: Tensor, rows: int) -> TensorSpec:
    batch, first, second, *rest = tensor.shape
    shape = [batch, first, rows, *rest] if rest else [batch, first, second]
    return TensorSpec(name=name, dtype="float32", shape=list(shape))
