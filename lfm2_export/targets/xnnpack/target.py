"""ExecuTorch `.pte` for CPUs, computed by the XNNPACK delegate.

One method with a dynamic number of tokens serves prefill and decode, so the packed weights exist once. The explicit
form writes the caller's state tensors in place (`inplace` transport), and has a second method over the same weights
that verifies drafts; the resident form keeps its state in buffers and carries the metadata methods that ExecuTorch's
stock LLM runners ask for. A vision-language model's decoder takes embeddings, and the methods that make them of tokens
and of images lie beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
from executorch.exir.passes import MemoryPlanningPass

from lfm2_export.artifact.manifest import VERIFY, VISION_ENCODER, MethodSpec
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.errors import RecipeError
from lfm2_export.graph.steps import Network
from lfm2_export.model.decoder import Decoder, skeleton
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.model.state import FLOAT_DTYPES
from lfm2_export.model.vision.encoder import VisionEncoder
from lfm2_export.progress import Progress
from lfm2_export.recipes import Recipe
from lfm2_export.targets._compiling import no_collection, quiet, swept_temporaries
from lfm2_export.targets.target import Lowered, Target
from lfm2_export.targets.xnnpack import methods
from lfm2_export.targets.xnnpack.border import native_state, runner_metadata
from lfm2_export.targets.xnnpack.capabilities import CAPABILITIES, MAX_TOKENS
from lfm2_export.targets.xnnpack.delegation import delegation
from lfm2_export.targets.xnnpack.in_place import drop_state_copies
from lfm2_export.targets.xnnpack.methods import Method
from lfm2_export.targets.xnnpack.network import forget_weights, pack
from lfm2_export.targets.xnnpack.pte_file import intact_weights, tidy
from lfm2_export.targets.xnnpack.single_token import branch_for_one
from lfm2_export.targets.xnnpack.table import TABLE, prepared
from lfm2_export.targets.xnnpack.weights import Weights


class XnnpackTarget(Target):
    """The lowering to ExecuTorch's XNNPACK delegate."""

    name = "xnnpack"
    steps = TABLE
    capabilities = CAPABILITIES
    lowers_beside = True
    padded = False  # any number of tokens is a call

    def network(self, config: LFM2Config) -> Network:
        return prepared(skeleton(config))

    def check(self, recipe: Recipe, config: LFM2Config) -> None:
        super().check(recipe, config)
        if recipe.form == "resident" and recipe.options.get("speculation"):
            raise RecipeError(f"{recipe.name}: options.speculation: a draft cannot be taken back in the resident form")

    def lower(
        self, decoder: Decoder, recipe: Recipe, folder: Path, progress: Progress, sequences: TokenSequences = ()
    ) -> Lowered:
        """Write `model.pte`. Raises LoweringError if the delegate left a matrix product or convolution behind."""
        return _lower(_methods(decoder, recipe, Weights()), recipe, folder, progress, _metadata(decoder, recipe))

    def lower_with_images(
        self, decoder: Decoder, encoder: VisionEncoder, recipe: Recipe, folder: Path, progress: Progress
    ) -> Lowered:
        """Write `model.pte` whose decoder is given embeddings, with the methods that make them."""
        found, metadata = _methods_with_images(decoder, encoder, recipe), _metadata(decoder, recipe, images=True)
        return _lower(found, recipe, folder, progress, metadata)

    def lower_with_probes(
        self, decoder: Decoder, recipe: Recipe, folder: Path, progress: Progress, sequences: TokenSequences = ()
    ) -> Lowered:
        """Lower the explicit form; its method also returns what goes into and comes out of every module."""
        explicit = recipe.model_copy(update={"form": "explicit"})
        return _lower(_methods(decoder, explicit, Weights(), probed=True), explicit, folder, progress, None)

    def weights_error(self, decoder: Decoder, folder: Path) -> float:
        """Return the share of the delegate's stored weights, scales, norms and kernels that are not the decoder's.

        They are compared byte for byte.
        """
        weights = Weights()
        with torch.no_grad():
            pack(decoder, MAX_TOKENS, weights)
        return len(weights.keys - intact_weights(folder / methods.FILE)) / len(weights.keys)


