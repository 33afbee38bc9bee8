"""The same quantized arithmetic with weights turned back to fp32 once, instead of in every call.

A quantized module in eager PyTorch dequantizes its whole weight each time it is called: at true sizes nine tenths of
a call. Where memory allows fp32 weights (a proof, which runs the fp32 model as well), this computes the same bits.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchao.quantization import IntxUnpackedToInt8Tensor
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    _apply_int8_act_asym_per_token_quant_dequant as rounded_per_token,
)

from lfm2_export.graph.matrices import matrices
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.vision.encoder import VisionEncoder
from lfm2_export.quantize.apply import BlockActivationLinear, HalfLinear, quantized_weight, round_caches
from lfm2_export.quantize.grid import rows_at_once


class TokenActivationLinear(nn.Module):
    """A linear whose input is rounded to int8 per token, asymmetric, by the function that torchao's own weights use."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(rounded_per_token(x), self.weight, self.bias)


@torch.no_grad()
def unpack(decoder: Decoder) -> Decoder:
    """Unpack a quantized decoder in place, one matrix at a time, and return it. Its grids are gone afterwards.

    A tied embedding and head that were rounded alike are one matrix again.
    """
    table = decoder.embed_tokens
    shared = decoder.config.tie_word_embeddings and _alike(table.weight, decoder.lm_head.weight)
    for path, _, _ in matrices(decoder.config):
        module = cast(nn.Linear, decoder.get_submodule(path))
        tied = shared and path == "lm_head"
        plain = cast(nn.Parameter, table.weight) if tied else nn.Parameter(_plain(module), requires_grad=False)
        _turn_back(decoder, path, module, plain)
    if shared:
        decoder.lm_head.weight = table.weight
    return decoder


@torch.no_grad()
def unpack_encoder(encoder: VisionEncoder) -> VisionEncoder:
    """Unpack a quantized image part likewise."""
    for path, module in list(encoder.named_modules()):
        if isinstance(module, nn.Linear | BlockActivationLinear | HalfLinear):
            _turn_back(encoder, path, module, nn.Parameter(_plain(module), requires_grad=False))
    return encoder


def _turn_back(model: nn.Module, path: str, module: nn.Module, plain: nn.Parameter) -> None:
    """Give a module its weight in fp32; one whose grid rounds inputs itself becomes one that rounds them."""
    grid = module.weight
    if isinstance(grid, IntxUnpackedToInt8Tensor) and grid.activation_quantization is not None:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, TokenActivationLinear(plain, cast(nn.Parameter, module.bias)))
    else:
        module.weight = plain


@torch.no_grad()
def without_rounding(decoder: Decoder) -> Decoder:
    """Leave activations and the KV cache of an unpacked decoder in fp32, in place, and return it.

    Its weights stay the numbers that they were rounded to.
    """
    for path, _, _ in matrices(decoder.config):
        module = decoder.get_submodule(path)
        if isinstance(module, TokenActivationLinear | BlockActivationLinear | HalfLinear):
            parent, _, name = path.rpartition(".")
            with torch.device("meta"):
                linear = nn.Linear(module.weight.shape[1], module.weight.shape[0], bias=False)
            linear.weight, linear.bias = module.weight, cast(nn.Parameter, module.bias)
            setattr(decoder.get_submodule(parent), name, linear)
    return round_caches(decoder, "float32")


def _plain(module: nn.Module) -> Tensor:
    """The weight in fp32; a grid some rows at a time, which stay in the processor's cache."""
    grid = quantized_weight(module)
    if grid is None:
        return cast(Tensor, module.weight).float()
    plain, rows = torch.empty(grid.values.shape), rows_at_once(grid.values)
    for to, values, scales in zip(plain.split(rows), grid.values.split(rows), grid.scales.split(rows), strict=True):
        by_group = (scales.shape[1], grid.group)
        torch.mul(values.float().unflatten(1, by_group), scales.unsqueeze(-1), out=to.unflatten(1, by_group))
    return plain


def _alike(table: Tensor, head: Tensor) -> bool:
    if isinstance(table, IntxUnpackedToInt8Tensor) and isinstance(head, IntxUnpackedToInt8Tensor):
        same_grid = (table.target_dtype, table.block_size) == (head.target_dtype, head.block_size)
        return same_grid and torch.equal(table.qdata, head.qdata) and torch.equal(table.scale, head.scale)
    return type(table) is type(head) and table.dtype == head.dtype and torch.equal(table, head)
