"""LFM2's gated short convolution: `out_proj(C ⊙ conv(B ⊙ x))`, causal, depthwise, width `conv_L_cache`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lfm2_export.checkpoint.config import LFM2Config


class ShortConv(nn.Module):
    """One gated short convolution with its last L-1 inputs as explicit state.

    The checkpoint's fused `in_proj [3H, H]` is kept as its three rows-blocks B, C and x: three plain
    matrix products delegate whole, a product followed by a split does not. The convolution is L
    multiply-adds over shifted views, in `[B, T, H]` layout, so that nothing but the small state is
    transposed.
    """

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

    def forward(self, x: Tensor, conv_state: Tensor, length: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x [B, T, H]`, `conv_state [B, H, L-1]` → output `[B, T, H]`, new conv state `[B, H, L-1]`.

        `length [B]` counts each row's valid tokens (right padding); None means all T. The new state holds
        the last L-1 columns before the padding, which reach back into the old state when length < L-1.
        """
        tokens = x.shape[1]
        gated = self.b_proj(x) * self.x_proj(x)
        columns = torch.cat((conv_state.transpose(1, 2), gated), dim=1)  # [B, L-1+T, H]
        mixed = columns.narrow(1, 0, tokens) * self.kernel[0]
        for tap in range(1, self.width):
            mixed = mixed + columns.narrow(1, tap, tokens) * self.kernel[tap]
        if self.bias is not None:
            mixed = mixed + self.bias
        if length is None:
            last = columns.narrow(1, tokens, self.width - 1)
        else:
            index = length.view(-1, 1) + torch.arange(self.width - 1)
            last = columns.gather(1, index.unsqueeze(-1).expand(-1, -1, columns.shape[2]))
        return self.out_proj(self.c_proj(x) * mixed), last.transpose(1, 2)