TARGET = XnnpackTarget()


def _lower(
    methods_of: Iterator[Method], recipe: Recipe, folder: Path, progress: Progress, metadata: dict[str, Any] | None
) -> Lowered:
    """Write methods, which are traced here, into one file, beside constant ones."""
    with quiet(), no_collection(), swept_temporaries(), torch.no_grad():
        progress("packing weights for XNNPACK, tracing")
        found = list(methods_of)
        edge = to_edge(
            {method.spec.name: method.program for method in found},
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
            constant_methods=metadata,
        )
        specs = []
        for spec, _, operators in found:
            program = edge.exported_program(spec.name)
            drop_state_copies(program)
            if spec.name != VERIFY:
                branch_for_one(program)
            report = delegation(program.graph_module, operators)
            specs.append(spec.model_copy(update={"delegation": report}))
        progress("writing the .pte")
        planning = {spec.name: _planning(spec, recipe) for spec in specs}
        final = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))
        raw = folder / f"{methods.FILE}.raw"
        with raw.open("wb") as file:  # closed before it is read again, which Windows would refuse
            final.write_to_file(file)
        tidy(raw, folder / methods.FILE)
        raw.unlink()
        for method in found:
            forget_weights(method.program.graph_module)
            forget_weights(edge.exported_program(method.spec.name).graph_module)
    return Lowered(
        methods=specs,
        transport="inplace",
        cache_layout="heads-time",
        versions={name: version(name) for name in ("executorch", "torch", "torchao")},
        runtime_requirement=f"executorch=={version('executorch')}",
        speculation=next((spec.max_tokens for spec in specs if spec.name == VERIFY), 0),
    )


def _methods(
    decoder: Decoder, recipe: Recipe, weights: Weights, probed: bool = False, embedded: bool = False
) -> Iterator[Method]:
    """Everything of a decoder that can be called but for constants."""
    limit, verified = _limit(recipe, embedded), CAPABILITIES.option(recipe, "speculation")
    state = native_state(decoder.config, recipe.window, FLOAT_DTYPES[recipe.cache])
    if recipe.form == "resident":
        yield methods.resident(decoder, state, limit, weights, embedded)
        return
    yield methods.explicit(decoder, state, limit, weights, probed, embedded)
    if verified and not probed:
        yield methods.verify(decoder, state, min(limit, verified), weights, embedded)


def _methods_with_images(decoder: Decoder, encoder: VisionEncoder, recipe: Recipe) -> Iterator[Method]:
    """The same of a decoder that is given embeddings, and what makes them."""
    weights = Weights()
    yield from _methods(decoder, recipe, weights, embedded=True)
    yield methods.token_embedding(decoder, _limit(recipe, images=True), weights)
    encoded = methods.image_encoder if recipe.form == "resident" else methods.patch_encoder
    yield encoded(encoder, _image_tokens(recipe), weights)


def _planning(spec: MethodSpec, recipe: Recipe) -> MemoryPlanningPass:
    """The caller's own tensors serve as inputs: in the arena the KV cache would cost its size again, an image too."""
    return MemoryPlanningPass(alloc_graph_input=recipe.form == "resident" and spec.name != VISION_ENCODER)


def _metadata(decoder: Decoder, recipe: Recipe, images: bool = False) -> dict[str, Any] | None:
    return runner_metadata(decoder.config, recipe.window, _limit(recipe, images)) if recipe.form == "resident" else None


def _limit(recipe: Recipe, images: bool) -> int:
    """The most tokens of a call. The stock runner feeds an image in one."""
    limit = cast(int, CAPABILITIES.option(recipe, "max_tokens"))
    if images and recipe.form == "resident":
        limit = max(limit, _image_tokens(recipe))
    return min(recipe.window, limit)


def _image_tokens(recipe: Recipe) -> int:
    return cast(int, CAPABILITIES.option(recipe, "image_tokens"))
