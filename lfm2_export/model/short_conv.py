"""LFM2's gated short convolution: `out_proj(C ⊙ conv(B ⊙ x))`, causal, depthwise, width `conv_L_cache`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model import operators
from lfm2_export.model.layout import Shape, Stored, StoresOtherwise
from lfm2_export.model.mixer import Call, Mixer


class ShortConv(Mixer, StoresOtherwise):
    """One gated short convolution with its last L-1 inputs as explicit state.

    The checkpoint's fused `in_proj [3H, H]` is kept as its three rows-blocks B, C and x: three plain matrix products
    delegate whole, a product followed by a split does not.
    """

    attribute = "conv"

    def __init__(self, config: LFM2Config) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, config.conv_bias
        self.width = config.conv_L_cache
        self.b_proj = nn.Linear(hidden, hidden, bias=bias)
        self.c_proj = nn.Linear(hidden, hidden, bias=bias)
        self.x_proj = nn.Linear(hidden, hidden, bias=bias)
        self.out_proj = nn.Linear(hidden, hidden, bias=bias)
        self.kernel = nn.Parameter(torch.zeros(self.width, hidden))  # kernel[j] multiplies column t-(L-1)+j
        self.bias = nn.Parameter(torch.zeros(hidden)) if bias else None

    @staticmethod
    def state_shapes(config: LFM2Config, window: int) -> dict[str, Shape]:
        """Return the last L-1 columns of `B⊙x`, `[hidden, L-1]`, whatever the window."""
        return {"conv_state": (config.hidden_size, config.conv_L_cache - 1)}

    def stored(self, unsaved: bool) -> Iterator[Stored]:
        """Yield the checkpoint's tensors: the kernel as a Conv1d's, the three projections as one matrix."""
        width, hidden = self.kernel.shape
        yield Stored("conv.weight", (hidden, 1, width), ("kernel",), lambda tensor: (tensor[:, 0].T,))
        yield from self._projections("weight", hidden)
        if self.bias is not None:
            yield Stored("conv.bias", (hidden,), ("bias",))
            yield from self._projections("bias")

    def _projections(self, kind: str, *columns: int) -> Iterator[Stored]:
        hidden = self.kernel.shape[1]
        inputs = tuple(f"{name}.{kind}" for name in ("b_proj", "c_proj", "x_proj"))
        yield Stored(f"in_proj.{kind}", (3 * hidden, *columns), inputs, lambda tensor: tensor.chunk(3))
        yield Stored(f"out_proj.{kind}", (hidden, *columns), (f"out_proj.{kind}",))

    def forward(self, x: Tensor, state: tuple[Tensor, ...], call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`x [B, T, H]`, conv state `[B, H, L-1]` → output `[B, T, H]`, new conv state `[B, H, L-1]`."""
        mixed, new = operators.short_conv(
            self.b_proj(x) * self.x_proj(x), state[0], self.kernel, self.bias, call.length
        )
        return self.out_proj(self.c_proj(x) * mixed), (new,)
