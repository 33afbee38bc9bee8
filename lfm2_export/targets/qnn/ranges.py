"""Ranges of activations from all that was seen of them, where the extremes alone are a poor choice.

ExecuTorch's own observers of this kind keep a histogram per graph and know nothing of the tensors that must share a
range; this one shows its range as `min_val` and `max_val`, as the min-max observer does, once `settle` is called.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e import UniformQuantizationObserverBase

_BINS = 8192  # of the histogram, over the smallest power of two that holds every value, both signs
_STEPS, _TIGHTEST = 100, 0.01  # ranges tried for "mse"


class RangeObserver(UniformQuantizationObserverBase):
    """Counts values, and chooses when all were seen.

    Zeros do not count: they are the empty part of a cache, and every range has them anyway.
    """

    def __init__(self, **spec: Any) -> None:
        super().__init__(**spec)
        self.min_val: Tensor
        self.max_val: Tensor
        self.exponent: int | None = None
        self.register_buffer("min_val", torch.tensor(torch.inf))
        self.register_buffer("max_val", torch.tensor(-torch.inf))
        self.counts = torch.zeros(_BINS, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        values = x.detach().float()
        values = values[values != 0]
        if not values.numel():
            self.min_val, self.max_val = self.min_val.clamp(max=0), self.max_val.clamp(min=0)
            return x
        self.min_val = torch.minimum(self.min_val, values.min())
        self.max_val = torch.maximum(self.max_val, values.max())
        self._widen(int(torch.frexp(values.abs().max()).exponent))
        assert self.exponent is not None
        reach = 2.0**self.exponent
        self.counts += torch.histc(values, _BINS, -reach, reach).double()
        return x

    def _widen(self, exponent: int) -> None:
        """Merge pairs of bins until they reach 2^exponent; a count keeps its place exactly."""
        if self.exponent is None:
            self.exponent = exponent
        while self.exponent < exponent:
            quarter = torch.zeros(_BINS // 4, dtype=torch.float64)
            self.counts = torch.cat((quarter, self.counts.view(-1, 2).sum(1), quarter))
            self.exponent += 1

    def settle(self, percentile: float | None) -> None:
        """Narrow `min_val` and `max_val`, until now the extremes, to the range chosen.

        `percentile`: that share of the values stays inside on either side; None takes the least squared error.
        """
        if self.exponent is None:
            return
        edges = torch.linspace(-1, 1, _BINS + 1, dtype=torch.float64) * 2.0**self.exponent
        low, high = self._least_error(edges) if percentile is None else self._without_tails(edges, 1 - percentile / 100)
        self.min_val = self.min_val.clamp(min=low).clamp(max=0)
        self.max_val = self.max_val.clamp(max=high).clamp(min=0)

    def _without_tails(self, edges: Tensor, tail: float) -> tuple[float, float]:
        below = self.counts.cumsum(0) / self.counts.sum()
        low = int((below > tail).nonzero()[0])
        high = int((below >= 1 - tail).nonzero()[0])
        return float(edges[low]), float(edges[high + 1])

    def _least_error(self, edges: Tensor) -> tuple[float, float]:
        """Of ranges that shrink towards zero, the one whose clipping and rounding cost least.

        With 16 bits that nearly always is the full one: a step is so small that no outlier costs much.
        """
        levels = self.quant_max - self.quant_min
        centres = (edges[1:] + edges[:-1]) / 2
        lowest, highest = min(float(self.min_val), 0.0), max(float(self.max_val), 0.0)
        best, least = (lowest, highest), torch.inf
        for step in range(_STEPS):
            share = 1 - (1 - _TIGHTEST) * step / _STEPS
            low, high = lowest * share, highest * share
            clipped = (centres - centres.clamp(low, high)).square() @ self.counts
            error = float(clipped + self.counts.sum() * ((high - low) / levels) ** 2 / 12)
            if error < least:
                best, least = (low, high), error
        return best

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        scale, zero_point = self._calculate_qparams(self.min_val, self.max_val)
        return scale, zero_point
