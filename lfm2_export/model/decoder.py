"""THE traced model: a pure function of (tokens, position, length, state) → (logits, new state).

Everything downstream (the graph that targets lower, eager parity, the resident form) is made from this one module.
Nothing is hidden in it and nothing in it assumes a layer pattern, a conv width or a head layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model import operators
from lfm2_export.model.block import Block
from lfm2_export.model.layers import RMSNorm
from lfm2_export.model.layout import Stored, StoresOtherwise, stored, within
from lfm2_export.model.mixer import Call
from lfm2_export.model.state import State


class Decoder(nn.Module, StoresOtherwise):
    """A whole LFM2 with explicit state (see `model/state.py` for names and shapes)."""

    def __init__(self, config: LFM2Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
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
        call = self.call(tokens, position, length)
        return self.from_embeddings(self.embed_tokens(tokens), call, state, all_logits)

    def from_embeddings(self, x: Tensor, call: Call, state: State, all_logits: bool = False) -> tuple[Tensor, State]:
        """The same of embeddings `x [B, T, H]`, whatever they stand for; `call` is that of as many tokens."""
        new: State = {}
        for layer in range(len(self.layers)):
            x, changed = self.block(layer)(x, state, call)
            new |= changed
        if not all_logits:
            x = operators.last_valid(x, call.length)
        return self.lm_head(self.embedding_norm(x)), new

    @property
    def device(self) -> torch.device:
        """The device of the weights, on which a call's tensors must be as well."""
        return self.embed_tokens.weight.device

    def block(self, layer: int) -> Block:
        """The residual block of that layer, callable by itself: `(x, state, call) → (x, the layer's new state)`."""
        return cast(Block, self.layers[layer])

    def call(self, tokens: Tensor, position: Tensor, length: Tensor | None = None) -> Call:
        """Return where the call's tokens stand in the window, for every layer; arguments as in `forward`."""
        angles: dict[str, tuple[Tensor, Tensor]] = {}
        for kind in ("full_attention", "sliding_attention"):
            if kind in self.config.layer_types:
                cos, sin = operators.rotary(tokens, position, self.config.head_dim, *self.config.rotary(kind))
                angles[kind] = cos, sin
        return Call(position, length, angles)

    def stored(self, unsaved: bool) -> Iterator[Stored]:
        """Yield the checkpoint's tensors in its order; a tied one has no head of its own."""
        for name, part in self.named_children():
            if name == "lm_head" and self.config.tie_word_embeddings:
                continue
            for each in stored(part, unsaved):
                owned = within(name, each)
                yield owned if name == "lm_head" else owned._replace(name=f"model.{owned.name}")


@lru_cache(maxsize=8)
def skeleton(config: LFM2Config) -> Decoder:
    """The model of that shape without weights (meta tensors), untied: for questions that need no weight. Read only."""
    with torch.device("meta"):
        return Decoder(replace(config, tie_word_embeddings=False)).eval()


@lru_cache(maxsize=8)
def layouts(config: LFM2Config) -> tuple[tuple[Stored, ...], ...]:
    """Every tensor of a checkpoint of that shape, in a checkpoint's order: in each way it may be laid out, the usual
    one first."""
    with torch.device("meta"):
        decoder = Decoder(config)
        saved, unsaved = tuple(decoder.stored(unsaved=False)), tuple(decoder.stored(unsaved=True))
    same = [each.name for each in saved] == [each.name for each in unsaved]
    return (saved,) if same else (saved, unsaved)
