"""The same model by `torch.export`, for whoever lowers aten: strict, any number of tokens, operators whole.

`run_decompositions()` on the program gives aten in their place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model.decoder import Decoder, skeleton
from lfm2_export.model.state import State, empty_state


class Flat(nn.Module):
    """A decoder whose results are a plain tuple: the logits, then the new state in the contract's order."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor, position: Tensor, length: Tensor | None, state: State) -> tuple[Tensor, ...]:
        logits, new = self.decoder(tokens, position, length, state)
        return (logits, *new.values())


def exported(
    config: LFM2Config, window: int, padded: bool, limit: int, decoder: Decoder | None = None
) -> ExportedProgram:
    """Export the model for calls of 1 to `limit` tokens over caches of `window` columns, batch 1.

    Without a `decoder` it has no weights (meta tensors). A quantized decoder's products fall apart in such a program;
    lower the network of `graph/trace.py` instead.
    """
    model = decoder if decoder is not None else skeleton(config)
    device = model.embed_tokens.weight.device
    with torch.device(device):
        state = {name: tensor.to(device) for name, tensor in empty_state(config, window).items()}
        tokens, position = torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, dtype=torch.long)
        length = torch.ones(1, dtype=torch.long) if padded else None
        dynamic = ({1: Dim("T", min=1, max=limit)}, None, None, dict.fromkeys(state))
        return torch.export.export(Flat(model), (tokens, position, length, state), dynamic_shapes=dynamic, strict=True)
