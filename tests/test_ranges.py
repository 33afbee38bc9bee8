"""The NPU target's observer of activations: what it counts and which range it takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("executorch")

from lfm2_export.targets.qnn.ranges import RangeObserver


def observed(*tensors: Tensor, levels: int = 65535) -> RangeObserver:
    observer = RangeObserver(dtype=torch.int32, qscheme=torch.per_tensor_affine, quant_min=0, quant_max=levels)
    for tensor in tensors:
        assert observer(tensor) is tensor
    return observer


@pytest.fixture
def values() -> Tensor:
    """20,000 between -1 and 3, evenly."""
    return torch.linspace(-1, 3, 20000)


def settled(percentile: float | None, *tensors: Tensor, levels: int = 65535) -> tuple[float, float]:
    observer = observed(*tensors, levels=levels)
    observer.settle(percentile)
    return float(observer.min_val), float(observer.max_val)


@pytest.mark.parametrize(("percentile", "expected"), [(100.0, (-1, 3)), (99.0, (-0.96, 2.96)), (90.0, (-0.6, 2.6))])
def test_a_percentile_cuts_both_tails(values: Tensor, percentile: float, expected: tuple[float, float]) -> None:
    assert settled(percentile, values) == pytest.approx(expected, abs=4 / 4096)


def test_a_lone_outlier_is_cut_and_does_not_blur_the_rest(values: Tensor) -> None:
    assert settled(99.9, values, torch.tensor([60.0]))[1] == pytest.approx(3, abs=0.05)
    assert settled(100.0, values, torch.tensor([60.0]))[1] == 60


def test_zeros_do_not_count(values: Tensor) -> None:
    assert settled(99.0, values, torch.zeros(10**6)) == settled(99.0, values)
    assert settled(99.0, torch.zeros(9)) == (0, 0)


def test_order_and_portions_do_not_matter(values: Tensor) -> None:
    large = torch.linspace(5, 40, 300)
    assert settled(99.5, values, large) == settled(99.5, large, values[10000:], values[:10000])


def test_the_least_error_keeps_all_of_an_even_spread(values: Tensor) -> None:
    assert settled(None, values) == (-1, 3)


@pytest.mark.parametrize(("levels", "cut"), [(255, True), (65535, False)])
def test_the_least_error_cuts_an_outlier_only_where_steps_are_coarse(values: Tensor, levels: int, cut: bool) -> None:
    _, high = settled(None, values.abs().repeat(20), torch.tensor([60.0]), levels=levels)
    assert (3 <= high < 50) if cut else high == 60


def test_the_range_becomes_16_bit_steps(values: Tensor) -> None:
    observer = observed(values)
    observer.settle(90.0)
    scale, zero = observer.calculate_qparams()
    assert float(scale) == pytest.approx(3.2 / 65535, rel=1e-3)
    assert int(zero) == pytest.approx(0.6 / 3.2 * 65535, abs=40)
