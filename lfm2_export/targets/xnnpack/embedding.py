"""The embedding lookup: ExecuTorch's own quantized operator for an integer table, so that the file keeps integers.

The table is laid out byte for byte as XNNPACK stores the head's weight, so that a tied head and embedding of the same
scheme are one blob in the file (see `pte_file.py`).
"""

from __future__ import annotations

import torch
from executorch.exir.passes import _quant_patterns_and_replacements  # noqa: F401  defines the operators
from torch import Tensor, nn

from lfm2_export.quantize.apply import QuantizedWeight, quantized_weight
from lfm2_export.targets.xnnpack.weights import nibbles


def embedding(table: nn.Module) -> nn.Module:
    """The module that looks up `table` in the method: itself where it is of floats, else a lookup in its integers."""
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

    XNNPACK puts the first of two values into the low half of a byte, the lookup takes it from the high half: the pairs
    come out swapped, and `delegated.swap_pairs` swaps them back.
    """

    values: Tensor  # [vocab, H/2] uint8
    scales: Tensor  # [vocab, groups], fp16 where that is exact

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        half = weight.scales.half()
        self.register_buffer("values", nibbles(weight.values))
        self.register_buffer("scales", half if torch.equal(half.float(), weight.scales) else weight.scales)

    def forward(self, tokens: Tensor) -> Tensor:
        lookup = torch.ops.quantized_decomposed.embedding_4bit.dtype
        return lookup(self.values, self.scales, None, -8, 7, tokens, dtype=torch.float32)
