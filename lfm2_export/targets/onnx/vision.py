"""The image part as an ONNX graph of its own: images of any size through one file, several at once.

LFM2-VL's takes and gives what transformers.js's class for it looks for: `pixel_values [n, N, values]`,
`pixel_attention_mask [n, N] int64` (not read: the grids say which patches are padding) and
`spatial_shapes [n, 2] int64` → `image_features [places, H]`, the images' embeddings one after the other. LFM3-VL's,
which no released runtime has a class for, takes transformers' tensors for one image, `pixel_values [N, values]` and
`image_grid_thw [1, 3] int64`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np

from lfm2_export.artifact.manifest import TOKEN_EMBEDDING
from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.graph.steps import GRID, PATCHES, Step
from lfm2_export.graph.trace import trace_vision
from lfm2_export.graph.walk import walk
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.operators import rotary_frequencies
from lfm2_export.model.vision.encoder import VisionEncoder
from lfm2_export.targets.onnx.elementary import ELEMENTARY
from lfm2_export.targets.onnx.patch_grid import PatchGrid
from lfm2_export.targets.onnx.weights import embedding, linear
from lfm2_export.targets.onnx_graph import CONTRIB, Graph


class Site(NamedTuple):
    """The place where steps are written: the graph, where patches lie, and the weights."""

    graph: Graph
    grid: PatchGrid
    encoder: VisionEncoder

    def module(self, path: str) -> Any:
        """Return the encoder's module of that path."""
        return self.encoder.get_submodule(path)


def vision_graph(encoder: VisionEncoder) -> Graph:
    """Return the graph of an encoder, which computes in fp32 whatever its matrices are stored in."""
    config = encoder.config
    graph = Graph("vision_encoder")
    graph.output("image_features", "float32", "num_image_tokens", config.output_size)
    network = trace_vision(config)
    if config.model_type == "lfm2_vl":
        patches = graph.input("pixel_values", "float32", "batch_size", "num_patches", config.patch_values)
        graph.input("pixel_attention_mask", "int64", "batch_size", "num_patches")
        grid = graph.input("spatial_shapes", "int64", "batch_size", 2)
    else:
        flat = graph.input("pixel_values", "float32", "num_patches", config.patch_values)
        patches = graph.op("Unsqueeze", "grid/one_image", flat, graph.ints(0))
        frames = graph.input("image_grid_thw", "int64", 1, 3)
        grid = graph.op("Slice", "grid/sizes", frames, graph.ints(1), graph.ints(3), graph.ints(1))
    site = Site(graph, PatchGrid(graph, patches, grid), encoder)
    values = walk(network, {PATCHES: patches, GRID: grid}, lambda step, inputs: TABLE[step.kind](site, step, *inputs))
    _without_padding(site, values[network.logits])
    return graph


def token_embedding(decoder: Decoder, fused: bool) -> Graph:
    """Return the graph of a decoder's lookup, `input_ids [B, T] int64` → `inputs_embeds [B, T, H]`."""
    graph = Graph(TOKEN_EMBEDDING)
    tokens = graph.input("input_ids", "int64", "batch_size", "sequence_length")
    graph.output("inputs_embeds", "float32", "batch_size", "sequence_length", decoder.config.hidden_size)
    graph.op("Identity", "inputs_embeds", embedding(graph, "embed_tokens", decoder.embed_tokens, tokens, fused))
    return graph


def embedding_with_images(decoder: Decoder, config: VisionConfig, fused: bool) -> Graph:
    """Return the same graph with one more input, `image_features [places, H]`, which stand in the images' places."""
    graph = Graph(TOKEN_EMBEDDING)
    tokens = graph.input("input_ids", "int64", "batch_size", "sequence_length")
    width = decoder.config.hidden_size
    features = graph.input("image_features", "float32", "num_image_tokens", width)
    graph.output("inputs_embeds", "float32", "batch_size", "sequence_length", width)
    embeddings = embedding(graph, "embed_tokens", decoder.embed_tokens, tokens, fused)
    here = graph.op("Equal", "images/here", tokens, graph.int(config.image_token_id))
    flat = graph.op("Reshape", "images/flat", graph.cast("images/ones", here, "int64"), graph.ints(-1))
    number = graph.op("Sub", "images/number", graph.op("CumSum", "images/count", flat, graph.int(0)), graph.int(1))
    none = graph.constant("images/none", np.zeros((1, width), dtype=np.float32))  # where a prompt has no image
    padded = graph.op("Concat", "images/padded", features, none, axis=0)
    rows = graph.op("Gather", "images/rows", padded, graph.op("Max", "images/row", number, graph.int(0)), axis=0)
    placed = graph.op("Reshape", "images/placed", rows, graph.op("Shape", "images/shape", embeddings))
    graph.op("Where", "inputs_embeds", graph.op("Unsqueeze", "images/mask", here, graph.ints(2)), placed, embeddings)
    return graph


