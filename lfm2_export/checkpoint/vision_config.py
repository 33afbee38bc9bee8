"""A vision-language `config.json` → the shapes of its two parts: the decoder, and what turns images into embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

from lfm2_export.checkpoint.config import LFM2Config, parse_config
from lfm2_export.checkpoint.config_keys import ARCHITECTURES, read_keys
from lfm2_export.checkpoint.json_file import read_json
from lfm2_export.checkpoint.vision_keys import (
    Activation,
    LayerKind,
    Lfm2VlKeys,
    Lfm3VisionKeys,
    Lfm3VlKeys,
    Siglip2Keys,
    VisionType,
)
from lfm2_export.errors import CheckpointError

_MAX_BYTES = 1 << 20
_DECODERS = {"lfm2_vl": "lfm2", "lfm3_vl": "lfm3"}  # where the decoder's object does not say what it is
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class VisionConfig:
    """The shape of a tower and of the projector behind it.

    What only one of the families has comes last and has as its default what means none.
    """

    model_type: VisionType  # whose network it is
    patch_values: int  # in a patch as the processor gives it
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    layer_types: tuple[LayerKind, ...]
    norm_eps: float
    merge: int  # patches side by side, in both directions, that become one embedding
    projector_hidden_size: int
    projector_activation: Activation
    projector_bias: bool
    output_size: int  # of an embedding: the decoder's hidden size
    image_token_id: int  # which a prompt holds once for each embedding
    activation: Activation | None = None  # in SigLIP2's MLP; None: SwiGLU
    position_side: int = 0  # of SigLIP2's square table of positions
    pooling_head: bool = False  # SigLIP2's, stored and never used
    projector_norm: bool = True
    rope_theta: float = 0.0
    conv_kernel_size: int = 0
    frames: int = 1  # of a video that a patch holds; an image is repeated

    @property
    def patch_size(self) -> int:
        """The pixels of a patch in each direction, where there are three colors."""
        return math.isqrt(self.patch_values // (3 * self.frames))

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layer_types)

    @property
    def head_dim(self) -> int:
        """The channels of a head."""
        return self.hidden_size // self.num_attention_heads


class ModelConfig(NamedTuple):
    """What a `config.json` describes: a decoder, and a vision-language model's image part."""

    decoder: LFM2Config
    vision: VisionConfig | None


def read_model_config(path: Path) -> ModelConfig:
    """Read and check a `config.json`, of a decoder alone or of a vision-language model.

    Raise CheckpointError, one line that names the file and the key, for anything else.
    """
    return parse_model_config(read_json(path, _MAX_BYTES), str(path))


def parse_model_config(document: dict[str, Any], where: str) -> ModelConfig:
    """Return the shapes that a parsed `config.json` describes; `where` names it in errors. Raise CheckpointError."""
    if not is_vision_language(document):
        return ModelConfig(parse_config(document, where), None)
    keys = _keys(document, where)
    decoder = parse_config(decoder_document(document, where), f"{where}: text_config")
    if keys.image_token_id >= decoder.vocab_size:
        raise CheckpointError(
            f"{where}: image_token_id is {keys.image_token_id}; expected a token id below vocab_size "
            f"{decoder.vocab_size}"
        )
    tower = _siglip2(keys, where) if isinstance(keys, Lfm2VlKeys) else _lfm3(keys, where)
    vision = VisionConfig(
        model_type=document["model_type"],
        projector_hidden_size=keys.projector_hidden_size,
        projector_activation=keys.projector_hidden_act,
        projector_bias=keys.projector_bias,
        output_size=decoder.hidden_size,
        image_token_id=keys.image_token_id,
        **tower,
    )
    if vision.hidden_size % vision.num_attention_heads:
        raise CheckpointError(
            f"{where}: vision_config: hidden_size {vision.hidden_size} is not a multiple of num_attention_heads "
            f"{vision.num_attention_heads}"
        )
    return ModelConfig(decoder, vision)


