"""The shapes of the small models that are trained here: each family's mechanisms and proportions in small."""

from collections.abc import Callable

from tokenizer import BOS, EOS, PAD
from transformers import (
    Lfm2Config,
    Lfm2MoeConfig,
    Lfm2VlConfig,
    Lfm3Config,
    PreTrainedConfig,
    Siglip2VisionConfig,
)

CONTEXT = 1024


def configuration(hidden: int, layers: int, vocab: int) -> Lfm2Config:
    """LFM2's proportions in small: convolutions first, then attention in every second layer."""
    head = 32 if hidden < 512 else 64
    heads = hidden // head
    kinds = ["full_attention" if i >= 2 and i % 2 == 0 else "conv" for i in range(layers)]
    return Lfm2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=layers,
        layer_types=kinds,
        full_attn_idxs=[i for i, kind in enumerate(kinds) if kind == "full_attention"],
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        conv_L_cache=3,
        conv_bias=False,
        norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def lfm3_configuration(hidden: int, layers: int, vocab: int) -> Lfm3Config:
    """LFM3's mechanisms in small: gates, sandwich norms, a window shorter than most questions, both kinds of RoPE."""
    kinds = ("conv", "sliding_attention", "full_attention")
    return Lfm3Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        layer_types=[kinds[i % 3] for i in range(layers)],
        sliding_window=24,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        conv_L_cache=7,
        max_position_embeddings=CONTEXT,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def moe_configuration(hidden: int, layers: int, vocab: int) -> Lfm2MoeConfig:
    """LFM2's layers with two of six experts, as wide together as the dense MLP of the first two layers."""
    dense = configuration(hidden, layers, vocab)
    own = ("layer_types", "num_attention_heads", "num_key_value_heads", "conv_L_cache", "conv_bias", "norm_eps")
    same = ("rope_parameters", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")
    return Lfm2MoeConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        moe_intermediate_size=hidden,
        num_hidden_layers=layers,
        num_dense_layers=2,
        num_experts=6,
        num_experts_per_tok=2,
        use_expert_bias=True,
        norm_topk_prob=True,
        tie_word_embeddings=True,
        **{name: getattr(dense, name) for name in (*own, *same)},
    )


def vl_configuration(text: Lfm2Config, image_token: int) -> Lfm2VlConfig:
    """LFM2-VL's parts in small: a SigLIP2 tower for patches of 16 pixels, and a projector that folds 2 × 2 of them."""
    tower = Siglip2VisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        patch_size=16,
        num_patches=64,
        vision_use_head=False,
    )
    return Lfm2VlConfig(
        vision_config=tower,
        text_config=text,
        image_token_id=image_token,
        projector_hidden_size=256,
        downsample_factor=2,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


CONFIGURATIONS: dict[str, Callable[[int, int, int], PreTrainedConfig]] = {
    "lfm2": configuration,
    "lfm2_moe": moe_configuration,
    "lfm3": lfm3_configuration,
}
