"""The image part as one call of the delegate: an image's patches, block by block, and where each of them lies.

XNNPACK has no lookup and one size in a shape that it infers. So patches come in the order of the blocks that are merged
later, `[1, T, merge²·values]` with T embeddings to be made; attention does not mind, and merging is a reshape. Where
a patch lies is a number, and its share of the position table's rows and columns is arithmetic. There is no padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.graph.steps import GRID, PATCHES, Network, Step
from lfm2_export.graph.trace import trace_vision
from lfm2_export.model.operators import rotary_frequencies
from lfm2_export.targets.xnnpack.delegate_graph import Extent, Graph, Value
from lfm2_export.targets.xnnpack.delegated import Place, attended, norm, rotate

BLOCKS, ROW, COLUMN, HEIGHT, WIDTH = "blocks", "row", "column", "height", "width"
_TANH_SCALE, _TANH_CUBE = math.sqrt(2 / math.pi), 0.044715  # of the approximation of GELU


def prepared_images(config: VisionConfig) -> Network:
    """Return the trace of an image part as the steps that are delegated or hosted, of the values in `extents`."""
    apart = Step("patches_apart", "", (BLOCKS,), (PATCHES,), (config.patch_values,))
    network = trace_vision(config)
    steps = (new for step in network.steps for new in _without_grid(config, step))
    return network._replace(steps=(apart, *steps))


def extents(config: VisionConfig, limit: int) -> dict[str, Extent]:
    """What the network is given for an image of at most `limit` embeddings.

    Rows and columns of patches are `[1, T, merge²]`, the image's height and width in patches `[1]`, all of them fp32.
    For a convolution's taps it is given where each patch's neighbour lies, `[N] int64`, and 1 where there is one, or 0.
    """
    patches = config.merge**2
    place, size = Extent((1, limit, patches), 1), Extent((1,))
    blocks = Extent((1, limit, patches * config.patch_values), 1)
    given = {BLOCKS: blocks, ROW: place, COLUMN: place, HEIGHT: size, WIDTH: size}
    return given | dict.fromkeys(map(inside, taps(config)), place)


def taps(config: VisionConfig) -> range:
    """The taps of the image part's convolutions, which are none in LFM2-VL's."""
    return range(config.conv_kernel_size**2)


def neighbour(tap: int) -> str:
    """The value that says where each patch's neighbour under a tap lies."""
    return f"neighbour.{tap}"


def inside(tap: int) -> str:
    """The value that says whether there is one."""
    return f"inside.{tap}"


def _without_grid(config: VisionConfig, step: Step) -> Sequence[Step]:
    """What stands for a step: it reads where patches lie instead of the grid, or nothing of that."""
    inputs = tuple(value for value in step.inputs if value != GRID)
    if step.kind == "with_positions":
        return (step._replace(inputs=(*inputs, ROW, COLUMN, HEIGHT, WIDTH)),)
    if step.kind == "merged_blocks":
        return (step._replace(kind="adjacent_blocks", inputs=inputs),)
    if step.kind == "axial_rotary":
        return (step._replace(inputs=(ROW, COLUMN), arguments=step.arguments[:2]),)
    if step.kind == "rotate":
        return (step._replace(kind="rotate_apart", arguments=(config.head_dim,)),)
    if step.kind == "head_norm":
        return (step._replace(kind="norm_apart"),)
    return _convolution(config, step) if step.kind == "grid_conv" else (step._replace(inputs=inputs),)


def _convolution(config: VisionConfig, step: Step) -> Sequence[Step]:
    """`grid_conv` → every patch's neighbours, looked up outside the delegate, and their weighted sum."""
    together = f"{step.output}/together"
    seen = [f"{step.output}/{neighbour(tap)}" for tap in taps(config)]
    return (
        Step("adjacent_blocks", "", step.inputs[:1], (together,), (config.merge,)),
        *(
            Step("neighbours", "", (together, neighbour(tap)), (value,), (config.merge,))
            for tap, value in enumerate(seen)
        ),
        Step("weighted_taps", step.path, (*seen, *map(inside, taps(config))), step.outputs),
    )


def _patches_apart(graph: Graph, at: Place, blocks: Value) -> Value:
    """`[1, T, merge²·values]` → `[1, N, values]`."""
    (values,) = at.arguments
    return graph.reshape(blocks, 1, 0, values)


def _adjacent_blocks(graph: Graph, at: Place, x: Value) -> Value:
    """`[1, N, C]` → `[1, T, merge²·C]`."""
    (merge,) = at.arguments
    return graph.reshape(x, 1, 0, merge**2 * x.shape[2])


def _with_positions(graph: Graph, at: Place, x: Value, row: Value, column: Value, height: Value, width: Value) -> Value:
    """Each patch's shares of the table's rows, times those of its columns, times the table."""
    table = at.module.position_embedding.weight
    side = math.isqrt(len(table))
    down = graph.reshape(_shares(graph, row, height, side), 0, side, 1)
    across = graph.reshape(_shares(graph, column, width, side), 0, 1, side)
    shares = graph.reshape(graph.multiply(down, across), 1, 0, side**2)
    return graph.add(x, graph.product(shares, table.T.contiguous()))


