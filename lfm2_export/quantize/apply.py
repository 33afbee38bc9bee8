"""Turn the fp32 traced model into the quantized eager model that every target lowers and is judged against.

Weights become torchao's `IntxUnpackedToInt8Tensor` (integers in int8 + scales), so the very same grid is
run in eager, pattern-matched by ExecuTorch and packed by the ONNX target. The scales are chosen first (see `grid.py`):
torchao's own `weight_scale_dtype` rounds them last. What needs calibration tokens is in `calibrated.py`.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchao.quantization import IntxUnpackedToInt8Tensor
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    IntxUnpackedToInt8TensorActivationQuantization as ActivationQuantization,
)

from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.load import load_decoder
from lfm2_export.model.mixer import Mixer
from lfm2_export.model.state import FLOAT_DTYPES
from lfm2_export.quantize.grid import STEPS, grid_of, rows_at_once, searched_scales
from lfm2_export.quantize.method import Method
from lfm2_export.quantize.scheme import QuantizationRule, Rules, WeightScheme, rules_by_path

_DTYPES: dict[int, torch.dtype] = {4: getattr(torch, "int4"), 8: torch.int8}  # noqa: B009  torch's stubs lack int4


class QuantizedWeight(NamedTuple):
    """A weight matrix on its integer grid: `values [rows, columns] int8`, `scales [rows, groups] fp32`."""

    values: Tensor
    scales: Tensor
    bits: int
    group: int


class BlockActivationLinear(nn.Module):
    """A linear whose input is rounded to int8 per token and block of `group` inputs, symmetric.

    The eager stand-in for onnxruntime's MatMulNBits at `accuracy_level=4` (MLAS CompInt8), integer for integer:
    x is multiplied by 127/max|x| (not divided by the scale, which flips one in a million) and rounded half to even.
    `group` is the weight's; other kernels round in other blocks, and with None not at all.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, group: int | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = bias
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        if self.group is None:
            return F.linear(x, self.weight, self.bias)
        blocks = x.unflatten(-1, (-1, self.group))
        largest = blocks.abs().amax(-1, keepdim=True)
        inverse = torch.where(largest > 0, 127 / largest, 0)
        rounded = (blocks * inverse).round() * (largest / 127)
        return F.linear(rounded.flatten(-2), self.weight, self.bias)


class HalfLinear(nn.Module):
    """A linear with fp16 weights (or integers), whose input and product are rounded to fp16; sums and bias are fp32.

    Without `rounds` only the weights are fp16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rounds: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = bias
        self.rounds = rounds

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.float() if self.weight.dtype == torch.float16 else self.weight
        product = F.linear(self._rounded(x), weight)
        return self._rounded(product) if self.bias is None else self._rounded(product) + self.bias

    def _rounded(self, x: Tensor) -> Tensor:
        return x.half().float() if self.rounds else x


class HalfEmbedding(nn.Module):
    """An embedding whose table is fp16."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.half(), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight).float()


def quantize(decoder: Decoder, rules: Rules, cache: str = "float32", method: Method = "nearest") -> Decoder:
    """Quantize the decoder's modules in place, one at a time, and return it; `cache` is the KV cache's dtype.

    `method` is one that needs no calibration: "nearest", "mse" or "qat", see `method.py`. A tied head and embedding
    part ways here when their rules differ; the fp32 matrix is freed with its last user.
    """
    for path, rule in rules_by_path(decoder.config, rules).items():
        quantize_module(decoder, path, rule, method)
    return round_caches(decoder, cache)


def load_quantized(checkpoint: Checkpoint, rules: Rules, cache: str = "float32", method: Method = "nearest") -> Decoder:
    """`quantize(load_decoder(checkpoint))` in a quarter of its memory: each weight goes to its integers as it is read.

    Raises CheckpointError for NaN or infinity.
    """
    by_path = rules_by_path(checkpoint.config, rules)

    def loaded(decoder: Decoder, path: str) -> None:
        if path in by_path:
            quantize_module(decoder, path, by_path[path], method)

    return round_caches(load_decoder(checkpoint, loaded), cache)


def round_caches(decoder: Decoder, cache: str) -> Decoder:
    """Set the precision of the KV cache, in place."""
    for module in decoder.modules():
        if isinstance(module, Mixer):
            module.cache_dtype = FLOAT_DTYPES[cache]
    return decoder


