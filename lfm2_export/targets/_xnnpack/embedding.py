"""The embedding lookup: ExecuTorch's own quantized operator for an integer table, so that the file keeps integers.

The table is laid out byte for byte as XNNPACK stores the head's weight, so that a tied head and embedding of the same
scheme are one blob in the file (see `pte_file.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from executorch.exir.passes import _quant_patterns_and_replacements  # noqa: F401  defines the operators
from torch import Tensor, nn

from lfm2_export.quantize.apply import QuantizedWeight, quantized_weight


def embedding(table: nn.Embedding) -> nn.Module:
    """The module that looks up `table` in the artifact: itself in fp32, else a lookup in its integers."""
    weight = quantized_weight(table)
    if weight is None:
        return table
    return ByteEmbedding(weight) if weight.bits == 8 else NibbleEmbedding(weight)


class ByteEmbedding(nn.Module):
    """Rows of an int8 table times their scales."""

    values: Tensor  # [vocab, H] int8
    scales: Tensor  # [vocab, groups]

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.register_buffer("values", weight.values)
        self.register_buffer("scales", weight.scales)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.ops.quantized_decomposed.embedding_byte(self.values, self.scales, None, -128, 127, tokens)


class NibbleEmbedding(nn.Module):
    """Rows of an int4 table times their scales.

    XNNPACK puts the first of two values into the low half of a byte (`convert_to_qc4w` of its exporter), the lookup
    takes it from the high half: the pairs come out swapped and a product with a 2x2 matrix swaps them back, exactly.
    """

    values: Tensor  # [vocab, H/2] uint8
    scales: Tensor  # [vocab, groups], fp16 where that is exact
    swap: Tensor

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        pairs = (weight.values + 8).to(torch.uint8).unflatten(1, (-1, 2))
        half = weight.scales.half()
        self.register_buffer("values", pairs[..., 1] * 16 + pairs[..., 0])
        self.register_buffer("scales", half if torch.equal(half.float(), weight.scales) else weight.scales)
        self.register_buffer("swap", torch.tensor([[0.0, 1.0], [1.0, 0.0]]))

    def forward(self, tokens: Tensor) -> Tensor:
        lookup = torch.ops.quantized_decomposed.embedding_4bit.dtype
        x = lookup(self.values, self.scales, None, -8, 7, tokens, dtype=torch.float32)
        width = x.shape[2]
        return F.linear(x.view(1, -1, width // 2, 2), self.swap).view(1, -1, width)
