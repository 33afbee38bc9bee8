"""The constants of a program's delegate calls, packed as XNNPACK reads them and stored by their content.

Equal bytes are stored once, however many calls and methods read them, and a parameter is packed and hashed once.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from executorch.exir._serialize._named_data_store import NamedDataStore, NamedDataStoreOutput
from torch import Tensor, nn

from lfm2_export.quantize.apply import QuantizedWeight, quantized_weight
from lfm2_export.quantize.grid import rows_at_once

_ALIGNMENT = 16  # in bytes


class Stored(NamedTuple):
    """Where a constant is found, and how many bytes it has."""

    key: str  # SHA-256, with a prefix for scales
    size: int


class Integers(NamedTuple):
    """A quantized matrix in the store."""

    weight: QuantizedWeight
    values: Stored
    scales: Stored


class Weights:
    """The store of one program, which outlives every decoder that it packs."""

    def __init__(self) -> None:
        self._store = NamedDataStore()
        self._floats: dict[int, tuple[Tensor, Stored]] = {}  # by the parameter's id, with what keeps that id taken
        self._integers: dict[int, tuple[Tensor, Integers]] = {}

    @property
    def keys(self) -> frozenset[str]:
        """Return the keys of all constants."""
        return frozenset(self._store.pte_data)

    def output(self) -> NamedDataStoreOutput:
        """Return the constants as the exporter takes them, from one lowered call for all."""
        return self._store.get_named_data_store_output()

    def floats(self, tensor: Tensor) -> Stored:
        """Store a tensor as it lies."""
        if not isinstance(tensor, nn.Parameter):
            return self._put(tensor)
        if id(tensor) not in self._floats:
            self._floats[id(tensor)] = tensor, self._put(tensor)
        return self._floats[id(tensor)][1]

    def integers(self, module: nn.Module) -> Integers | None:
        """Store the integers of a linear module and their scales; None for one of floats."""
        parameter = module.weight
        assert isinstance(parameter, Tensor)
        if id(parameter) not in self._integers:
            weight = quantized_weight(module)
            if weight is None:
                return None
            scales = weight.scales if weight.bits == 8 else weight.scales.to(torch.bfloat16).view(torch.int16)
            scales_at = self._put(scales, "scale_")
            values_at = self._put(weight.values if weight.bits == 8 else nibbles(weight.values))
            self._integers[id(parameter)] = parameter, Integers(weight, values_at, scales_at)
        return self._integers[id(parameter)][1]

    def _put(self, tensor: Tensor, prefix: str = "") -> Stored:
        data = tensor.detach().contiguous().numpy().tobytes()
        key = prefix + hashlib.sha256(data).hexdigest()
        self._store.add_named_data(key, data, alignment=_ALIGNMENT)
        return Stored(key, len(data))


def nibbles(values: Tensor) -> Tensor:
    """int8 `[rows, columns]` in [-8, 7] → uint8 `[rows, columns/2]`: +8, the first of two values in the low half."""
    return torch.cat([_nibbles(rows) for rows in values.split(rows_at_once(values))])


def _nibbles(values: Tensor) -> Tensor:
    pairs = values.contiguous().view(torch.int16)  # little-endian: the second value is the high byte
    packed = (pairs & 0x0F) | ((pairs >> 4) & 0xF0)
    return packed.bitwise_xor_(0x88).to(torch.uint8)
