"""The same model with its state held in buffers: what the stock ExecuTorch runners can drive.

Signature `(tokens [1, T] int64, start_pos [1] int64) → logits [1, vocab]`. Those runners' `reset()` only sets
the position to 0, so the graph itself must forget: at position 0 the conv states are multiplied by zero.
(The KV cache needs no such care, attention sees only columns below the position.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lfm2_export.model.decoder import Decoder
from lfm2_export.model.state import is_cache, state_shapes


class ResidentDecoder(nn.Module):
    """A `Decoder` and one conversation's state of `window` tokens, batch 1."""

    def __init__(self, decoder: Decoder, window: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.shapes = state_shapes(decoder.config, window)
        for name, shape in self.shapes.items():
            self.register_buffer(_buffer(name), torch.zeros(shape), persistent=False)

    def forward(self, tokens: Tensor, start_pos: Tensor) -> Tensor:
        started = start_pos.clamp(max=1).to(torch.float32)
        state = {
            name: buffer if is_cache(name) else buffer * started
            for name, buffer in ((name, self.get_buffer(_buffer(name))) for name in self.shapes)
        }
        logits, new = self.decoder(tokens, start_pos, None, state)
        columns = start_pos + torch.arange(tokens.shape[1])
        for name, tensor in new.items():
            buffer = self.get_buffer(_buffer(name))
            if is_cache(name):
                buffer.index_copy_(2, columns, tensor)
            else:
                buffer.copy_(tensor)
        return logits


def _buffer(name: str) -> str:
    return name.replace(".", "_")
