"""The parts that conv and attention blocks share: RMSNorm, the SwiGLU MLP and rotary positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfm2_export.checkpoint.config import LFM2Config


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): `w2(silu(w1 x) ⊙ w3 x)`."""

    def __init__(self, config: LFM2Config) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of RoPE (Su et al. 2021, arXiv:2104.09864), `[B, 1, T, head_dim]` for `positions [B, T]`."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    angles = positions.to(torch.float32).unsqueeze(-1) * (1.0 / theta**exponent)
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to `x [B, heads, T, head_dim]`, halves convention (as Hugging Face's Llama and LFM2)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
