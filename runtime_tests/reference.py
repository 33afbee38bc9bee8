"""transformers' models of the family: the independent implementations that the traced model must equal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    Lfm2Config,
    Lfm2ForCausalLM,
    Lfm2MoeConfig,
    Lfm2MoeForCausalLM,
    Lfm3Config,
    Lfm3ForCausalLM,
    PreTrainedModel,
)

from lfm2_export.checkpoint.config import LFM2Config, parse_config
from lfm2_export.model.decoder import Decoder, layouts


def make_pair(seed: int = 0, **shape: Any) -> tuple[Lfm2ForCausalLM, Decoder]:
    """The same random weights in transformers' model and in ours; `shape` overrides `Lfm2Config` keys."""
    defaults: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "conv_L_cache": 3,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention", "conv"],
        "max_position_embeddings": 256,
        "pad_token_id": 0,
    }
    theirs = Lfm2ForCausalLM(Lfm2Config(**{**defaults, **shape})).eval()
    torch.manual_seed(seed)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.15)
    ours = Decoder(_config(theirs.config)).eval()
    ours.load_state_dict(_renamed(theirs.state_dict()))
    return theirs, ours.requires_grad_(False)


_SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 7,
}


def make_lfm3_pair(seed: int = 0, **shape: Any) -> tuple[Lfm3ForCausalLM, Decoder]:
    """The same of LFM3: by default six layers, one of them full and one sliding attention over six tokens."""
    defaults: dict[str, Any] = _SMALL | {"num_hidden_layers": 6, "head_dim": 16, "sliding_window": 6}
    return _pair(Lfm3ForCausalLM(Lfm3Config(**(defaults | shape))), seed)


def make_moe_pair(seed: int = 0, **shape: Any) -> tuple[Lfm2MoeForCausalLM, Decoder]:
    """The same of LFM2-MoE: by default three layers of which the last two choose two of six experts."""
    experts = {"num_experts": 6, "num_experts_per_tok": 2, "num_dense_layers": 1, "moe_intermediate_size": 32}
    layers = {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}
    return _pair(Lfm2MoeForCausalLM(Lfm2MoeConfig(**(_SMALL | experts | layers | shape))), seed)


def _pair(theirs: Any, seed: int) -> tuple[Any, Decoder]:
    torch.manual_seed(seed)
    biases = [buffer for name, buffer in theirs.named_buffers() if name.endswith("expert_bias")]
    with torch.no_grad():
        for tensor in (*theirs.parameters(), *biases):
            tensor.normal_(0.0, 0.15)
    return theirs.eval(), _ours(theirs)


def _ours(theirs: PreTrainedModel) -> Decoder:
    """The traced model, its tensors as transformers holds them in memory."""
    decoder = Decoder(parse_config(theirs.config.to_dict(), "config.json")).eval().requires_grad_(False)
    tensors = theirs.state_dict()
    for stored in layouts(decoder.config)[-1]:
        for name, part in zip(stored.parameters, stored.parts(tensors[stored.name]), strict=True):
            decoder.get_parameter(name).copy_(part)
    return decoder


def _config(config: Lfm2Config) -> LFM2Config:
    return LFM2Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        layer_types=tuple(config.layer_types),
        conv_L_cache=config.conv_L_cache,
        conv_bias=config.conv_bias,
        norm_eps=config.norm_eps,
        rope_theta=config.rope_parameters["rope_theta"],
        tie_word_embeddings=config.tie_word_embeddings,
        max_position_embeddings=config.max_position_embeddings,
        bos_token_id=1,
        eos_token_ids=(7,),
    )


def _renamed(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        name = name.removeprefix("model.")
        if ".conv.in_proj." in name:
            for part, rows in zip("bcx", tensor.chunk(3), strict=True):
                ours[name.replace("in_proj", f"{part}_proj")] = rows
        elif name.endswith(".conv.conv.weight"):
            ours[name.replace("conv.conv.weight", "conv.kernel")] = tensor[:, 0].T
        else:
            ours[name.replace("conv.conv.bias", "conv.bias")] = tensor
    return ours
