"""A checkpoint of a true LFM2 shape with random weights: what an export costs can be tried without a download.

The safetensors file is streamed, header first, then one tensor at a time: 2.6B parameters need the memory of the largest
tensor, not of the model.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lfm2_export.checkpoint.config import LFM2Config, parse_config, read_config
from lfm2_export.checkpoint.layout import expected_tensors
from lfm2_export.checkpoint.source import RANDOM
from lfm2_export.checkpoint.weights import SINGLE
from lfm2_export.errors import UsageError
from lfm2_export.files import staged_folder

_STD = 0.02  # transformers' initializer_range


def _shape(hidden: int, heads: int, mlp: int, layers: int, attention: tuple[int, ...]) -> dict[str, Any]:
    """Hugging Face's config.json of a released size; what they all share is written once."""
    return {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "dtype": "bfloat16",
        "vocab_size": 65536,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "block_auto_adjust_ff_dim": False,
        "num_hidden_layers": layers,
        "layer_types": ["full_attention" if i in attention else "conv" for i in range(layers)],
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "conv_L_cache": 3,
        "conv_bias": False,
        "norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": True,
        "max_position_embeddings": 128_000,
        "bos_token_id": 1,
        "eos_token_id": 7,
        "pad_token_id": 0,
    }


_SMALL = (2, 5, 8, 10, 12, 14)
SIZES: dict[str, dict[str, Any]] = {
    "350m": _shape(1024, 16, 4608, 16, _SMALL),
    "700m": _shape(1536, 24, 6912, 16, _SMALL),
    "1.2b": _shape(2048, 32, 8192, 16, _SMALL),
    "2.6b": _shape(2048, 32, 10752, 30, (2, 6, 9, 13, 17, 21, 24, 27)),  # 8 of 30; where they sit is our spacing
}


def init_checkpoint(
    size: str, folder: Path, seed: int = 0, force: bool = False, stage: Callable[[str], None] = lambda _: None
) -> None:
    """Write config.json and a bf16 model.safetensors of `size` (a name in SIZES or the path of a config.json).

    The same size and seed give the same bytes. Raises UsageError for an unknown size or an existing folder,
    CheckpointError for a config that is not an LFM2.
    """
    document, config = _read(size)
    with staged_folder(folder, force) as staging:
        (staging / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        _write_weights(staging / SINGLE, config, seed, stage)


def _read(size: str) -> tuple[dict[str, Any], LFM2Config]:
    if size in SIZES:
        return SIZES[size], parse_config(SIZES[size], size)
    path = Path(size)
    if not path.is_file():
        raise UsageError(f"--size {size}: expected {', '.join(SIZES)} or the path of a config.json")
    config = read_config(path)
    return json.loads(path.read_bytes()), config


def _write_weights(path: Path, config: LFM2Config, seed: int, stage: Callable[[str], None]) -> None:
    shapes = expected_tensors(config)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "lfm2_export": RANDOM, "seed": str(seed)}}
    offset = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format aligns the data to 8 bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for number, (name, shape) in enumerate(shapes.items(), 1):
            stage(f"{name} ({number} of {len(shapes)})")
            file.write(_random_tensor(name, shape, seed).view(torch.uint8).numpy())


def _random_tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """bf16: ones for norms, zeros for biases, N(0, 0.02) for matrices, seeded by name so that order never matters."""
    if "norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    if name.endswith(".bias"):
        return torch.zeros(shape, dtype=torch.bfloat16)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, _STD, generator=generator)
