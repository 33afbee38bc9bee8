"""ONNX for onnxruntime and what stands on it: one folder for onnxruntime, its genai library and transformers.js.

The graph is written directly, step by step of the trace (`table.py`): fused attention over a shared KV buffer,
quantized matrices in onnxruntime's own packing, and an embedding that a tied head shares.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

import onnx

from lfm2_export.artifact.manifest import PROBE, TOKEN_EMBEDDING, VISION_ENCODER, MethodSpec, point_name
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.errors import RecipeError
from lfm2_export.graph.matrices import matrices
from lfm2_export.graph.passes import norm_before_pick
from lfm2_export.graph.steps import Network, Step, layer_of
from lfm2_export.graph.walk import probes, walk
from lfm2_export.model.decoder import Decoder, skeleton
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.model.vision.encoder import VisionEncoder
from lfm2_export.progress import Progress
from lfm2_export.quantize.scheme import QuantizationRule, rule_for
from lfm2_export.recipes import Recipe
from lfm2_export.targets.capabilities import described
from lfm2_export.targets.onnx import companions
from lfm2_export.targets.onnx.border import Border
from lfm2_export.targets.onnx.capabilities import CAPABILITIES
from lfm2_export.targets.onnx.passes import fused
from lfm2_export.targets.onnx.table import TABLE, Site
from lfm2_export.targets.onnx.vision import embedding_with_images, token_embedding, vision_graph
from lfm2_export.targets.onnx_graph import Graph
from lfm2_export.targets.target import Lowered, Target

# the first onnxruntime that runs it, and what the one before says (`runtime_tests/test_oldest_onnxruntime.py`)
_OLDEST = "1.20.1"  # 1.20.0: SkipSimplifiedLayerNormalization misses its input in fp16
_OLDEST_8_BITS = "1.22.0"  # 1.21.1: MatMulNBits takes only bits = 4
_OLDEST_FUSED_EMBEDDING = "1.23.0"  # 1.22.1: GatherBlockQuantized has no attribute bits
_OLDEST_FUSED_CONV = "1.25.1"  # 1.25.0: CausalConvWithState is not a registered function/op
_OLDEST_CHANNELS_LAST = "1.30.0"  # 1.29.0: unrecognized attribute channels_last for CausalConvWithState
_OLDEST_EXPERTS = "1.31.1"  # 1.30.0 has a QMoE, but refuses the graph
_HEAD_DIM_STEP = 16  # GroupQueryAttention's rotary kernel works in steps of it


class OnnxTarget(Target):
    """The lowering for onnxruntime's CPU, CUDA, WebAssembly and WebGPU providers."""

    name = "onnx"
    steps = TABLE.keys()
    capabilities = CAPABILITIES
    lowers_beside = True
    padded = True

    def network(self, config: LFM2Config) -> Network:
        return fused(super().network(config), (path for path, _ in skeleton(config).named_modules()))

    def check(self, recipe: Recipe, config: LFM2Config) -> None:
        super().check(recipe, config)
        _check_head_width(recipe, self.network(config))
        _check_experts(recipe, config)

    def half(self, recipe: Recipe) -> bool:
        return bool(CAPABILITIES.option(recipe, "precision") == "float16")

    def lower(
        self, decoder: Decoder, recipe: Recipe, folder: Path, progress: Progress, sequences: TokenSequences = ()
    ) -> Lowered:
        """Write `onnx/model….onnx` (with `…_data`, `…_data_1` when the weights outgrow one file); genai's config."""
        return self._lower(decoder, recipe, folder, progress, probed=False)

    def lower_with_probes(
        self, decoder: Decoder, recipe: Recipe, folder: Path, progress: Progress, sequences: TokenSequences = ()
    ) -> Lowered:
        """Write the same graph, which also returns what goes into and comes out of every module."""
        return self._lower(decoder, recipe, folder, progress, probed=True)

    def lower_with_images(
        self, decoder: Decoder, encoder: VisionEncoder, recipe: Recipe, folder: Path, progress: Progress
    ) -> Lowered:
        """Write the three graphs that transformers.js's class for such a model loads, `onnx/decoder_model_merged…`,
        `onnx/embed_tokens…` and `onnx/vision_encoder…`; for genai's, where it can read the checkpoint's processor, its
        configuration and a token embedding that takes the images' embeddings."""
        progress("building the ONNX graphs")
        fused = bool(CAPABILITIES.option(recipe, "fused_embedding"))
        graphs = {
            companions.DECODER: self._graph(decoder, recipe, probed=False, embedded=True),
            TOKEN_EMBEDDING: token_embedding(decoder, fused),
            VISION_ENCODER: vision_graph(encoder),
        }
        methods, chunks = [], {}
        for part, graph in graphs.items():
            file = companions.part_file(recipe, part)
            chunks[part] = _save(graph, folder, file, progress)
            most = recipe.window
            methods.append(
                MethodSpec(name=part, file=file, inputs=graph.inputs, outputs=graph.outputs, max_tokens=most)
            )
        if companions.write_genai_images_config(folder, recipe, decoder.config, encoder.config):
            embedding = embedding_with_images(decoder, encoder.config, fused)
            embedding.save(folder / companions.genai_embedding_file(recipe), folder / methods[1].file)
        companions.adapt_parts_for_transformers_js(folder, recipe, decoder.config, encoder.config, chunks)
        return self._lowered(methods, recipe, decoder.config)

    def _lower(self, decoder: Decoder, recipe: Recipe, folder: Path, progress: Progress, probed: bool) -> Lowered:
        progress("building the ONNX graph")
        graph = self._graph(decoder, recipe, probed)
        file = companions.model_file(recipe)
        chunks = _save(graph, folder, file, progress)
        if decoder.config.model_type != "lfm3":  # genai 0.18 has no class for it
            companions.write_genai_config(folder, recipe, decoder.config)
        companions.adapt_for_transformers_js(folder, recipe, decoder.config, chunks)
        method = MethodSpec(
            name="model", file=file, inputs=graph.inputs, outputs=graph.outputs, max_tokens=recipe.window
        )
        return self._lowered([method], recipe, decoder.config)

    def _lowered(self, methods: list[MethodSpec], recipe: Recipe, config: LFM2Config) -> Lowered:
        images = any(method.name == VISION_ENCODER for method in methods)
        return Lowered(
            methods=methods,
            transport="inplace",
            cache_layout="heads-time",
            versions={"onnx": onnx.__version__, **_installed("onnxruntime")},
            runtime_requirement=f"onnxruntime>={_oldest(recipe, config, images)}",
            speculation=_verified(recipe),
        )

    def _graph(self, decoder: Decoder, recipe: Recipe, probed: bool, embedded: bool = False) -> Graph:
        """The whole graph, for contexts of up to the recipe's window; `embedded`: from the embeddings on."""
        network = self.network(decoder.config)
        lookups = tuple(network.of_kind("embedding"))
        if embedded:
            network = network._replace(steps=tuple(step for step in network.steps if step not in lookups))
        graph = Graph("lfm2", real=str(CAPABILITIES.option(recipe, "precision")))
        verifies = _verified(recipe) > 0
        border = Border(graph, network, decoder.config, recipe.window, recipe.cache, verifies, embedded)
        site = Site(
            graph,
            border,
            decoder,
            tables=() if embedded else tuple(step.path for step in lookups),
            fused_embedding=bool(CAPABILITIES.option(recipe, "fused_embedding")),
            conv=str(CAPABILITIES.option(recipe, "conv")),
        )
        given = border.values | ({step.output: "inputs_embeds" for step in lookups} if embedded else {})
        values = walk(network, given, lambda step, inputs: TABLE[step.kind](site, step, *inputs))
        graph.cast("logits", values[network.logits], "float32")
        if probed:
            _add_probes(graph, norm_before_pick(super().network(decoder.config)).steps, values)
        return graph


