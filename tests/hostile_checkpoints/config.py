"""What config.json says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hostile_checkpoints.spoil import HOSTILE, Spoil, edit, hostile, link_outside

HUGE = "9" * 5000  # more digits than Python turns into an int by itself


def config_with(key: str, value: Any, says: str | None = None) -> Spoil:
    def spoil(folder: Path) -> str:
        edit(folder, **{key: value})
        return says or key

    return spoil


HOSTILE |= {
    "another_model_type": config_with("model_type", "llama", "only 'lfm2'"),
    "mixture_of_experts": config_with("model_type", "lfm2_moe", "tensor"),
    "no_model_type": config_with("model_type", None),
    "model_type_with_newlines": config_with("model_type", "a\nb" * 1000, "model_type"),
    "text_for_a_number": config_with("hidden_size", "16"),
    "fraction_for_a_number": config_with("hidden_size", 16.5),
    "true_for_a_number": config_with("num_key_value_heads", True),
    "missing_size": config_with("hidden_size", None),
    "zero_size": config_with("vocab_size", 0),
    "negative_size": config_with("hidden_size", -16),
    "absurd_size": config_with("vocab_size", 10**12),
    "absurd_layer_count": config_with("num_hidden_layers", 10**6),
    "nan_rope_theta": config_with("rope_parameters", {"rope_theta": float("nan")}, "rope_theta"),
    "negative_rope_theta": config_with("rope_parameters", {"rope_theta": -1.0}, "rope_theta"),
    "infinite_norm_eps": config_with("norm_eps", float("inf")),
    "integer_beyond_float": config_with("norm_eps", 10**400),
    "scaled_rope": config_with("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e6}, "yarn"),
    "scaled_rope_in_the_old_spelling": config_with("rope_scaling", {"type": "linear", "factor": 2.0}, "linear"),
    "partial_rotation": config_with("partial_rotary_factor", 0.5),
    "heads_not_divisible": config_with("num_key_value_heads", 3),
    "odd_head_dim": config_with("head_dim", 7),
    "unknown_layer_type": config_with("layer_types", ["conv", "mamba", "conv"], "mamba"),
    "layer_type_of_another_kind": config_with("layer_types", ["conv", ["conv"], "conv"], "layer_types"),
    "too_few_layer_types": config_with("layer_types", ["conv", "full_attention"]),
    "sliding_window": config_with("sliding_window", 128),
    "conv_width_of_one": config_with("conv_L_cache", 1),
    "absurd_conv_width": config_with("conv_L_cache", 10**6),
    "end_token_outside_the_vocabulary": config_with("eos_token_id", 10**6),
    "begin_token_outside_the_vocabulary": config_with("bos_token_id", -5),
    "quantized_already": config_with("quantization_config", {"bits": 4}),
    "another_width_than_the_weights": config_with("intermediate_size", 32, "feed_forward.w1"),
    "more_layers_than_the_weights": config_with("layer_types", ["conv"] * 3, "model.layers.1.conv"),
}


@hostile
def mlp_width_overflows(folder: Path) -> str:
    edit(folder, block_auto_adjust_ff_dim=True, block_ffn_dim_multiplier=1e14)
    return "intermediate_size"


@hostile
def mlp_width_vanishes(folder: Path) -> str:
    edit(folder, block_auto_adjust_ff_dim=True, block_ffn_dim_multiplier=1e-9)
    return "intermediate_size"


@hostile
def attention_index_out_of_range(folder: Path) -> str:
    edit(folder, layer_types=None, full_attn_idxs=[1, 9])
    return "full_attn_idxs"


@hostile
def config_missing(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "config.json"


@hostile
def config_is_a_folder(folder: Path) -> str:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    return "config.json"


@hostile
def config_links_outside(folder: Path) -> str:
    return link_outside(folder, "config.json")


def config_text(text: bytes) -> Spoil:
    def spoil(folder: Path) -> str:
        (folder / "config.json").write_bytes(text)
        return "config.json"

    return spoil


HOSTILE |= {
    "config_empty": config_text(b""),
    "config_truncated": config_text(b'{"model_type": "lfm2", "vocab'),
    "config_is_a_list": config_text(b"[1, 2]"),
    "config_not_utf8": config_text(b"\xff\xfe\x00{}"),
    "config_nested_a_million_deep": config_text(b'{"a":' + b"[" * 500_000),
    "config_with_an_endless_number": config_text(b'{"model_type": "lfm2", "hidden_size": ' + HUGE.encode() + b"}"),
    "config_oversized": config_text(b" " * (2 << 20) + b"{}"),
}
