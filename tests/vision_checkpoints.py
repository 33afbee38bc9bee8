"""Small vision-language checkpoints as transformers saves them, every tensor random."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from checkpoints import TOKENIZER_FILES, tiny_config
from safetensors.torch import save_file
from torch import Tensor
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration, Lfm3VlConfig, Lfm3VlForConditionalGeneration

from lfm2_export.checkpoint import nano
from lfm2_export.checkpoint.vision_config import parse_model_config
from lfm2_export.model.vision.encoder import VisionEncoder, vision_layouts

FAMILIES = ("lfm2_vl", "lfm3_vl")
IMAGE_TOKEN = 3
_VOCAB = tiny_config().vocab_size
_TEXT: dict[str, Any] = {
    "vocab_size": _VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
}
_LFM2 = _TEXT | {
    "model_type": "lfm2",
    "block_auto_adjust_ff_dim": False,
    "num_hidden_layers": 2,
    "layer_types": ["conv", "full_attention"],
}
_LFM3 = _TEXT | {
    "model_type": "lfm3",
    "num_hidden_layers": 3,
    "layer_types": ["conv", "full_attention", "sliding_attention"],
    "sliding_window": 6,
}
SIGLIP2: dict[str, Any] = {
    "model_type": "siglip2_vision_model",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
    "num_patches": 16,
    "vision_use_head": False,
}
_TOWER: dict[str, Any] = {
    "model_type": "lfm3_vl_vision",
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "full_attention", "conv"],
    "patch_size": 4,
}


Grids = Sequence[tuple[int, int]]
# in blocks: one, a row, a column, square, at the position table's own size, a thumbnail beside tiles, large
GRIDS: dict[str, Grids] = {
    "one block": [(1, 1)],
    "a row and a column": [(1, 40), (40, 1)],
    "square, then the table's own size": [(3, 3), (2, 2)],
    "tiles and a thumbnail": [*[(4, 4)] * 6, (3, 5)],
    "the largest": [(16, 16)],
    "images of many sizes": [(1, 1), (7, 2), (2, 9), (5, 5)],
}

# families, and what of their configuration is another than the smallest's
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2_vl": ("lfm2_vl", {}),
    "lfm2_vl without a norm, exact GELU, no merging": (
        "lfm2_vl",
        {"projector_use_layernorm": False, "downsample_factor": 1, "tower": {"hidden_act": "gelu"}},
    ),
    "lfm2_vl merging by 3, one place in the table": ("lfm2_vl", {"downsample_factor": 3, "tower": {"num_patches": 1}}),
    "lfm3_vl": ("lfm3_vl", {}),
    "lfm3_vl merging by 3, wide kernel, one KV head": (
        "lfm3_vl",
        {"tower": {"spatial_merge_size": 3, "conv_kernel_size": 5, "num_key_value_heads": 1}},
    ),
    "lfm3_vl of attention alone": ("lfm3_vl", {"tower": {"layer_types": ["full_attention"] * 3}}),
}


def vision_model(
    family: str, text: dict[str, Any] | None = None, tower: dict[str, Any] | None = None, **changes: Any
) -> Any:
    """transformers' model of that family, with changes of its decoder's, its tower's and its own configuration."""
    own: dict[str, Any] = {"image_token_id": IMAGE_TOKEN, "projector_hidden_size": 20} | changes
    if family == "lfm2_vl":
        config = Lfm2VlConfig(text_config=_LFM2 | (text or {}), vision_config=SIGLIP2 | (tower or {}), **own)
        model = Lfm2VlForConditionalGeneration(config)
    else:
        config = Lfm3VlConfig(text_config=_LFM3 | (text or {}), vision_config=_TOWER | (tower or {}), **own)
        model = Lfm3VlForConditionalGeneration(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("norm" in name and name.endswith("weight")), 0.15)
    return model.eval()


def save_vision(folder: Path, family: str, as_held: bool = False, **changes: Any) -> Any:
    """Save such a model with nano's tokenizer and return it; `as_held`: under the names it has in memory."""
    model = vision_model(family, **changes)
    model.save_pretrained(folder)
    if as_held:
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        held = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
        save_file(held, folder / "model.safetensors")
    for name in TOKENIZER_FILES:
        shutil.copyfile(nano.PATH / name, folder / name)
    return model


def processed(family: str, config: Any, grids: Grids, seed: int = 0) -> dict[str, Tensor]:
    """What a processor gives for images of these grids of blocks, their pixels random."""
    torch.manual_seed(seed)
    vision = config.vision_config
    if family == "lfm2_vl":
        merge, values = config.downsample_factor, vision.num_channels * vision.patch_size**2
        shapes = torch.tensor(grids) * merge
        counts = shapes.prod(-1)
        pixels = torch.randn(len(grids), int(counts.max()) + 3, values)  # padding is never zeros alone
        mask = torch.arange(pixels.shape[1]) < counts.unsqueeze(-1)
        return {"pixel_values": pixels, "spatial_shapes": shapes, "pixel_attention_mask": mask.int()}
    merge, frames = vision.spatial_merge_size, vision.temporal_patch_size
    shapes = torch.tensor([(1, rows * merge, columns * merge) for rows, columns in grids])
    values = vision.in_channels * frames * vision.patch_size**2
    return {"pixel_values": torch.randn(int(shapes.prod(-1).sum()), values), "image_grid_thw": shapes}


def ours_of(theirs: Any) -> VisionEncoder:
    """The traced image part, its tensors as transformers holds them in memory."""
    vision = parse_model_config(theirs.config.to_dict(), "config.json").vision
    assert vision is not None
    encoder, tensors = VisionEncoder(vision).eval().requires_grad_(False), theirs.state_dict()
    for stored in vision_layouts(vision)[1]:
        for name, part in zip(stored.parameters, stored.parts(tensors[stored.name]), strict=True):
            encoder.get_parameter(name).copy_(part)
    return encoder
