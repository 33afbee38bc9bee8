"""llama.cpp's importance matrix of a checkpoint: the mean square of what each column of each matrix is multiplied with.

That is what llama.cpp's own `imatrix` program collects (which its Python package lacks), of the same model in fp32:
of the matrices inside the layers, and not of the embedding and head.
"""

from __future__ import annotations

import numpy as np
import torch

from lfm2_export.graph.matrices import siblings
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.quantize.streams import Stream

_NAMES = {
    **dict.fromkeys(("conv.b_proj", "conv.c_proj", "conv.x_proj"), "shortconv.in_proj"),  # one matrix there
    "conv.out_proj": "shortconv.out_proj",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}


@torch.inference_mode()
def importance(exact: Decoder, sequences: TokenSequences) -> dict[str, np.ndarray]:
    """Return the matrix by llama.cpp's names of the tensors of an LFM2, `[columns] fp32` each."""
    stream, found = Stream(exact, sequences), dict[str, np.ndarray]()
    for layer in range(exact.config.num_hidden_layers):
        for group in siblings(exact.config, layer):
            squares = [inputs.square().double() for inputs in stream.inputs(exact, layer, group.paths[0])]
            mean = torch.cat(squares).mean(0).float().numpy()
            for path in group.paths:
                name = _NAMES[path.removeprefix(f"layers.{layer}.")]
                found[f"blk.{layer}.{name}.weight"] = mean
        stream.advance(exact, layer)
    return found