def _without_padding(to: Site, features: str) -> None:
    """The embeddings of all images one after the other, `[places, H]`."""
    graph, blocks = to.graph, to.encoder.config.merge**2
    shape = graph.op("Shape", "places/shape", features)
    room = graph.op("Gather", "places/room", shape, graph.int(1), axis=0)
    count = graph.op("Div", "places/count", to.grid.count, graph.int(blocks))
    filled = graph.op("Less", "places/filled", to.grid.numbers("places", room), count)
    flat = graph.op("Reshape", "places/flat", features, graph.ints(-1, to.encoder.config.output_size))
    kept = graph.op("Reshape", "places/kept", filled, graph.ints(-1))
    graph.op("Compress", "image_features", flat, kept, axis=0)


def _linear(to: Site, step: Step, x: str) -> str:
    return linear(to.graph, step.path, to.module(step.path), x)


def _layer_norm(to: Site, step: Step, x: str) -> str:
    graph, norm, (eps,) = to.graph, to.module(step.path), cast(tuple[float], step.arguments)
    weight, bias = (graph.parameter(f"{step.path}.{name}", getattr(norm, name)) for name in ("weight", "bias"))
    return graph.op("LayerNormalization", f"{step.path}/norm", x, weight, bias, axis=-1, epsilon=eps)


def _gelu(to: Site, step: Step, x: str) -> str:
    """onnxruntime's own: the standard one needs opset 20."""
    (by_tanh,) = step.arguments
    return to.graph.op("FastGelu" if by_tanh else "Gelu", f"{step.path}/gelu", x, domain=CONTRIB)


def _with_positions(to: Site, step: Step, x: str, _: str) -> str:
    graph, grid, name = to.graph, to.grid, step.output
    table, side = to.module(step.path).position_embedding.weight, to.encoder.config.position_side
    row, column = grid.in_blocks(merge=1)
    down = grid.shares(f"{name}/down", row, grid.rows, side)
    across = grid.shares(f"{name}/across", column, grid.columns, side)
    both = graph.op(
        "Mul",
        f"{name}/both",
        graph.op("Unsqueeze", f"{name}/rows", down, graph.ints(3)),
        graph.op("Unsqueeze", f"{name}/columns", across, graph.ints(2)),
    )
    flat = graph.op("Reshape", f"{name}/shares", both, graph.ints(0, 0, -1))
    stored = graph.parameter(f"{step.path}.position_embedding.weight", table)
    return graph.op("Add", name, x, graph.op("MatMul", f"{name}/positions", flat, stored))


