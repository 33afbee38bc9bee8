"""Small, good checkpoints for tests to read, split and spoil."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Lfm2Config, Lfm2ForCausalLM

from lfm2_export.checkpoint import nano
from lfm2_export.checkpoint.config import LFM2Config, read_config
from lfm2_export.model.random_init import init_checkpoint

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")

SIX_LAYERS = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 160,
    "block_auto_adjust_ff_dim": False,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "conv_L_cache": 3,
    "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention", "conv"],
    "max_position_embeddings": 256,
    "eos_token_id": 7,
}


def tiny_config() -> LFM2Config:
    """Three layers of width 16, with the nano model's vocabulary so that its tokenizer fits."""
    return LFM2Config(
        vocab_size=read_config(nano.PATH / "config.json").vocab_size,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        layer_types=("conv", "full_attention", "conv"),
        conv_L_cache=3,
        conv_bias=False,
        norm_eps=1e-5,
        rope_theta=1e6,
        tie_word_embeddings=True,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_ids=(7,),
        pad_token_id=0,
    )


LFM3: dict[str, Any] = {  # changes of `tiny_config`
    "model_type": "lfm3",
    "layer_types": ("conv", "full_attention", "sliding_attention"),
    "rope_factor": 0.5,
    "sliding_window": 5,
    "sliding_rope_theta": 1e4,
    "use_attention_gate": True,
    "use_sandwich_norm": True,
}
MOE: dict[str, Any] = {
    "model_type": "lfm2_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_dense_layers": 1,
    "moe_intermediate_size": 8,
    "use_expert_bias": True,
    "norm_topk_prob": True,
}


def write_tiny(folder: Path) -> Path:
    """A tiny checkpoint with random weights and the nano model's tokenizer; nothing is wrong with it."""
    init_checkpoint(tiny_config(), folder)
    for name in TOKENIZER_FILES:
        shutil.copyfile(nano.PATH / name, folder / name)
    return folder


def save_transformers(
    folder: Path, dtype: torch.dtype = torch.float32, shard: str = "5GB", **changes: object
) -> Lfm2ForCausalLM:
    """A random model of transformers, saved by transformers; every tensor random, norms and biases too."""
    torch.manual_seed(0)
    model = Lfm2ForCausalLM(Lfm2Config(**(SIX_LAYERS | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model = model.to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    return model
