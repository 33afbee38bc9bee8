"""Which tensors an LFM2 checkpoint holds: names and shapes, from the config alone (Hugging Face's naming)."""

from __future__ import annotations

from lfm2_export.checkpoint.config import LFM2Config

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def expected_tensors(config: LFM2Config) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by name; a tied checkpoint has no head of its own."""
    hidden, width, inner = config.hidden_size, config.head_dim, config.intermediate_size
    heads, kv_heads = config.num_attention_heads * width, config.num_key_value_heads * width
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for i, kind in enumerate(config.layer_types):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.operator_norm.weight"] = (hidden,)
        if kind == "conv":
            shapes[f"{layer}.conv.conv.weight"] = (hidden, 1, config.conv_L_cache)
            shapes[f"{layer}.conv.in_proj.weight"] = (3 * hidden, hidden)
            shapes[f"{layer}.conv.out_proj.weight"] = (hidden, hidden)
            if config.conv_bias:
                shapes[f"{layer}.conv.conv.bias"] = (hidden,)
                shapes[f"{layer}.conv.in_proj.bias"] = (3 * hidden,)
                shapes[f"{layer}.conv.out_proj.bias"] = (hidden,)
        else:
            shapes[f"{layer}.self_attn.q_proj.weight"] = (heads, hidden)
            shapes[f"{layer}.self_attn.k_proj.weight"] = (kv_heads, hidden)
            shapes[f"{layer}.self_attn.v_proj.weight"] = (kv_heads, hidden)
            shapes[f"{layer}.self_attn.out_proj.weight"] = (hidden, heads)
            shapes[f"{layer}.self_attn.q_layernorm.weight"] = (width,)
            shapes[f"{layer}.self_attn.k_layernorm.weight"] = (width,)
        shapes[f"{layer}.ffn_norm.weight"] = (hidden,)
        shapes[f"{layer}.feed_forward.w1.weight"] = (inner, hidden)
        shapes[f"{layer}.feed_forward.w2.weight"] = (hidden, inner)
        shapes[f"{layer}.feed_forward.w3.weight"] = (inner, hidden)
    shapes["model.embedding_norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, hidden)
    return shapes
