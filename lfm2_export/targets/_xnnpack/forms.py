"""The explicit form of the lowered model, which writes the caller's own state in place; the other is `Resident`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model.state import State, is_cache, state_shapes
from lfm2_export.targets._xnnpack.decoder import DelegatedDecoder


def native_state(config: LFM2Config, window: int, cache: torch.dtype) -> State:
    """Zeros under the contract's names, laid out as the operators want them.

    Caches `[kv_heads, S, 1, head_dim]` of dtype `cache`, conv states `[1, L-1, hidden]` fp32.
    """
    state: State = {}
    for name, shape in state_shapes(config, window).items():
        if is_cache(name):
            _, heads, columns, width = shape
            state[name] = torch.zeros(heads, columns, 1, width, dtype=cache)
        else:
            batch, hidden, columns = shape
            state[name] = torch.zeros(batch, columns, hidden)
    return state


class Explicit(nn.Module):
    """(tokens `[1, T]`, position `[1]`, state) → logits `[1, vocab]`; the state tensors are written in place."""

    def __init__(self, decoder: DelegatedDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor, position: Tensor, state: State) -> Tensor:
        logits, new = self.decoder(tokens, position, None, state)
        for name, tensor in new.items():
            state[name].copy_(tensor)
        return logits


class Tapped(nn.Module):
    """`Explicit`, with the values of the network's points after the logits."""

    def __init__(self, decoder: DelegatedDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor, position: Tensor, state: State) -> tuple[Tensor, ...]:
        taps: list[Tensor] = []
        logits, new = self.decoder(tokens, position, None, state, taps)
        for name, tensor in new.items():
            state[name].copy_(tensor)
        return (logits, *taps)