def _axial_rotary(to: Site, step: Step, *_: str) -> tuple[str, str]:
    """cos and sin of a head's first half of channels, `[B, N, 1, width/2]`: those of the second are the same."""
    graph, grid, name = to.graph, to.grid, step.output.partition(":")[0]
    width, theta, merge = cast(tuple[int, float, int], step.arguments)
    frequencies = graph.constant(f"{name}/frequencies", rotary_frequencies(width // 2, theta, width // 4).numpy())
    row, column = grid.in_blocks(merge)
    turned = [
        graph.op(
            "Mul",
            f"{name}/{axis}_angles",
            graph.op("Unsqueeze", f"{name}/{axis}", graph.cast(f"{name}/{axis}_real", at, "float32"), graph.ints(2, 3)),
            frequencies,
        )
        for axis, at in (("row", row), ("column", column))
    ]
    angles = graph.op("Concat", f"{name}/angles", *turned, axis=-1)
    return graph.op("Cos", f"{name}/cos", angles), graph.op("Sin", f"{name}/sin", angles)


def _rotate(to: Site, step: Step, x: str, cos: str, sin: str) -> str:
    graph, name, width = to.graph, step.output, to.encoder.config.head_dim
    heads = graph.op("Reshape", f"{name}/heads", x, graph.ints(0, 0, -1, width))
    halves = (f"{name}/first", f"{name}/second")
    first, second = graph.op_many("Split", f"{name}/Split", (heads,), halves, axis=-1, num_outputs=2)

    def product(kind: str, half: str, by: str) -> str:
        return graph.op("Mul", f"{half}/{kind}", half, by)

    turned = graph.op("Sub", f"{name}/turned_first", product("cos", first, cos), product("sin", second, sin))
    other = graph.op("Add", f"{name}/turned_second", product("cos", second, cos), product("sin", first, sin))
    both = graph.op("Concat", f"{name}/turned", turned, other, axis=-1)
    return graph.op("Reshape", name, both, graph.ints(0, 0, -1))


def _image_attention(to: Site, step: Step, query: str, key: str, value: str, _: str) -> str:
    """Plain operators; heads that share keys are an axis of their own."""
    graph, path, config = to.graph, step.path, to.encoder.config

    def by_head(name: str, x: str, *order: int) -> str:
        apart = graph.ints(0, 0, config.num_key_value_heads, -1, config.head_dim)
        split = graph.op("Reshape", f"{path}/{name}", x, apart)
        return graph.op("Transpose", f"{path}/{name}_by_head", split, perm=list(order))

    scale = graph.constant("attention/scale", np.array(config.head_dim**-0.5, dtype=graph.real))
    queries = graph.op("Mul", f"{path}/scaled", by_head("query", query, 0, 2, 3, 1, 4), scale)
    scores = graph.op("MatMul", f"{path}/scores", queries, by_head("key", key, 0, 2, 3, 4, 1))
    seen = graph.op("Add", f"{path}/seen", scores, to.grid.mask)
    mixed = graph.op(
        "MatMul",
        f"{path}/attended",
        graph.op("Softmax", f"{path}/weights", seen, axis=-1),
        by_head("value", value, 0, 2, 3, 1, 4),
    )
    rows = graph.op("Transpose", f"{path}/by_row", mixed, perm=[0, 3, 1, 2, 4])
    return graph.op("Reshape", f"{path}/mixed", rows, graph.ints(0, 0, -1))


def _grid_conv(to: Site, step: Step, x: str, _: str) -> str:
    """A multiply-add for each tap, of neighbours that are looked up; their places are the same in every layer."""
    graph, grid, path, conv = to.graph, to.grid, step.path, to.module(step.path)
    mixed = ""
    for tap, weights in enumerate(conv.kernel):
        place, inside = grid.neighbour(tap, conv.size, conv.merge)
        seen = graph.op("Mul", f"{path}/seen_{tap}", grid.taken(f"{path}/neighbour_{tap}", x, place), inside)
        product = graph.op("Mul", f"{path}/tap_{tap}", seen, graph.parameter(f"{path}.kernel.{tap}", weights))
        mixed = graph.op("Add", f"{path}/taps_{tap}", mixed, product) if mixed else product
    return mixed


def _merged_blocks(to: Site, step: Step, x: str, _: str) -> str:
    graph, grid, name = to.graph, to.grid, step.output
    (merge,) = cast(tuple[int], step.arguments)
    room = graph.op("Div", f"{name}/room", grid.room, graph.int(merge**2))
    across = graph.op("Div", f"{name}/across", grid.columns, graph.int(merge))
    block = f"{name}/block"
    block_row, block_column = grid.coordinates(block, grid.numbers(block, room), across, merge=1)
    top = graph.op("Mul", f"{name}/top", block_row, graph.int(merge))
    left = graph.op("Mul", f"{name}/left", block_column, graph.int(merge))
    parts = []
    for number in range(merge**2):
        down, right = divmod(number, merge)
        row = graph.op("Add", f"{name}/row_{number}", top, graph.int(down))
        begun = graph.op("Mul", f"{name}/begun_{number}", row, grid.columns)
        column = graph.op("Add", f"{name}/column_{number}", left, graph.int(right))
        parts.append(grid.taken(f"{name}/part_{number}", x, graph.op("Add", f"{name}/at_{number}", begun, column)))
    return graph.op("Concat", name, *parts, axis=-1)


def _adjacent_blocks(to: Site, step: Step, x: str) -> str:
    (merge,) = cast(tuple[int], step.arguments)
    width = merge**2 * to.encoder.config.hidden_size
    return to.graph.op("Reshape", step.output, x, to.graph.ints(0, -1, width))


TABLE: dict[str, Callable[..., str | tuple[str, ...]]] = {
    **ELEMENTARY,
    "linear": _linear,
    "layer_norm": _layer_norm,
    "gelu": _gelu,
    "with_positions": _with_positions,
    "axial_rotary": _axial_rotary,
    "rotate": _rotate,
    "image_attention": _image_attention,
    "grid_conv": _grid_conv,
    "merged_blocks": _merged_blocks,
    "adjacent_blocks": _adjacent_blocks,
}