def _shares(graph: Graph, index: Value, extent: Value, side: int) -> Value:
    """`[N, side]`: what each of `side` places of a table gives to place `index` of `extent` (see `vision/grid.py`)."""
    zero, half, one = (_number(graph, value) for value in (0.0, 0.5, 1.0))
    scale = graph.divide(_number(graph, float(side)), extent)
    middle = graph.multiply(graph.add(graph.reshape(index, 0, 1), half), scale)
    places = graph.constant(torch.arange(side, dtype=torch.float32) + 0.5)
    distance = graph.divide(graph.absolute(graph.subtract(places, middle)), graph.maximum(scale, one))
    share = graph.maximum(graph.subtract(one, distance), zero)
    return graph.divide(share, graph.product(share, torch.ones(1, side)))


def _number(graph: Graph, value: float) -> Value:
    return graph.constant(torch.tensor([value]))


def _layer_norm(graph: Graph, at: Place, x: Value) -> Value:
    """LayerNorm over the last axis."""
    (eps,), norm = at.arguments, at.module
    mean = torch.full((1, len(norm.weight)), 1.0 / len(norm.weight))
    centred = graph.subtract(x, graph.product(x, mean))
    variance = graph.product(graph.multiply(centred, centred), mean)
    scale = graph.rsqrt(graph.add(variance, _number(graph, eps)))
    scaled = graph.multiply(graph.multiply(centred, scale), graph.constant(norm.weight))
    return graph.add(scaled, graph.constant(norm.bias))


def _gelu(graph: Graph, at: Place, x: Value) -> Value:
    """GELU, exact or by its approximation with tanh."""
    (by_tanh,) = at.arguments
    if not by_tanh:
        return graph.gelu(x)
    cube, scale, half, one = (_number(graph, value) for value in (_TANH_SCALE * _TANH_CUBE, _TANH_SCALE, 0.5, 1.0))
    slope = graph.add(graph.multiply(graph.multiply(x, x), cube), scale)
    share = graph.add(graph.tanh(graph.multiply(x, slope)), one)
    return graph.multiply(graph.multiply(x, half), share)


def _image_attention(graph: Graph, at: Place, query: Value, key: Value, value: Value) -> Value:
    """Attention of each patch over all of them."""
    (width,) = at.arguments
    return attended(graph, width, query, key, value)


def _axial_rotary(graph: Graph, at: Place, row: Value, column: Value) -> tuple[Value, Value]:
    """cos and sin `[1, N, 1, width]`: half of a head's pairs of channels turn with the row, half with the column."""
    width, theta = at.arguments
    frequencies = graph.constant(rotary_frequencies(width // 2, theta, width // 4))
    down, across = (graph.multiply(graph.reshape(each, 0, 1), frequencies) for each in (row, column))
    half = graph.concatenate(down, across, axis=1)
    angles = graph.reshape(graph.concatenate(half, half, axis=1), 1, 0, 1, width)
    return graph.cos(angles), graph.sin(angles)


def _rotate_apart(graph: Graph, at: Place, x: Value, cos: Value, sin: Value) -> Value:
    """RoPE of rows, whose heads get an axis of their own meanwhile."""
    (width,) = at.arguments
    channels = x.shape[2]
    apart = graph.reshape(x, 1, 0, channels // width, width)
    return graph.reshape(rotate(graph, at, apart, cos, sin), 1, 0, channels)


def _norm_apart(graph: Graph, at: Place, x: Value) -> Value:
    """RMSNorm of every head of rows."""
    channels, width = x.shape[2], len(at.module.weight)
    return graph.reshape(norm(graph, at, graph.reshape(x, 1, 0, channels // width, width)), 1, 0, channels)


def _weighted_taps(graph: Graph, at: Place, *seen_and_inside: Value) -> Value:
    """The sum of every patch's neighbours, each times its tap of the kernel."""
    kernel = at.module.kernel
    seen, found = seen_and_inside[: len(kernel)], seen_and_inside[len(kernel) :]
    mixed: Value | None = None
    for blocks, there, weights in zip(seen, found, kernel, strict=True):
        patches = graph.reshape(blocks, 1, 0, len(weights))
        here = graph.multiply(patches, graph.reshape(there, 1, 0, 1))
        product = graph.multiply(here, graph.constant(weights))
        mixed = product if mixed is None else graph.add(mixed, product)
    assert mixed is not None
    return mixed


def neighbours(at: Place, blocks: Tensor, place: Tensor) -> Tensor:
    """The patches at `place [N]` of `blocks [1, T, merge²·C]`, likewise by blocks: computed outside the delegate."""
    (merge,) = at.arguments
    patches = blocks[0].unflatten(1, (merge**2, -1)).flatten(0, 1)
    return patches.index_select(0, place).unflatten(0, (-1, merge**2)).flatten(1).unsqueeze(0)


DELEGATED: Mapping[str, Callable[..., Value | tuple[Value, ...]]] = {
    "patches_apart": _patches_apart,
    "with_positions": _with_positions,
    "layer_norm": _layer_norm,
    "gelu": _gelu,
    "image_attention": _image_attention,
    "adjacent_blocks": _adjacent_blocks,
    "axial_rotary": _axial_rotary,
    "rotate_apart": _rotate_apart,
    "norm_apart": _norm_apart,
    "weighted_taps": _weighted_taps,
}
