"""The same arithmetic in the operators that XNNPACK's delegate takes, so that the network is not cut into pieces.

Left alone, each RMSNorm's mean, each half-rotation of RoPE and each dynamic slice of a short convolution falls back to
ExecuTorch's portable kernels and splits the delegate around it. Nothing here changes a result beyond fp32 rounding.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfm2_export.model.attention import Attention
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.layers import RMSNorm
from lfm2_export.model.short_conv import ShortConv


def delegable(decoder: Decoder) -> Decoder:
    """A copy of the decoder (weights shared, the original untouched) with its layers in delegable form."""
    tensors = [*decoder.parameters(), *decoder.buffers()]
    rewritten = copy.deepcopy(decoder, memo={id(tensor): tensor for tensor in tensors})
    for path, module in list(rewritten.named_modules()):
        owner, _, name = path.rpartition(".")
        if isinstance(module, RMSNorm):
            setattr(rewritten.get_submodule(owner), name, MatmulRMSNorm(module))
        elif isinstance(module, ShortConv):
            setattr(rewritten.get_submodule(owner), name, ConvolutionShortConv(module))
        elif isinstance(module, Attention):
            module.rotate = MatmulRotation(module.head_dim)
    return rewritten


class MatmulRMSNorm(nn.Module):
    """RMSNorm whose mean is a product with a row of 1/width: a mean is not delegated, a matrix product is."""

    mean: Tensor

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = norm.eps
        width = norm.weight.shape[0]
        self.register_buffer("mean", torch.full((1, width), 1.0 / width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(F.linear(x * x, self.mean) + self.eps) * self.weight


class MatmulRotation(nn.Module):
    """RoPE whose `(-second, first)` is a product with a signed permutation: exact, and without a split."""

    halves: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        half = torch.arange(head_dim // 2)
        halves = torch.zeros(head_dim, head_dim)
        halves[half + head_dim // 2, half] = -1.0
        halves[half, half + head_dim // 2] = 1.0
        self.register_buffer("halves", halves)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x * cos + torch.matmul(x, self.halves) * sin


class ConvolutionShortConv(nn.Module):
    """ShortConv as one depthwise convolution in `[B, H, T]` layout: slices of dynamic length are not delegated."""

    kernel: Tensor

    def __init__(self, conv: ShortConv) -> None:
        super().__init__()
        self.b_proj, self.c_proj, self.x_proj, self.out_proj = conv.b_proj, conv.c_proj, conv.x_proj, conv.out_proj
        self.width = conv.width
        self.bias = conv.bias
        self.register_buffer("kernel", conv.kernel.detach().T.unsqueeze(1).contiguous())  # [H, 1, L]

    def forward(self, x: Tensor, conv_state: Tensor, length: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `ShortConv.forward`."""
        gated = (self.b_proj(x) * self.x_proj(x)).transpose(1, 2)
        columns = torch.cat((conv_state, gated), dim=2)  # [B, H, L-1+T]
        mixed = F.conv1d(columns, self.kernel, self.bias, groups=self.kernel.shape[0]).transpose(1, 2)
        if length is None:
            last = columns.narrow(2, x.shape[1], self.width - 1)
        else:
            index = length.view(-1, 1, 1) + torch.arange(self.width - 1)
            last = columns.gather(2, index.expand(-1, columns.shape[1], -1))
        return self.out_proj(self.c_proj(x) * mixed), last
