"""GELU (Hendrycks & Gimpel 2016, arXiv:1606.08415), by the names that a config has for it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lfm2_export.checkpoint.vision_keys import Activation


class GELU(nn.Module):
    """GELU of every value, exact or by its approximation with tanh."""

    def __init__(self, kind: Activation | None) -> None:
        super().__init__()
        self.by_tanh = kind == "gelu_pytorch_tanh"

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh" if self.by_tanh else "none")
