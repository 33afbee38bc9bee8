"""Scales and GPTQ for models with static activations: on the matrix, on a model, on nano's own answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decoders import random_decoder, tokens
from torch import Tensor, nn

from lfm2_export import recipes
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.evaluate.metrics import quantization_loss
from lfm2_export.evaluate.text import evaluation_text
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.quantize.calibration import Calibration, calibration_sequences
from lfm2_export.quantize.gptq import gptq
from lfm2_export.quantize.scheme import QuantizationRule, WeightScheme
from lfm2_export.quantize.static_weights import StaticWeights, chosen_scales, static_weights
from lfm2_export.runtimes.eager import EagerSession

WINDOWS = tuple(tuple(tokens(24, seed)) for seed in range(3))
INT4 = WeightScheme(bits=4)


def rules(**weight: int) -> tuple[QuantizationRule, ...]:
    return (
        QuantizationRule(match="embedding", weight=WeightScheme(bits=16), activation="int16"),
        QuantizationRule(match="*", weight=WeightScheme(**weight), activation="int16"),
    )


def nearest(weight: Tensor, scales: Tensor, limit: int) -> Tensor:
    groups = weight.unflatten(1, (scales.shape[1], -1)) / scales.unsqueeze(-1)
    return (groups.round().clamp(-limit, limit) * scales.unsqueeze(-1)).flatten(1)


@pytest.fixture
def inputs() -> Tensor:
    """`[rows, 96]` of 12 things that vary, as the inputs of a trained layer are correlated."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(400, 12, generator=generator) @ torch.randn(12, 96, generator=generator)


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(40, 96, generator=torch.Generator().manual_seed(4))


class TestGptq:
    def test_products_change_less_than_by_rounding_to_nearest(self, inputs: Tensor, weight: Tensor) -> None:
        scales = chosen_scales(weight, INT4, 0)
        values = gptq(weight, (inputs.T @ inputs).double(), scales, 7)
        assert values.abs().max() <= 7
        errors = [(inputs @ (other - weight).T).norm() for other in (values * scales, nearest(weight, scales, 7))]
        assert errors[0] < 0.4 * errors[1]

    def test_uncorrelated_inputs_leave_rounding_to_nearest(self, weight: Tensor) -> None:
        scales = chosen_scales(weight, WeightScheme(bits=4, group=32), 0)
        values = gptq(weight, torch.rand(96, generator=torch.Generator().manual_seed(1)).diag(), scales, 7)
        moved = (values.unflatten(1, (3, 32)) * scales.unsqueeze(-1)).flatten(1)
        torch.testing.assert_close(moved, nearest(weight, scales, 7))

    def test_inputs_that_are_always_zero(self, inputs: Tensor, weight: Tensor) -> None:
        inputs[:, 5:20] = 0
        scales = chosen_scales(weight, INT4, 0)
        for hessian in ((inputs.T @ inputs).double(), torch.zeros(96, 96)):
            values = gptq(weight, hessian, scales, 7)
            torch.testing.assert_close((values * scales)[:, 5:20], nearest(weight, scales, 7)[:, 5:20])

    def test_more_columns_than_a_block(self) -> None:
        generator = torch.Generator().manual_seed(5)
        weight = torch.randn(8, 300, generator=generator)
        inputs = torch.randn(500, 30, generator=generator) @ torch.randn(30, 300, generator=generator)
        scales = chosen_scales(weight, INT4, 0)
        moved = gptq(weight, (inputs.T @ inputs).double(), scales, 7) * scales
        assert (inputs @ (moved - weight).T).norm() < 0.4 * (inputs @ (nearest(weight, scales, 7) - weight).T).norm()


class TestScales:
    def test_the_search_errs_less(self, weight: Tensor) -> None:
        weight[:, 0] *= 4  # an outlier in every row
        errors = [
            (nearest(weight, chosen_scales(weight, INT4, steps), 7) - weight).square().sum(1) for steps in (0, 40)
        ]
        assert (errors[1] <= errors[0]).all()
        assert errors[1].sum() < 0.9 * errors[0].sum()

    def test_what_the_inputs_make_important_is_kept(self, weight: Tensor) -> None:
        weight[:, 0] *= 8
        importance = torch.ones(96)
        importance[0] = 1e4
        free, held = (chosen_scales(weight, INT4, 40, given) for given in (None, importance))
        assert (free < held).sum() > 30

    @pytest.mark.parametrize("steps", [0, 40])
    def test_groups_have_whole_sixteenths_of_the_rows_largest(self, weight: Tensor, steps: int) -> None:
        weight[:, 32:64] *= 1e-4
        shares = chosen_scales(weight, WeightScheme(bits=4, group=32), steps)
        shares = shares / shares.amax(1, keepdim=True) * 16
        assert shares.shape == (40, 3)
        torch.testing.assert_close(shares, shares.round())
        assert shares.min() == 1

    def test_a_row_of_zeros_has_a_scale(self) -> None:
        assert (chosen_scales(torch.zeros(2, 8), INT4, 40) > 0).all()


