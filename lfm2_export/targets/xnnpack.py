"""ExecuTorch `.pte` for CPUs, computed by the XNNPACK delegate.

One method with a dynamic number of tokens serves prefill and decode, so the packed weights exist once. The explicit
form writes the caller's state tensors in place (`inplace` transport); the resident form keeps them in buffers and
carries the metadata methods that ExecuTorch's stock LLM runners ask for.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
from executorch.exir.passes import MemoryPlanningPass
from torch.export import Dim, ExportedProgram

from lfm2_export.artifact.manifest import TAP, MethodSpec, TensorSpec
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.errors import RecipeError
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.resident import Resident
from lfm2_export.model.state import CACHE_DTYPES, State
from lfm2_export.quantize.calibration import Windows
from lfm2_export.quantize.scheme import WeightScheme, quantizable, rule_for
from lfm2_export.recipes import Recipe
from lfm2_export.targets._compiling import no_collection, quiet
from lfm2_export.targets._xnnpack.decoder import DelegatedDecoder
from lfm2_export.targets._xnnpack.delegation import delegation
from lfm2_export.targets._xnnpack.forms import Explicit, Tapped, native_state
from lfm2_export.targets._xnnpack.in_place import drop_state_copies
from lfm2_export.targets._xnnpack.pte_file import intact_weights, tidy
from lfm2_export.targets.target import Lowered, Stage

FILE, METHOD = "model.pte", "forward"
_BLOCK = 32  # inputs that share a scale in XNNPACK's blockwise kernels, or a multiple of it
_MAX_TOKENS = 256  # of one call, unless the recipe's options say otherwise: the activation arena grows with it


def check(recipe: Recipe, config: LFM2Config) -> None:
    """Refuse what this target cannot do. Raises RecipeError."""
    unknown = sorted(set(recipe.options) - {"max_tokens"})
    if unknown:
        raise RecipeError(f"{recipe.name}: unknown options for the xnnpack target: {', '.join(unknown)}")
    limit = recipe.options.get("max_tokens", _MAX_TOKENS)
    if type(limit) is not int or limit < 2:
        raise RecipeError(f"{recipe.name}: options.max_tokens is {limit!r}; expected a whole number of at least 2")
    for path, kind, _ in quantizable(config):
        rule = rule_for(path, kind, recipe.quantization)
        if rule is None or rule.weight is None:
            continue
        if rule.activation == "int16":
            raise RecipeError(f"{recipe.name}: {path}: int16 activations are the NPU's; XNNPACK has int8-token")
        if rule.activation == "int8-block":
            raise RecipeError(
                f"{recipe.name}: {path}: int8-block activations are onnxruntime's; XNNPACK has int8-token"
            )
        if rule.weight.bits == 16 and kind != "embedding" and rule.activation is None:
            raise RecipeError(f"{recipe.name}: {path}: XNNPACK needs float16 activations beside fp16 weights")
        if kind != "embedding" and rule.weight.bits == 8 and rule.weight.group is not None:
            raise RecipeError(f"{recipe.name}: {path}: XNNPACK has int8 weights per channel only; leave out the group")
        if kind != "embedding" and rule.weight.bits == 4 and not _fits_blocks(rule.weight):
            raise RecipeError(
                f"{recipe.name}: {path}: XNNPACK has int4 weights in groups that are multiples of {_BLOCK}, "
                "with scale: bfloat16"
            )
        if kind != "embedding" and rule.weight.bits != 16 and rule.activation != "int8-token":
            raise RecipeError(f"{recipe.name}: {path}: XNNPACK needs int8-token activations beside integer weights")
        if kind == "embedding" and rule.activation is not None:
            raise RecipeError(f"{recipe.name}: {path}: an embedding has no activations to quantize")


def weights_error(decoder: Decoder, folder: Path) -> float:
    """Share of the delegate's stored weights, scales, norms and kernels that are not the decoder's, byte for byte."""
    with quiet(), torch.no_grad():
        expected = DelegatedDecoder(decoder, _MAX_TOKENS).weights
    return len(expected - intact_weights(folder / FILE)) / len(expected)


def reference(decoder: Decoder, recipe: Recipe, windows: Windows) -> None:
    """None: the quantized decoder is what the artifact computes."""
    return


def _fits_blocks(scheme: WeightScheme) -> bool:
    return scheme.group is not None and scheme.group % _BLOCK == 0 and scheme.scale == "bfloat16"


def lower_tapped(decoder: Decoder, recipe: Recipe, folder: Path, stage: Stage) -> Lowered:
    """The explicit form, whose method also returns what goes into and comes out of every module."""
    return lower(decoder, recipe.model_copy(update={"form": "explicit"}), folder, stage, tapped=True)


def lower(
    decoder: Decoder, recipe: Recipe, folder: Path, stage: Stage, windows: Windows = (), tapped: bool = False
) -> Lowered:
    """Write `model.pte`. LoweringError if the delegate left a matrix product or convolution behind."""
    limit = min(recipe.window, recipe.options.get("max_tokens", _MAX_TOKENS))
    state = native_state(decoder.config, recipe.window, CACHE_DTYPES[recipe.cache])
    explicit = recipe.form == "explicit"
    with quiet(), no_collection(), torch.no_grad():
        stage("packing weights for XNNPACK")
        network = DelegatedDecoder(decoder, limit, tapped).eval()
        stage("tracing")
        program = _trace(network, state if explicit else None, state, limit)
        edge = to_edge(
            {METHOD: program},
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
            constant_methods=None if explicit else _runner_metadata(decoder.config, recipe.window, limit),
        )
        drop_state_copies(edge.exported_program(METHOD))
        report = delegation(edge.exported_program(METHOD).graph_module, network.operators)
        stage("writing the .pte")
        # the caller's own tensors serve as inputs: an arena copy of the KV cache would cost its size again
        planning = MemoryPlanningPass(alloc_graph_input=not explicit)
        final = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".pte") as raw:
            final.write_to_file(raw)
            raw.flush()
            tidy(Path(raw.name), folder / FILE)
    inputs = _inputs(state if explicit else {}, "position" if explicit else "start_pos")
    logits = TensorSpec(name="logits", dtype="float32", shape=[1, decoder.config.vocab_size])
    points = [point for call in network.points for point in call]
    taps = [TensorSpec(name=f"{TAP}{point}", dtype="float32", shape=[]) for point in points]
    method = MethodSpec(
        name=METHOD, file=FILE, inputs=inputs, outputs=[logits, *taps], max_tokens=limit, delegation=report
    )
    return Lowered(
        methods=[method],
        transport="inplace",
        cache_layout="heads-time",
        versions={name: version(name) for name in ("executorch", "torch", "torchao")},
        runtime_requirement=f"executorch=={version('executorch')}",
    )


def _trace(decoder: DelegatedDecoder, given: State | None, state: State, limit: int) -> ExportedProgram:
    tokens = {1: Dim("T", min=1, max=limit)}
    call = (torch.zeros(1, 2, dtype=torch.long), torch.tensor([0]))
    if given is None:
        return torch.export.export(Resident(decoder, state), call, dynamic_shapes=(tokens, None), strict=True)
    dynamic = (tokens, None, dict.fromkeys(given))
    form = Tapped(decoder) if any(decoder.points) else Explicit(decoder)
    return torch.export.export(form, (*call, given), dynamic_shapes=dynamic, strict=True)


def _runner_metadata(config: LFM2Config, window: int, limit: int) -> dict[str, Any]:
    """Constant methods of ExecuTorch's TextLLMRunner and LlmModule (extension/llm/runner/constants.h).

    `get_max_seq_len` is what the runner cuts prompts to, so it must equal the traced bound on T exactly.
    """
    return {
        "get_max_seq_len": limit,
        "get_max_context_len": window,
        "get_vocab_size": config.vocab_size,
        "get_bos_id": config.bos_token_id if config.bos_token_id is not None else 1,
        "get_eos_ids": list(config.eos_token_ids),
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }


def _inputs(state: State, position: str) -> list[TensorSpec]:
    """tokens, position, then the caller's state tensors, which the call changes."""
    inputs = [
        TensorSpec(name="tokens", dtype="int64", shape=[1, "T"]),
        TensorSpec(name=position, dtype="int64", shape=[1]),
    ]
    for name, tensor in state.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        inputs.append(TensorSpec(name=name, dtype=dtype, shape=list(tensor.shape), written=True))
    return inputs
