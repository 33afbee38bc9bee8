"""THE traced model: a pure function of (tokens, position, length, state) → (logits, new state).

Everything downstream (targets, eager parity, the resident form) is made from this one module. Nothing is
hidden in it and nothing in it assumes a layer pattern, a conv width or a head layout.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model.attention import MASKED, Attention, Positions
from lfm2_export.model.layers import FeedForward, RMSNorm, rotary
from lfm2_export.model.short_conv import ShortConv
from lfm2_export.model.state import State


class Block(nn.Module):
    """Pre-norm residual block: `x + operator(norm x)`, then `x + mlp(norm x)`."""

    conv: ShortConv  # in a conv layer
    self_attn: Attention  # in an attention layer

    def __init__(self, config: LFM2Config, kind: str) -> None:
        super().__init__()
        self.operator_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = FeedForward(config)
        if kind == "conv":
            self.conv = ShortConv(config)
        else:
            self.self_attn = Attention(config)


class Decoder(nn.Module):
    """A whole LFM2 with explicit state (see `model/state.py` for names and shapes)."""

    def __init__(self, config: LFM2Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, kind) for kind in config.layer_types)
        self.embedding_norm = RMSNorm(config.hidden_size, config.norm_eps)  # LFM2's name for the final norm
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self, tokens: Tensor, position: Tensor, length: Tensor | None, state: State, all_logits: bool = False
    ) -> tuple[Tensor, State]:
        """One call over T tokens.

        tokens `[B, T] int64`; position `[B] int64`, tokens already seen; length `[B] int64`, valid tokens of
        this call (the rest is right padding), or None for all T; state as in `state_shapes`, only read.

        Returns logits `[B, vocab]` of each row's last valid token (`[B, T, vocab]` with `all_logits`) and the
        new state under the same names: whole conv states, and of keys and values only this call's
        `[B, kv_heads, T, head_dim]`, which the caller writes at `position`.
        """
        at = self.positions(tokens, position, state)
        x = self.embed_tokens(tokens)
        new: State = {}
        for layer in range(len(self.layers)):
            x = self.advance(layer, x, length, state, at, new)
        if not all_logits:
            x = _last_valid(x, length)
        return self.lm_head(self.embedding_norm(x)), new

    def advance(self, layer: int, x: Tensor, length: Tensor | None, state: State, at: Positions, new: State) -> Tensor:
        """One layer over `x [B, T, H]`, which gives the next layer's; its new state goes into `new`."""
        block = self.block(layer)
        normed = block.operator_norm(x)
        if self.config.layer_types[layer] == "conv":
            mixed, new[f"conv_state.{layer}"] = block.conv(normed, state[f"conv_state.{layer}"], length)
        else:
            past = state[f"key.{layer}"], state[f"value.{layer}"]
            mixed, new[f"key.{layer}"], new[f"value.{layer}"] = block.self_attn(normed, *past, at)
        x = x + mixed
        return x + block.feed_forward(block.ffn_norm(x))

    def block(self, layer: int) -> Block:
        """The residual block of that layer."""
        return cast(Block, self.layers[layer])

    def positions(self, tokens: Tensor, position: Tensor, state: State) -> Positions:
        """Where the call's tokens stand in the window, for every layer's attention."""
        offsets = torch.arange(tokens.shape[1])
        cos, sin = rotary(position.unsqueeze(1) + offsets, self.config.head_dim, self.config.rope_theta)
        caches = self.config.attention_layers
        window = state[f"key.{caches[0]}"].shape[2] if caches else 1
        filled = torch.arange(window) < position.unsqueeze(1)  # [B, S]
        causal = offsets.unsqueeze(0) <= offsets.unsqueeze(1)  # [T, T]
        return Positions(position, cos, sin, _additive(filled).view(-1, 1, 1, 1, window), _additive(causal))


def _additive(visible: Tensor) -> Tensor:
    return (1.0 - visible.to(torch.float32)) * MASKED


def _last_valid(x: Tensor, length: Tensor | None) -> Tensor:
    """`[B, T, H]` → `[B, H]`: each row's last token before its padding."""
    if length is None:
        return x[:, -1]
    index = (length - 1).view(-1, 1, 1).expand(-1, 1, x.shape[2])
    return x.gather(1, index).squeeze(1)