class TestModel:
    @pytest.mark.parametrize("shape", [{}, {"conv_bias": True, "conv_L_cache": 5}, {"tie_word_embeddings": False}])
    @pytest.mark.parametrize("group", [None, 32])
    def test_gptq_moves_every_matrix_onto_its_grid_in_a_copy(self, shape: dict[str, object], group: int | None) -> None:
        decoder = random_decoder(**shape)
        before = {name: tensor.clone() for name, tensor in decoder.named_parameters(remove_duplicate=False)}
        rounded = static_weights(decoder, rules(bits=4, group=group), WINDOWS, "gptq")
        for name, tensor in decoder.named_parameters(remove_duplicate=False):
            assert torch.equal(tensor, before[name])
        for name, tensor in rounded.decoder.named_parameters(remove_duplicate=False):
            path = name.removesuffix(".weight")
            if path in rounded.scales:
                torch.testing.assert_close(tensor, nearest(tensor, rounded.scales[path], 7), rtol=0, atol=1e-6)
                assert not torch.equal(tensor, before[name])
            else:
                assert torch.equal(tensor, before[name])
        again = static_weights(decoder, rules(bits=4, group=group), WINDOWS, "gptq")
        assert all(torch.equal(again.scales[path], scales) for path, scales in rounded.scales.items())
        assert torch.equal(again.decoder.lm_head.weight, rounded.decoder.lm_head.weight)

    @pytest.mark.parametrize("method", ["nearest", "mse"])
    def test_other_methods_choose_scales_only(self, method: str) -> None:
        decoder = random_decoder()
        rounded = static_weights(decoder, rules(bits=8), (), method)  # type: ignore[arg-type]
        assert rounded.decoder.lm_head.weight is decoder.lm_head.weight
        assert len(rounded.scales) == 4 * 4 + 2 * 4 + 6 * 3 + 1

    def test_16_bits_lose_nothing_to_speak_of(self) -> None:
        decoder = random_decoder()
        rounded = static_weights(decoder, rules(bits=16), (), "nearest")
        weight, scales = decoder.lm_head.weight, rounded.scales["lm_head"]
        assert (nearest(weight, scales, 32767) - weight).abs().max() < 1e-4 * weight.abs().max()


def rounded_to_nearest(static: StaticWeights, bits: dict[str, int]) -> Decoder:
    for path, scales in static.scales.items():
        module = static.decoder.get_submodule(path)
        moved = nearest(module.weight, scales, 2 ** (bits.get(path, 4) - 1) - 1)  # type: ignore[arg-type]
        module.weight = nn.Parameter(moved, requires_grad=False)
    return static.decoder


def test_on_nano_gptq_loses_less_at_4_bits() -> None:
    nano = open_checkpoint("nano")
    tokenizer = ChatTokenizer.load(nano.folder, nano.config)
    sequences = calibration_sequences(Calibration(windows=12, tokens=96), nano, tokenizer)
    text = evaluation_text(nano.config, tokenizer, 256, 400).sequences
    fp32 = load_decoder(nano)

    def loss(method: str) -> float:
        static = static_weights(fp32, recipes.load("qnn-16a4w").quantization, sequences, method)  # type: ignore[arg-type]
        session, truth = EagerSession(rounded_to_nearest(static, {"lm_head": 8}), 256), EagerSession(fp32, 256)
        actual, expected, targets = [], [], []
        for window in text:
            session.reset()
            truth.reset()
            actual.append(session.score(window[:-1]))
            expected.append(truth.score(window[:-1]))
            targets.append(window[1:])
        return quantization_loss(*(np.concatenate(each) for each in (actual, expected, targets))).mean_kld

    nearest_kld, gptq_kld = loss("nearest"), loss("gptq")
    assert gptq_kld < 0.75 * nearest_kld  # 0.030 and 0.053 in groups of 64
    assert gptq_kld < 0.06
