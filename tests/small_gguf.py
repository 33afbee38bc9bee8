"""A checkpoint as a GGUF of fp32, written with the `gguf` package: what llama.cpp's own converter makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lfm2_export.checkpoint.source import Checkpoint

_MODULES = {
    "operator_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "conv.conv": "shortconv.conv",
    "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}
_OUTSIDE = {"model.embed_tokens.weight": "token_embd.weight", "model.embedding_norm.weight": "token_embd_norm.weight"}


def write_gguf(checkpoint: Checkpoint, file: Path) -> Path:
    """Write an LFM2 checkpoint with tied embeddings, without its vocabulary, and return the file."""
    import gguf

    config = checkpoint.config
    writer = gguf.GGUFWriter(file, "lfm2")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    attention = [kind == "full_attention" for kind in config.layer_types]
    writer.add_head_count_kv([config.num_key_value_heads if attends else 0 for attends in attention])
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_shortconv_l_cache(config.conv_L_cache)
    for name, tensor in checkpoint.tensors():
        writer.add_tensor(_name(name), np.ascontiguousarray(tensor.float().squeeze().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _name(name: str) -> str:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_MODULES[rest.removesuffix('.weight')]}.weight"