def quantized_weight(module: nn.Module) -> QuantizedWeight | None:
    """The integer grid of a module that `quantize` has treated, or None for an fp32 one."""
    weight = module.weight
    if not isinstance(weight, IntxUnpackedToInt8Tensor):
        return None
    bits = {dtype: bits for bits, dtype in _DTYPES.items()}[weight.target_dtype]
    return QuantizedWeight(weight.qdata, weight.scale.float(), bits, weight.block_size[1])


def rounds_its_input(module: nn.Module) -> bool:
    """Return whether the input of a module with integer weights is rounded to int8 per token."""
    return getattr(module.weight, "activation_quantization", None) is not None


def integers(rule: QuantizationRule | None) -> WeightScheme | None:
    """The rule's integer weights as this module makes them; None for float weights and for static activations."""
    if rule is None or rule.weight is None or rule.weight.bits == 16 or rule.activation == "int16":
        return None  # with static activations the target chooses every scale at once, by calibration
    return rule.weight


def quantize_module(model: nn.Module, path: str, rule: QuantizationRule | None, method: Method = "nearest") -> None:
    """Quantize one module of a model in place, its weight alone in view."""
    scheme = integers(rule)
    if rule is None or rule.weight is None or rule.activation == "int16":
        return
    module = cast(nn.Linear | nn.Embedding, model.get_submodule(path))
    weight = module.weight.detach()
    if scheme is not None:
        if method == "qat":
            weight, scales = _fake_quantized(weight, scheme)
        else:
            scales = searched_scales(weight, grid_of(scheme), steps=STEPS if method == "mse" else 0)
        install(model, path, rule, weight, scales)
    elif isinstance(module, nn.Embedding):
        _replace(model, path, HalfEmbedding(weight))
    else:
        _replace(model, path, HalfLinear(weight.half(), module.bias, rounds=rule.activation == "float16"))


def install(model: nn.Module, path: str, rule: QuantizationRule | None, weight: Tensor, scales: Tensor) -> None:
    """Put `weight [rows, columns]`, rounded onto the grid of `scales [rows, groups]`, into a module, in place.

    The rule must have integers; it says how the module's inputs are rounded.
    """
    scheme = integers(rule)
    assert rule is not None
    assert scheme is not None
    on_token = ActivationQuantization.INT8_ASYM_PER_TOKEN if rule.activation == "int8-token" else None
    block, dtype = (1, weight.shape[1] // scales.shape[1]), _DTYPES[scheme.bits]
    values, rows = torch.empty(weight.shape, dtype=torch.int8), rows_at_once(weight)
    for to, part, of in zip(values.split(rows), weight.split(rows), scales.split(rows), strict=True):
        to.copy_(_integers(part, of, scheme.bits))
    grid = IntxUnpackedToInt8Tensor(
        qdata=values,
        scale=scales,
        zero_point=torch.zeros_like(scales, dtype=torch.int8),
        target_dtype=dtype,
        block_size=block,
        dtype=weight.dtype,
        activation_quantization=on_token,
    )
    module = cast(nn.Linear, model.get_submodule(path))
    if rule.activation == "int8-block":
        _replace(model, path, BlockActivationLinear(grid, module.bias, grid.block_size[1]))
    elif rule.activation == "float16":
        _replace(model, path, HalfLinear(grid, module.bias))
    else:
        module.weight = nn.Parameter(grid, requires_grad=False)


def _integers(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """What torchao rounds these rows to, to the bit, in half the passes over memory."""
    limit = 2 ** (bits - 1)
    groups = weight.unflatten(1, (scales.shape[1], -1)) * (1.0 / scales).unsqueeze(-1)
    return groups.round_().clamp_(-limit, limit - 1).flatten(1)


def _fake_quantized(weight: Tensor, scheme: WeightScheme) -> tuple[Tensor, Tensor]:
    """What torchao's fake quantization makes of a weight in training, and its scales `[rows, groups]`."""
    from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

    config = IntxFakeQuantizeConfig(
        _DTYPES[scheme.bits], group_size=scheme.group or weight.shape[1], scale_precision=FLOAT_DTYPES[scheme.scale]
    )
    quantizer = IntxFakeQuantizer(config)
    with torch.no_grad():
        return quantizer(weight), quantizer.scale.float()


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
