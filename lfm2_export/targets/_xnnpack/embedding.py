"""The embedding lookup: ExecuTorch's own quantized operator for an integer table, so that the file keeps integers."""

from __future__ import annotations

import torch
from executorch.exir.passes import _quant_patterns_and_replacements  # noqa: F401  defines the operators
from torch import Tensor, nn

from lfm2_export.quantize.apply import QuantizedWeight, quantized_weight


def embedding(table: nn.Embedding) -> nn.Module:
    """The module that looks up `table` in the artifact: itself in fp32, else a lookup in its integers."""
    weight = quantized_weight(table)
    return table if weight is None else QuantizedEmbedding(weight)


class QuantizedEmbedding(nn.Module):
    """Rows of an int8 or int4 table times their scales; int4 is packed two to a byte, the first one high."""

    values: Tensor
    scales: Tensor

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.bits = weight.bits
        values = weight.values
        if self.bits == 4:
            pairs = (values + 8).to(torch.uint8).unflatten(1, (-1, 2))
            values = pairs[..., 0] * 16 + pairs[..., 1]
        self.register_buffer("values", values)
        self.register_buffer("scales", weight.scales)

    def forward(self, tokens: Tensor) -> Tensor:
        operators = torch.ops.quantized_decomposed
        lookup = operators.embedding_byte if self.bits == 8 else operators.embedding_4bit
        limit = 2 ** (self.bits - 1)
        return lookup(self.values, self.scales, None, -limit, limit - 1, tokens)
