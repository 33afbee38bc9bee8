"""`config.json` → `LFM2Config`: the only description of the architecture that the rest may read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LayerType = Literal["conv", "full_attention"]


@dataclass(frozen=True)
class LFM2Config:
    """The shape of one LFM2 decoder, with every spelling of `config.json` already resolved.

    `intermediate_size` is the true width of w1/w3 (after `block_auto_adjust_ff_dim`).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    layer_types: tuple[LayerType, ...]
    conv_L_cache: int
    conv_bias: bool
    norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layer_types)

    @property
    def conv_layers(self) -> tuple[int, ...]:
        """Indices of the gated short-convolution layers."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "conv")

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Indices of the grouped-query attention layers."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "full_attention")
