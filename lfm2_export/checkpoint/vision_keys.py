"""The keys of a vision-language `config.json` that are read, beside those of its decoder (`config_keys.py`).

Keys and defaults are those of transformers' `Lfm2VlConfig`, `Siglip2VisionConfig`, `Lfm3VlConfig` and
`Lfm3VlVisionConfig`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from lfm2_export.checkpoint.config_keys import (
    MAX_LAYERS,
    Document,
    Flag,
    Number,
    Size,
    Token,
    only,
    required,
    spelled,
    whole,
)

VisionType = Literal["lfm2_vl", "lfm3_vl"]
Activation = Literal["gelu", "gelu_pytorch_tanh"]  # exact, or by its approximation with tanh
LayerKind = Literal["conv", "full_attention"]

_Object = Annotated[dict[str, Any], only("expected an object")]
_Layers = Annotated[int, whole(high=MAX_LAYERS)]
_Activation = Annotated[Activation, only("expected 'gelu' or 'gelu_pytorch_tanh'")]
_PatchSize = Annotated[int, whole(high=256)]
_Merge = Annotated[int, whole(high=16)]
_Frames = Annotated[int, whole(high=16)]
_Channels = Annotated[int, whole(high=64)]


class _VisionLanguageKeys(Document):
    """The keys of the whole model, beside its parts."""

    quantization_config: Annotated[None, only("expected none, plain F32, F16 or BF16 weights")] = None
    text_config: _Object = required
    vision_config: _Object = required
    bos_token_id: Any = None  # of the decoder, where its own object has none
    eos_token_id: Any = None
    pad_token_id: Any = None
    projector_hidden_act: _Activation = "gelu"
    projector_bias: Flag = True


class Lfm2VlKeys(_VisionLanguageKeys):
    """The keys of LFM2-VL."""

    image_token_id: Token = 396
    projector_hidden_size: Size = 2560
    projector_use_layernorm: Flag = True
    downsample_factor: _Merge = 2
    tie_word_embeddings: Flag = spelled("tie_embedding", "tie_word_embeddings", default=True)


class Lfm3VlKeys(_VisionLanguageKeys):
    """The keys of LFM3-VL."""

    image_token_id: Token = 125_030
    projector_hidden_size: Size = 4096
    tie_word_embeddings: Flag = True


class Siglip2Keys(Document):
    """The keys of LFM2-VL's tower, SigLIP2 for images of any grid."""

    model_type: Annotated[Literal["siglip2_vision_model"], only("only 'siglip2_vision_model' is supported")] = (
        "siglip2_vision_model"
    )
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: _Layers = 12
    num_attention_heads: Size = 12
    num_channels: _Channels = 3
    patch_size: _PatchSize = 16
    hidden_act: _Activation = "gelu_pytorch_tanh"
    layer_norm_eps: Number = 1e-6
    vision_use_head: Flag = True
    num_patches: Size = 256


class AxialRopeKeys(Document):
    """The rotary keys of LFM3-VL's tower."""

    rope_type: Annotated[Literal["axial"], only("expected 'axial'")] = "axial"
    rope_theta: Number = 1e6


class Lfm3VisionKeys(Document):
    """The keys of LFM3-VL's tower."""

    model_type: Annotated[Literal["lfm3_vl_vision"], only("only 'lfm3_vl_vision' is supported")] = "lfm3_vl_vision"
    hidden_size: Size = 1024
    intermediate_size: Size = 2560
    num_hidden_layers: _Layers = 14
    num_attention_heads: Size = 16
    num_key_value_heads: Size = 8
    in_channels: _Channels = 3
    patch_size: _PatchSize = 16
    spatial_merge_size: _Merge = 2
    temporal_patch_size: _Frames = 2
    layer_types: (
        Annotated[
            list[Annotated[LayerKind, only("expected 'conv' or 'full_attention'")]],
            only("expected a list of 'conv' or 'full_attention'", lambda listed: 1 <= len(listed) <= MAX_LAYERS),
        ]
        | None
    ) = None
    conv_kernel_size: Annotated[int, only("expected an odd whole number up to 15", lambda n: 0 < n < 16 and n % 2)] = 3
    rope_parameters: Annotated[AxialRopeKeys, only("expected an object")] = AxialRopeKeys()
    norm_eps: Number = 1e-5
