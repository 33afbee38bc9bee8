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
    for path, _, _ in matrices(decoder.config):
        module = cast(nn.Linear, decoder.get_submodule(path))
        weight = module.weight
        if not isinstance(weight, IntxUnpackedToInt8Tensor):
            module.weight = nn.Parameter(weight.float(), requires_grad=False)  # fp16 ones; fp32 ones stay as they are
        elif weight.activation_quantization is None:
            module.weight = nn.Parameter(weight.dequantize(), requires_grad=False)
        else:
            parent, _, name = path.rpartition(".")
            linear = TokenActivationLinear(weight.dequantize(), module.bias)
            setattr(decoder.get_submodule(parent), name, linear)
    table, head = decoder.embed_tokens, decoder.lm_head
    if decoder.config.tie_word_embeddings and torch.equal(table.weight, head.weight):
        head.weight = table.weight
    return decoder
