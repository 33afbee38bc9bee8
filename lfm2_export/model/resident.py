"""The resident form: the same model with its state held in buffers, which the stock ExecuTorch runners can drive.

Signature `(tokens [1, T] int64, start_pos [1] int64) → logits [1, vocab]`. Those runners' `reset()` only sets
the position to 0, so the graph itself must forget: at position 0 the conv states are multiplied by zero.
(The KV cache needs no such care, attention sees only columns below the position.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lfm2_export.model.state import State, is_cache

Network = Callable[[Tensor, Tensor, None, State], tuple[Tensor, State]]  # a Decoder, or what a target made of one


class Resident(nn.Module):
    """A network and one conversation's state, batch 1, in whatever layout and dtype the network wants it.

    New keys and values that the network returns are written at the position along axis 2; one that writes its caches
    itself returns none.
    """

    def __init__(self, network: Network, state: State) -> None:
        super().__init__()
        self.network = network
        self.names = tuple(state)
        for name, tensor in state.items():
            self.register_buffer(_buffer(name), tensor, persistent=False)

    def forward(self, tokens: Tensor, start_pos: Tensor) -> Tensor:
        started = start_pos.clamp(max=1).to(torch.float32)
        state = {name: self.get_buffer(_buffer(name)) for name in self.names}
        seen = {name: tensor if is_cache(name) else tensor * started for name, tensor in state.items()}
        logits, new = self.network(tokens, start_pos, None, seen)
        for name, tensor in new.items():
            if is_cache(name):
                state[name].index_copy_(2, start_pos + torch.arange(tokens.shape[1]), tensor)
            else:
                state[name].copy_(tensor)
        return logits


def _buffer(name: str) -> str:
    return name.replace(".", "_")
