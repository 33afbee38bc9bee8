"""Small random models, and how far two sessions are apart: what the tests of all targets share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model.decoder import Decoder
from lfm2_export.runtimes.session import Session, Snapshot

VOCAB = 320
CHUNKS = ([17], [1] * 17, [2] * 8 + [1], [3, 1, 1, 7, 2, 3], [1, 16], [16, 1])
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "width 2 with bias": {"conv_L_cache": 2, "conv_bias": True},
    "width 5 with bias": {"conv_L_cache": 5, "conv_bias": True},
    "width 7": {"conv_L_cache": 7},
    "untied head": {"tie_word_embeddings": False},
    "attention first, wide heads": {"layer_types": ("full_attention", "conv", "full_attention"), "head_dim": 32},
    "attention last": {"layer_types": ("conv", "full_attention")},
    "two attentions in a row": {"layer_types": ("conv", "full_attention", "full_attention", "conv")},
    "no sharing of KV heads": {"num_key_value_heads": 4},
    "one KV head": {"num_key_value_heads": 1},
    "conv only": {"layer_types": ("conv", "conv")},
    "attention only": {"layer_types": ("full_attention", "full_attention")},
}

LFM3: dict[str, Any] = {
    "model_type": "lfm3",
    "layer_types": ("conv", "sliding_attention", "full_attention", "sliding_attention", "conv"),
    "conv_L_cache": 7,
    "rope_factor": 0.5,
    "sliding_window": 6,
    "sliding_rope_theta": 1e4,
    "use_attention_gate": True,
    "use_sandwich_norm": True,
}
LFM3_SHAPES: dict[str, dict[str, Any]] = {
    "LFM3": LFM3,
    "biases, no gate, no sandwich": LFM3
    | {"attention_bias": True, "conv_bias": True, "use_attention_gate": False, "use_sandwich_norm": False},
    "sliding first and last": LFM3 | {"layer_types": ("sliding_attention", "full_attention", "sliding_attention")},
    "sliding alone, window 2, one KV head": LFM3
    | {"layer_types": ("sliding_attention",), "sliding_window": 2, "num_key_value_heads": 1},
    "a window that no call fills": LFM3 | {"sliding_window": 30, "num_key_value_heads": 4, "rope_factor": 0.0},
}


def config(**changes: Any) -> LFM2Config:
    shape: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "layer_types": ("conv", "conv", "full_attention", "conv", "full_attention", "conv"),
        "conv_L_cache": 3,
        "conv_bias": False,
        "norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_ids": (7,),
    }
    return LFM2Config(**(shape | changes))


def random_decoder(seed: int = 0, **changes: Any) -> Decoder:
    torch.manual_seed(seed)
    decoder = Decoder(config(**changes)).eval()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(float("norm" in name), 0.1)
    return decoder


def tokens(count: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """max|Δ| / max|expected|; shapes must agree, and NaN is an infinite error."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if not expected.size:
        return 0.0
    return float(np.nan_to_num(np.abs(found - expected), nan=np.inf).max() / max(np.abs(expected).max(), 1e-30))


def state_error(found: Snapshot, expected: Snapshot) -> float:
    assert found.position == expected.position
    assert list(found.tensors) == list(expected.tensors)
    return max(relative(found.tensors[name], tensor) for name, tensor in expected.tensors.items())


def worst(found: Session, expected: Session, chunks: Iterable[int], pad: int | None = None) -> float:
    """Feed both sessions the same tokens in the same chunks; the largest error of logits and states on the way."""
    chunks, error = list(chunks), 0.0
    ids = tokens(sum(chunks))
    found.reset()
    expected.reset()
    for size in chunks:
        chunk, ids = ids[:size], ids[size:]
        error = max(error, relative(found.prefill(chunk, pad_to=pad), expected.prefill(chunk)))
        if found.has_state:
            error = max(error, state_error(found.state(), expected.state()))
    return error
