"""Unpacking changes where the weights are turned to fp32, and not a bit of what is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchao.quantization import IntxUnpackedToInt8Tensor

from lfm2_export import recipes
from lfm2_export.graph.matrices import matrices
from lfm2_export.model.load import open_checkpoint
from lfm2_export.quantize.apply import install, load_quantized, quantized_weight
from lfm2_export.quantize.grid import grid_of, searched_scales
from lfm2_export.quantize.scheme import QuantizationRule, WeightScheme
from lfm2_export.quantize.size import ROOM
from lfm2_export.quantize.unpack import plain, unpack, without_rounding
from lfm2_export.runtimes.eager import EagerSession

WINDOW = 64
TOKENS = [1 + 7 * i % 900 for i in range(24)]


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, None), (8, 128)])
def test_weights_are_rounded_and_turned_back_as_torchao_does_to_the_bit(bits: int, group: int | None) -> None:
    scheme = WeightScheme(bits=bits, group=group, scale="bfloat16")
    weight = torch.randn(700, 256, generator=torch.Generator().manual_seed(bits))
    scales = searched_scales(weight, grid_of(scheme), steps=0)
    weight[::2] = (weight[::2] / scales[::2].repeat_interleave(256 // scales.shape[1], 1)).round() + 0.5  # ties
    weight[::2] *= scales[::2].repeat_interleave(256 // scales.shape[1], 1)
    decoder = nn.ModuleDict({"matrix": nn.Linear(256, 700, bias=False)})
    install(decoder, "matrix", QuantizationRule(match="*", weight=scheme), weight, scales)
    expected = IntxUnpackedToInt8Tensor.from_hp(
        weight,
        (1, 256 // scales.shape[1]),
        {4: torch.int4, 8: torch.int8}[bits],
        intx_choose_qparams_algorithm=None,
        custom_scale=scales,
        custom_zero_point=torch.zeros_like(scales, dtype=torch.int8),
    )
    assert torch.equal(decoder["matrix"].weight.qdata, expected.qdata)
    grid = quantized_weight(decoder["matrix"])
    assert grid is not None
    assert torch.equal(plain(grid.values, grid.scales, grid.group), expected.dequantize())


@pytest.mark.parametrize("name", ["xnnpack-int4-mixed", "xnnpack-fp16", "xnnpack-fp32", "onnx-int8"])
@pytest.mark.parametrize("room", [ROOM, 2_000_000, 0])  # nano's matrices are 5.5 MB of fp32
def test_an_unpacked_decoder_computes_the_same_bits_however_much_of_it_is_fp32(name, room):
    recipe = recipes.load(name)
    nano = open_checkpoint("nano")
    packed, unpacked = (load_quantized(nano, recipe.quantization, recipe.cache) for _ in range(2))
    sessions = [EagerSession(decoder, WINDOW) for decoder in (packed, unpack(unpacked, room))]
    for chunk in (TOKENS[:20], TOKENS[20:21], TOKENS[21:]):
        ours, theirs = (session.prefill(chunk) for session in sessions)
        np.testing.assert_array_equal(ours, theirs)
    assert all(quantized_weight(unpacked.get_submodule(path)) is None for path, _, _ in matrices(nano.config))


@pytest.mark.parametrize("name", ["xnnpack-int4", "xnnpack-fp16", "onnx-int8", "onnx-q4f16", "onnx-fp16"])
@pytest.mark.parametrize("room", [ROOM, 2_000_000])
def test_without_rounding_only_the_weights_are_those_of_the_recipe(name, room):
    recipe = recipes.load(name, ["cache=float16"])
    nano = open_checkpoint("nano")
    unrounded = without_rounding(unpack(load_quantized(nano, recipe.quantization, recipe.cache), room))
    rules = tuple(rule.model_copy(update={"activation": None}) for rule in recipe.quantization)
    weights_alone = unpack(load_quantized(nano, rules, "float32"))
    ours, theirs = (EagerSession(decoder, WINDOW) for decoder in (unrounded, weights_alone))
    for chunk in (TOKENS[:20], TOKENS[20:]):
        np.testing.assert_array_equal(ours.prefill(chunk), theirs.prefill(chunk))