def is_vision_language(document: dict[str, Any]) -> bool:
    """Return whether a parsed `config.json` is one of a vision-language model."""
    return document.get("model_type") in get_args(VisionType)


def decoder_document(document: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the `config.json` that the decoder of a vision-language model has by itself. Raise CheckpointError.

    Whether its head is the embedding is said by the whole model, not by the decoder's own object.
    """
    keys = _keys(document, where)
    found: dict[str, Any] = {"model_type": _DECODERS[document["model_type"]]} | keys.text_config
    found |= {name: getattr(keys, name) for name in _IDS if found.get(name) is None and getattr(keys, name) is not None}
    found.pop("tie_embedding", None)
    found["architectures"] = [name for kind, name in ARCHITECTURES.items() if kind == found["model_type"]]
    return found | {"tie_word_embeddings": keys.tie_word_embeddings}


def _keys(document: dict[str, Any], where: str) -> Lfm2VlKeys | Lfm3VlKeys:
    if document["model_type"] == "lfm2_vl":
        return read_keys(Lfm2VlKeys, document, where)
    return read_keys(Lfm3VlKeys, document, where)


def _siglip2(keys: Lfm2VlKeys, where: str) -> dict[str, Any]:
    where = f"{where}: vision_config"
    tower = read_keys(Siglip2Keys, keys.vision_config, where)
    side = math.isqrt(tower.num_patches)
    if side**2 != tower.num_patches:
        raise CheckpointError(f"{where}: num_patches is {tower.num_patches}; expected a square number")
    return {
        "patch_values": tower.num_channels * tower.patch_size**2,
        "hidden_size": tower.hidden_size,
        "intermediate_size": tower.intermediate_size,
        "num_attention_heads": tower.num_attention_heads,
        "num_key_value_heads": tower.num_attention_heads,
        "layer_types": ("full_attention",) * tower.num_hidden_layers,
        "norm_eps": tower.layer_norm_eps,
        "activation": tower.hidden_act,
        "position_side": side,
        "pooling_head": tower.vision_use_head,
        "merge": keys.downsample_factor,
        "projector_norm": keys.projector_use_layernorm,
    }


def _lfm3(keys: Lfm3VlKeys, where: str) -> dict[str, Any]:
    where = f"{where}: vision_config"
    tower = read_keys(Lfm3VisionKeys, keys.vision_config, where)
    heads, count = tower.num_attention_heads, tower.num_hidden_layers
    if heads % tower.num_key_value_heads:
        raise CheckpointError(
            f"{where}: num_attention_heads {heads}: expected a multiple of num_key_value_heads "
            f"{tower.num_key_value_heads}"
        )
    if tower.hidden_size % (4 * heads):
        raise CheckpointError(
            f"{where}: hidden_size {tower.hidden_size}: expected a multiple of 4 for each of num_attention_heads "
            f"{heads}: positions turn a quarter of a head's channels each"
        )
    if tower.layer_types is not None and len(tower.layer_types) != count:
        raise CheckpointError(
            f"{where}: layer_types has {len(tower.layer_types)} entries; expected num_hidden_layers {count}"
        )
    usual: list[LayerKind] = ["conv" if layer < 2 or layer % 2 else "full_attention" for layer in range(count)]
    return {
        "patch_values": tower.in_channels * tower.temporal_patch_size * tower.patch_size**2,
        "hidden_size": tower.hidden_size,
        "intermediate_size": tower.intermediate_size,
        "num_attention_heads": heads,
        "num_key_value_heads": tower.num_key_value_heads,
        "layer_types": tuple(tower.layer_types or usual),
        "norm_eps": tower.norm_eps,
        "merge": tower.spatial_merge_size,
        "rope_theta": tower.rope_parameters.rope_theta,
        "conv_kernel_size": tower.conv_kernel_size,
        "frames": tower.temporal_patch_size,
    }
