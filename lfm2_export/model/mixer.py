"""What every kind of layer has of its own: a token mixer, the one part that looks at other tokens and keeps a state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model.layout import Shape


class Call(NamedTuple):
    """A call's place in the window, computed once for all of them."""

    position: Tensor  # [B] int64, tokens already seen
    length: Tensor | None  # [B] int64, valid tokens of this call; None: all T
    angles: dict[str, tuple[Tensor, Tensor]]  # by kind of attention layer: RoPE's cos and sin, [B, T, head_dim] each


class Mixer(nn.Module, ABC):
    """A token mixer: `(x, state, call) → (mixed, new state)`; a layer kind is a subclass and an entry in `LAYERS`."""

    attribute: ClassVar[str]  # what a checkpoint calls it within its layer
    cache_dtype = torch.float32  # of the KV cache, where it keeps one, and with it of attention's operands

    @staticmethod
    @abstractmethod
    def state_shapes(config: LFM2Config, window: int) -> dict[str, Shape]:
        """Return the shape of each state tensor, without the batch axis, by the contract's name for it."""

    @abstractmethod
    def forward(self, x: Tensor, state: tuple[Tensor, ...], call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`x [B, T, H]` and the state in the order of `state_shapes` → `[B, T, H]` and the new state likewise."""
