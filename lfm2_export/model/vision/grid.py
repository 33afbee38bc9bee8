"""Operators over the patches of images, each with a grid of its own.

Patches are `[B, N, channels]`, an image a row, padded behind its last one; `grid [B, 2] int64` holds each image's rows
and columns. Grids come in as values, never as shapes, so one program serves every size. As those of
`model/operators.py` they stay whole in a trace.

Patches come row by row (`merge` 1), or block by block of `merge` × `merge` neighbours, which lie together row by row.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lfm2_export.model.operators import operator, rotary_frequencies


@operator("(Tensor x, Tensor grid, Tensor table) -> Tensor")
def with_positions(x: Tensor, grid: Tensor, table: Tensor) -> Tensor:
    """`x [B, N, C]` with each patch's position from a square `table [side², C]` that is resized to the image's grid.

    The resize is PyTorch's bilinear one with antialias: a patch takes a share of each row and of each column of the
    table, so that it is one product whatever the grid is. Patches come row by row.
    """
    side = math.isqrt(table.shape[0])
    row, column = coordinates(grid, x.shape[1], merge=1)
    down, across = _shares(row, grid[:, :1], side), _shares(column, grid[:, 1:], side)
    return x + (down.unsqueeze(-1) * across.unsqueeze(-2)).flatten(-2) @ table


@operator("(Tensor x, Tensor grid, int width, float theta, int merge) -> (Tensor, Tensor)")
def axial_rotary(x: Tensor, grid: Tensor, width: int, theta: float, merge: int) -> tuple[Tensor, Tensor]:
    """cos and sin of RoPE in two directions for the patches of `x [B, N, …]`, `[B, N, width]` each, for `rotate`.

    Of a head's pairs of channels the first half turns with the patch's row, the second with its column.
    """
    frequencies = rotary_frequencies(width // 2, theta, width // 4).to(grid.device)
    angles = torch.cat([each.unsqueeze(-1) * frequencies for each in coordinates(grid, x.shape[1], merge)], dim=-1)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


@operator("(Tensor query, Tensor key, Tensor value, Tensor grid, int width) -> Tensor")
def image_attention(query: Tensor, key: Tensor, value: Tensor, grid: Tensor, width: int) -> Tensor:
    """Softmax attention of each patch over all patches of its image.

    query `[B, N, heads·D]`, key and value `[B, N, kv_heads·D]` with D = `width`; returns `[B, N, heads·D]`.
    """
    filled = torch.arange(query.shape[1], device=grid.device) < grid.prod(-1, keepdim=True)
    query, key, value = (x.unflatten(-1, (-1, width)).transpose(1, 2) for x in (query, key, value))
    mask = filled.unsqueeze(1).unsqueeze(1)
    mixed = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=query.shape[1] != key.shape[1])
    return mixed.transpose(1, 2).flatten(2)


@operator("(Tensor x, Tensor grid, Tensor kernel, int merge) -> Tensor")
def grid_conv(x: Tensor, grid: Tensor, kernel: Tensor, merge: int) -> Tensor:
    """Depthwise convolution over each image's grid, with zeros around it: `x [B, N, C]`, kernel `[size², C]`.

    It is size² multiply-adds of neighbours that are looked up, so the order of the patches stays as it is.
    """
    patches, size = x.shape[1], math.isqrt(kernel.shape[0])
    row, column = coordinates(grid, patches, merge)
    mixed = torch.zeros_like(x)
    for tap in range(size**2):
        place, inside = neighbour(row, column, grid, merge, size, tap)
        mixed = mixed + _taken(x, place) * (inside.to(x.dtype).unsqueeze(-1) * kernel[tap])
    return mixed


@operator("(Tensor x, Tensor grid, int merge) -> Tensor")
def merged_blocks(x: Tensor, grid: Tensor, merge: int) -> Tensor:
    """Each block of `merge` × `merge` patches side by side, `[B, N, C]` → `[B, N/merge², merge²·C]`.

    Patches come row by row, and so do blocks; within a block likewise.
    """
    count = x.shape[1] // merge**2
    row, column = coordinates(torch.div(grid, merge, rounding_mode="floor"), count, merge=1)
    parts = [
        _taken(x, (row * merge + down) * grid[:, 1:] + column * merge + across)
        for down in range(merge)
        for across in range(merge)
    ]
    return torch.cat(parts, dim=-1)


@operator("(Tensor x, int merge) -> Tensor")
def adjacent_blocks(x: Tensor, merge: int) -> Tensor:
    """The same of patches that come block by block: those of a block lie together already."""
    return x.unflatten(1, (-1, merge**2)).flatten(2)


def coordinates(grid: Tensor, patches: int, merge: int) -> tuple[Tensor, Tensor]:
    """Row and column of each patch, `[B, patches] int64`; behind an image's last patch they go on below its grid."""
    number = torch.arange(patches, device=grid.device).unsqueeze(0)
    blocks = _quotient(grid[:, 1:], merge)
    block, within = _quotient(number, merge**2), number % merge**2
    row = _quotient(block, blocks) * merge + _quotient(within, merge)
    return row, block % blocks * merge + within % merge


def neighbour(row: Tensor, column: Tensor, grid: Tensor, merge: int, size: int, tap: int) -> tuple[Tensor, Tensor]:
    """Which patch lies under a tap of a kernel of size × size around each patch, and whether there is one, `[B, N]`."""
    above, left = row + tap // size - size // 2, column + tap % size - size // 2
    inside = (above >= 0) & (above < grid[:, :1]) & (left >= 0) & (left < grid[:, 1:])
    return _place(above, left, grid, merge), inside


def _place(row: Tensor, column: Tensor, grid: Tensor, merge: int) -> Tensor:
    """Which patch lies there: what `coordinates` turns around."""
    block = _quotient(row, merge) * _quotient(grid[:, 1:], merge) + _quotient(column, merge)
    return block * merge**2 + row % merge * merge + column % merge


def _quotient(number: Tensor, divisor: Tensor | int) -> Tensor:
    return torch.div(number, divisor, rounding_mode="floor")


def _taken(x: Tensor, index: Tensor) -> Tensor:
    """`x [B, N, C]` at `index [B, M]`, which may point outside where nobody reads the result."""
    index = index.clamp(0, x.shape[1] - 1)
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def _shares(index: Tensor, extent: Tensor, side: int) -> Tensor:
    """What each of `side` places of a table gives to place `index [B, N]` of `extent [B, 1]`: `[B, N, side]`.

    The weights of a triangle that reaches over at least one place of either, around where the two coincide.
    """
    scale = side / extent.to(torch.float32)
    middle = (torch.minimum(index, extent - 1).to(torch.float32) + 0.5) * scale
    places = torch.arange(side, device=index.device, dtype=torch.float32) + 0.5
    distance = (places - middle.unsqueeze(-1)).abs() / scale.clamp(min=1.0).unsqueeze(-1)
    share = (1.0 - distance).clamp(min=0.0)
    return share / share.sum(-1, keepdim=True)
