"""The same quantized arithmetic with weights turned back to fp32 once, instead of in every call.

A quantized module in eager PyTorch dequantizes its whole weight each time it is called: at true sizes nine tenths of
a call. Where memory allows fp32 weights (a proof, which runs the fp32 model as well), this computes the same bits.
What is beyond `ROOM` stays integers that are turned back in every call, the same bits again.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchao.quantization import IntxUnpackedToInt8Tensor
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    _apply_int8_act_asym_per_token_quant_dequant as rounded_per_token,
)

from lfm2_export.graph.matrices import matrices
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.vision.encoder import VisionEncoder
from lfm2_export.quantize.apply import (
    BlockActivationLinear,
    HalfLinear,
    quantized_weight,
    round_caches,
    rounds_its_input,
)
from lfm2_export.quantize.grid import rows_at_once
from lfm2_export.quantize.size import ROOM


class TokenActivationLinear(nn.Module):
    """A linear whose input is rounded to int8 per token, asymmetric, by the function that torchao's own weights use."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
        self.bias = bias
        self.rounds = True

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(rounded_per_token(x) if self.rounds else x, self.weight, self.bias)


class FromGrid(nn.Module):
    """Turns integers `[rows, columns] int8` back to fp32, as a parametrization: whenever the weight is asked for."""

    def __init__(self, scales: Tensor, group: int) -> None:
        super().__init__()
        self.scales = nn.Buffer(scales)
        self.group = group

    def forward(self, values: Tensor) -> Tensor:
        return plain(values, self.scales, self.group)


@torch.no_grad()
def unpack(decoder: Decoder, room: int = ROOM) -> Decoder:
    """Unpack a quantized decoder in place, one matrix at a time, and return it. Its grids are gone afterwards.

    A tied embedding and head that were rounded alike are one matrix again. `room` is how many bytes of fp32 there may
    be of what was integers; the later matrices stay what they are, and only look unpacked.
    """
    table = decoder.embed_tokens
    shared = decoder.config.tie_word_embeddings and _alike(table.weight, decoder.lm_head.weight)
    for path, _, (rows, columns) in matrices(decoder.config):
        tied = shared and path == "lm_head" and not parametrize.is_parametrized(table)
        room -= 0 if tied else 4 * rows * columns
        _turn_back(decoder, path, keep=room < 0, instead=cast(nn.Parameter, table.weight) if tied else None)
    return decoder


@torch.no_grad()
def unpack_encoder(encoder: VisionEncoder) -> VisionEncoder:
    """Unpack a quantized image part likewise."""
    for path, module in list(encoder.named_modules()):
        if isinstance(module, nn.Linear | BlockActivationLinear | HalfLinear):
            _turn_back(encoder, path)
    return encoder


def _turn_back(model: nn.Module, path: str, keep: bool = False, instead: nn.Parameter | None = None) -> None:
    """Give a module its weight in fp32, or integers that look so; one whose grid rounds inputs itself becomes one that
    rounds them. `instead` is a matrix that has the same numbers already."""
    module: nn.Linear | TokenActivationLinear = cast(nn.Linear, model.get_submodule(path))
    grid, rounds = quantized_weight(module), rounds_its_input(module)
    if instead is not None:
        module.weight, grid = instead, None
    elif grid is None:
        module.weight = nn.Parameter(module.weight.float(), requires_grad=False)
    else:
        values = grid.values if keep else plain(grid.values, grid.scales, grid.group)
        module.weight = nn.Parameter(values, requires_grad=False)
    if rounds:
        parent, _, name = path.rpartition(".")
        module = TokenActivationLinear(module.weight, module.bias)
        setattr(model.get_submodule(parent), name, module)
    if keep and grid is not None:
        parametrize.register_parametrization(module, "weight", FromGrid(grid.scales, grid.group), unsafe=True)


@torch.no_grad()
def without_rounding(decoder: Decoder) -> Decoder:
    """Leave activations and the KV cache of an unpacked decoder in fp32, in place, and return it.

    Its weights stay the numbers that they were rounded to.
    """
    for module in decoder.modules():
        if isinstance(module, TokenActivationLinear | HalfLinear):
            module.rounds = False
        elif isinstance(module, BlockActivationLinear):
            module.group = None
    return round_caches(decoder, "float32")


def plain(values: Tensor, scales: Tensor, group: int) -> Tensor:
    """Integers in fp32, `[rows, columns]`, some rows at a time, which stay in the processor's cache."""
    found, rows = torch.empty(values.shape, device=values.device), rows_at_once(values)
    for to, part, by in zip(found.split(rows), values.split(rows), scales.split(rows), strict=True):
        by_group = (by.shape[1], group)
        torch.mul(part.float().unflatten(1, by_group), by.unsqueeze(-1), out=to.unflatten(1, by_group))
    return found


def _alike(table: Tensor, head: Tensor) -> bool:
    if isinstance(table, IntxUnpackedToInt8Tensor) and isinstance(head, IntxUnpackedToInt8Tensor):
        same_grid = (table.target_dtype, table.block_size) == (head.target_dtype, head.block_size)
        return same_grid and torch.equal(table.qdata, head.qdata) and torch.equal(table.scale, head.scale)
    return type(table) is type(head) and table.dtype == head.dtype and torch.equal(table, head)
