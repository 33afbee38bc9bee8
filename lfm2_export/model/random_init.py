"""A checkpoint of a true shape with random weights: what an export costs can be tried without a download.

The safetensors file is streamed, header first, then one tensor at a time: 8B parameters need the memory of the largest
tensor, not of the model.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.checkpoint.config_keys import ARCHITECTURES, LayerType
from lfm2_export.checkpoint.json_file import read_json
from lfm2_export.checkpoint.safetensors_file import read_header
from lfm2_export.checkpoint.shards import SINGLE
from lfm2_export.checkpoint.source import RANDOM
from lfm2_export.checkpoint.vision_config import ModelConfig, parse_model_config
from lfm2_export.checkpoint.weights import within_whole
from lfm2_export.errors import CheckpointError, UsageError
from lfm2_export.files import FolderKind, Need, check_free, check_room, staged_folder
from lfm2_export.model.load import tensor_shapes
from lfm2_export.progress import Progress, silent

_MAX_CONFIG = 1 << 20
_STD = 0.02  # transformers' initializer_range
_SPELLED = {torch.bfloat16: "BF16", torch.float32: "F32"}


def _released(hidden: int, heads: int, mlp: int, layers: int, attention: tuple[int, ...]) -> LFM2Config:
    """A released size; what they all share is written once."""
    return LFM2Config(
        vocab_size=65536,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=64,
        layer_types=tuple("full_attention" if i in attention else "conv" for i in range(layers)),
        conv_L_cache=3,
        conv_bias=False,
        norm_eps=1e-5,
        rope_theta=1e6,
        tie_word_embeddings=True,
        max_position_embeddings=128_000,
        bos_token_id=1,
        eos_token_ids=(7,),
        pad_token_id=0,
    )


_FOUR: tuple[LayerType, ...] = ("sliding_attention", "conv", "full_attention", "conv")  # LFM3's, from layer 4 on
_SIXTEEN = (2, 5, 8, 10, 12, 14)
SIZES = {
    "350m": _released(1024, 16, 4608, 16, _SIXTEEN),
    "700m": _released(1536, 24, 6912, 16, _SIXTEEN),
    "1.2b": _released(2048, 32, 8192, 16, _SIXTEEN),
    "2.6b": _released(2048, 32, 10752, 30, (2, 5, 9, 13, 17, 21, 24, 27)),
    "lfm2-8b-a1b": replace(
        _released(2048, 32, 7168, 24, (2, 6, 10, 14, 18, 21)),
        model_type="lfm2_moe",
        num_experts=32,
        num_experts_per_tok=4,
        num_dense_layers=2,
        moe_intermediate_size=1792,
        use_expert_bias=True,
        norm_topk_prob=True,
    ),
    "lfm3-1.7b": LFM2Config(
        model_type="lfm3",
        vocab_size=128_000,
        hidden_size=2048,
        intermediate_size=7680,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=128,
        layer_types=("conv", *_FOUR[1:], *(5 * _FOUR)),
        conv_L_cache=7,
        conv_bias=False,
        norm_eps=1e-5,
        rope_theta=1e6,
        rope_factor=0.5,
        sliding_window=256,
        sliding_rope_theta=1e4,
        tie_word_embeddings=True,
        max_position_embeddings=128_000,
        use_attention_gate=True,
        use_sandwich_norm=True,
        bos_token_id=124_894,
        eos_token_ids=(124_900,),
        pad_token_id=124_893,
    ),
}


def init_checkpoint(
    size: str | LFM2Config,
    folder: Path,
    seed: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> None:
    """Write config.json and a bf16 model.safetensors of `size`: a name, the path of a config.json, a decoder's config.

    Names are in SIZES and VISION_SIZES. The same size and seed give the same bytes. Raises UsageError for an unknown
    size, an existing folder or a full disk, CheckpointError for a config of another model. Whatever is raised, `folder`
    is left as it was.
    """
    document = _document(size) if isinstance(size, LFM2Config) else _named(size)
    shapes = _shapes(parse_model_config(document, "config.json"))
    check_free(folder, force, KIND)
    weights = 2 * sum(map(math.prod, shapes.values()))
    check_room(Need(folder.parent, weights, "the weights"))
    try:
        with staged_folder(folder, force, KIND) as staging:
            (staging / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8", newline="\n")
            _write_weights(staging / SINGLE, shapes, seed, progress)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}") from error


def _listed(folder: Path) -> set[str]:
    """By the mark in the weights themselves: every checkpoint has a config.json."""
    if (folder / SINGLE).is_symlink() or not (folder / SINGLE).is_file():
        raise CheckpointError(f"it has no {SINGLE}")
    if read_header(folder / SINGLE).metadata.get("lfm2_export") != RANDOM:
        raise CheckpointError("its weights are not marked as random")
    return {"config.json", SINGLE}


KIND = FolderKind("init", _listed)


def _named(size: str) -> dict[str, Any]:
    """The config.json of that name; of one that is given, for a decoder in the newest spelling."""
    if (name := size.lower()) in SIZES:
        return _document(SIZES[name])
    if name in VISION_SIZES:
        return VISION_SIZES[name]
    if not Path(size).is_file():
        raise UsageError(f"--size {size}: expected {', '.join((*SIZES, *VISION_SIZES))} or the path of a config.json")
    document = read_json(Path(size), _MAX_CONFIG)
    decoder, vision = parse_model_config(document, size)
    return _document(decoder) if vision is None else document


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the whole checkpoint, by the file's name for it."""
    decoder = tensor_shapes(config.decoder)
    if config.vision is None:
        return decoder
    return {within_whole(name): shape for name, shape in decoder.items()} | tensor_shapes(config.vision)