TARGET = OnnxTarget()


def _save(graph: Graph, folder: Path, file: str, progress: Progress) -> int:
    """Write a graph; how many files of weights lie beside it."""
    progress(f"packing weights into {file}")
    (folder / file).parent.mkdir(exist_ok=True)
    return len(graph.save(folder / file)) - 1


def _verified(recipe: Recipe) -> int:
    """The most tokens of a draft."""
    return min(recipe.window, cast(int, CAPABILITIES.option(recipe, "speculation")))


def _add_probes(graph: Graph, steps: Iterable[Step], values: dict[str, str]) -> None:
    """Make what goes into and comes out of every module an output too, `[B, rows, width]`."""
    for path, side, value in probes(steps):
        name = f"{PROBE}{point_name(path, side)}"
        graph.op("Identity", name, values[value])
        graph.output(name, graph.real, *(f"{name}/{axis}" for axis in ("batch", "rows", "width")))


def _check_head_width(recipe: Recipe, network: Network) -> None:
    for width in (cast(int, step.arguments[0]) for step in network.of_kind("rotary")):
        if width % _HEAD_DIM_STEP:
            raise RecipeError(
                f"{recipe.name}: onnxruntime's attention needs a head_dim that is a multiple of {_HEAD_DIM_STEP}, "
                f"this model has {width}"
            )


def _check_experts(recipe: Recipe, config: LFM2Config) -> None:
    """One operator holds a layer's experts, and knows one width and one group."""
    found: dict[int | None, tuple[str, QuantizationRule | None]] = {}
    for path, kind, _ in matrices(config):
        if kind != "expert":
            continue
        rule = rule_for(path, kind, recipe.quantization)
        first, other = found.setdefault(layer_of(path), (path, rule))
        if described(rule) != described(other):
            raise RecipeError(
                f"{recipe.name}: {path}: {described(rule)}; onnxruntime has one operator for all experts of a layer, "
                f"and {first} is {described(other)}"
            )


def _oldest(recipe: Recipe, config: LFM2Config, images: bool) -> str:
    """The first onnxruntime that loads the files."""
    if any(map(config.has_experts, range(config.num_hidden_layers))):
        return _OLDEST_EXPERTS
    conv = CAPABILITIES.option(recipe, "conv")
    if conv != "plain":
        return _OLDEST_CHANNELS_LAST if conv == "channels_last" else _OLDEST_FUSED_CONV
    bits = {rule.weight.bits for rule in recipe.quantization if rule.weight is not None}
    if images and recipe.vision == "int8":
        bits.add(8)
    if CAPABILITIES.option(recipe, "fused_embedding") and bits & {4, 8}:
        return _OLDEST_FUSED_EMBEDDING
    return _OLDEST_8_BITS if 8 in bits else _OLDEST


def _installed(package: str) -> dict[str, str]:
    try:
        return {package: version(package)}
    except PackageNotFoundError:
        return {}