def _document(config: LFM2Config) -> dict[str, Any]:
    """config.json in Hugging Face's newest spelling."""
    eos = list(config.eos_token_ids)
    own = {"lfm2": {}, "lfm2_moe": _moe_keys(config), "lfm3": _lfm3_keys(config)}[config.model_type]
    return {
        "architectures": [ARCHITECTURES[config.model_type]],
        "model_type": config.model_type,
        "dtype": "bfloat16",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        **({"block_auto_adjust_ff_dim": False} if config.model_type == "lfm2" else {}),  # the width is the true one
        "num_hidden_layers": config.num_hidden_layers,
        "layer_types": list(config.layer_types),
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "conv_L_cache": config.conv_L_cache,
        "conv_bias": config.conv_bias,
        "norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.pad_token_id,
        **own,
    }


def _moe_keys(config: LFM2Config) -> dict[str, Any]:
    experts = ("num_experts", "num_experts_per_tok", "num_dense_layers", "moe_intermediate_size")
    choice = ("use_expert_bias", "norm_topk_prob", "routed_scaling_factor")
    return {name: getattr(config, name) for name in (*experts, *choice)}


def _lfm3_keys(config: LFM2Config) -> dict[str, Any]:
    rope = {
        "full_attention": (config.rope_theta, config.rope_factor),
        "sliding_attention": (config.sliding_rope_theta, config.sliding_rope_factor),
    }
    parameters = {
        kind: {"rope_type": "default", "rope_theta": theta}
        if factor == 1
        else {"rope_type": "proportional", "rope_theta": theta, "partial_rotary_factor": factor}
        for kind, (theta, factor) in rope.items()
        if theta
    }
    names = ("sliding_window", "attention_bias", "use_attention_gate", "use_sandwich_norm")
    return {name: getattr(config, name) for name in names} | {"rope_parameters": parameters}


def _write_weights(path: Path, shapes: Mapping[str, tuple[int, ...]], seed: int, progress: Progress) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "lfm2_export": RANDOM, "seed": str(seed)}}
    offset = 0
    for name, shape in shapes.items():
        size = _dtype(name).itemsize * math.prod(shape)
        header[name] = {"dtype": _SPELLED[_dtype(name)], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format aligns the data to 8 bytes
    progress(f"writing {offset / 1e6:.0f} MB of random weights")
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, shape in shapes.items():
            file.write(_random_tensor(name, shape, seed).view(torch.uint8).numpy().data)


def _dtype(name: str) -> torch.dtype:
    """bf16, but for experts' biases: what is added to nearly equal scores decides between them."""
    return torch.float32 if name.endswith(".expert_bias") else torch.bfloat16


def _random_tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """bf16: ones for norms, zeros for biases, N(0, 0.02) for matrices, seeded by name so that order never matters."""
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=_dtype(name))
    if "norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, _STD, generator=generator)


def _lfm2_vl(decoder: str, hidden: int, mlp: int, layers: int, heads: int) -> dict[str, Any]:
    """A released size of LFM2-VL: a SigLIP2 tower before one of the decoders."""
    return {
        "architectures": ["Lfm2VlForConditionalGeneration"],
        "model_type": "lfm2_vl",
        "dtype": "bfloat16",
        "text_config": _document(SIZES[decoder]),
        "vision_config": {
            "model_type": "siglip2_vision_model",
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_patches": 256,
            "patch_size": 16,
            "vision_use_head": False,
        },
        "image_token_id": 396,
        "downsample_factor": 2,
        "projector_hidden_size": 2560,
        "tie_word_embeddings": True,
    }


VISION_SIZES: dict[str, dict[str, Any]] = {
    "lfm2-vl-450m": _lfm2_vl("350m", 768, 3072, 12, 12),
    "lfm2-vl-1.6b": _lfm2_vl("1.2b", 1152, 4304, 27, 16),
    "lfm3-vl-2b": {
        "architectures": ["Lfm3VlForConditionalGeneration"],
        "model_type": "lfm3_vl",
        "dtype": "bfloat16",
        "text_config": _document(SIZES["lfm3-1.7b"]),
        "vision_config": {
            "model_type": "lfm3_vl_vision",
            "hidden_size": 1024,
            "intermediate_size": 2560,
            "num_hidden_layers": 14,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "patch_size": 16,
        },
        "image_token_id": 125_030,
        "projector_hidden_size": 4096,
        "tie_word_embeddings": True,
    },
}
