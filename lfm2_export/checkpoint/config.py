"""`config.json` → `LFM2Config`: the only description of the architecture that the rest may read.

`config_keys.py` says which keys a `config.json` may have; here is what they mean together. The arithmetic of the MLP
width is that of transformers' `Lfm2MLP`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lfm2_export.checkpoint.config_keys import (
    LFM3_LAYERS,
    MAX_SIZE,
    ConfigKeys,
    EndKeys,
    LayerRopeKeys,
    LayerType,
    Lfm2Keys,
    Lfm2MoeKeys,
    Lfm3Keys,
    ModelType,
    TypeKey,
    read_keys,
)
from lfm2_export.checkpoint.json_file import read_json
from lfm2_export.errors import CheckpointError

_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class LFM2Config:
    """The shape of one decoder of the LFM2 family, with every spelling of `config.json` already resolved.

    `intermediate_size` is the true width of w1/w3 (after `block_auto_adjust_ff_dim`). What LFM2 itself does not have
    comes last and has as its default what means none.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    layer_types: tuple[LayerType, ...]
    conv_L_cache: int
    conv_bias: bool
    norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    model_type: ModelType = "lfm2"
    rope_factor: float = 1.0  # of the pairs of a head's channels, how many turn in full attention (proportional RoPE)
    sliding_window: int | None = None  # tokens that a query of a sliding layer sees, its own included
    sliding_rope_theta: float = 0.0
    sliding_rope_factor: float = 1.0
    attention_bias: bool = False
    use_attention_gate: bool = False  # each head's output is scaled by a sigmoid of the layer's input
    use_sandwich_norm: bool = False  # norms behind mixer and MLP as well
    num_experts: int = 0  # in the MLP of each layer from `num_dense_layers` on
    num_experts_per_tok: int = 0
    num_dense_layers: int = 0
    moe_intermediate_size: int = 0
    use_expert_bias: bool = False  # added to an expert's score for the choice alone
    norm_topk_prob: bool = False  # the chosen experts' scores are divided by their sum
    routed_scaling_factor: float = 1.0

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layer_types)

    @property
    def conv_layers(self) -> tuple[int, ...]:
        """Indices of the gated short-convolution layers."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "conv")

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Indices of the layers whose attention sees the whole context."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "full_attention")

    @property
    def sliding_layers(self) -> tuple[int, ...]:
        """Indices of the layers whose attention sees a sliding window."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "sliding_attention")

    def rotary(self, kind: str) -> tuple[float, int]:
        """Return RoPE's base in attention layers of that kind, and how many pairs of a head's channels turn."""
        sliding = kind == "sliding_attention"
        factor = self.sliding_rope_factor if sliding else self.rope_factor
        return self.sliding_rope_theta if sliding else self.rope_theta, int(factor * self.head_dim // 2)

    def has_experts(self, layer: int) -> bool:
        """Return whether that layer's MLP is a choice among experts."""
        return bool(self.num_experts) and layer >= self.num_dense_layers


def read_config(path: Path) -> LFM2Config:
    """Read and check a `config.json`.

    Raise CheckpointError, one line that names the file and the key, for anything that is not a plain LFM2.
    """
    return parse_config(read_json(path, _MAX_BYTES), str(path))


_KEYS: dict[ModelType, type[ConfigKeys]] = {"lfm2": Lfm2Keys, "lfm2_moe": Lfm2MoeKeys, "lfm3": Lfm3Keys}


def parse_config(document: dict[str, Any], where: str) -> LFM2Config:
    """Return the shape that a parsed `config.json` describes; `where` names it in errors. Raise CheckpointError."""
    model_type = read_keys(TypeKey, document, where).model_type
    keys = read_keys(_KEYS[model_type], document, where)
    if keys.num_attention_heads % keys.num_key_value_heads:
        raise CheckpointError(
            f"{where}: num_attention_heads {keys.num_attention_heads}: expected a multiple of num_key_value_heads "
            f"{keys.num_key_value_heads}"
        )
    _check_token("bos_token_id", keys.bos_token_id, keys.vocab_size, where)
    _check_token("pad_token_id", keys.pad_token_id, keys.vocab_size, where)
    return LFM2Config(
        vocab_size=keys.vocab_size,
        hidden_size=keys.hidden_size,
        num_attention_heads=keys.num_attention_heads,
        num_key_value_heads=keys.num_key_value_heads,
        head_dim=_head_dim(keys, where),
        conv_bias=keys.conv_bias,
        norm_eps=keys.norm_eps,
        max_position_embeddings=keys.max_position_embeddings,
        bos_token_id=keys.bos_token_id,
        eos_token_ids=token_ids(document, keys.vocab_size, where),
        pad_token_id=keys.pad_token_id,
        model_type=model_type,
        **(_lfm3(keys, where) if isinstance(keys, Lfm3Keys) else _lfm2(keys, where)),
    )


def to_dict(config: LFM2Config) -> dict[str, Any]:
    """Return a plain JSON document of the resolved shape; of LFM2 without what it does not have."""
    document: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    if config.model_type != "lfm2":
        return document
    names = [field.name for field in fields(LFM2Config)]
    return {name: document[name] for name in names[: names.index("model_type")]}


def from_dict(document: dict[str, Any], where: str) -> LFM2Config:
    """Return what `to_dict` was given, after the checks of a `config.json`; `where` names the source in errors."""
    known: dict[str, Any] = {"block_auto_adjust_ff_dim": False, "eos_token_id": document.get("eos_token_ids")}
    if "model_type" not in document:
        known["model_type"] = "lfm2"
    if document.get("model_type") == "lfm3":
        known["rope_parameters"] = {"full_attention": _rope_document(document, "rope")}
        if document.get("sliding_window") is not None:
            known["rope_parameters"]["sliding_attention"] = _rope_document(document, "sliding_rope")
    return parse_config(document | known, where)


def _rope_document(document: dict[str, Any], name: str) -> dict[str, Any]:
    theta, factor = document.get(f"{name}_theta"), document.get(f"{name}_factor")
    return {"rope_type": "proportional", "rope_theta": theta, "partial_rotary_factor": factor}


def token_ids(document: dict[str, Any], vocab_size: int, where: str) -> tuple[int, ...]:
    """Return `eos_token_id`, one id or a list of them, of a config or generation config.

    Raise CheckpointError if one is not in the vocabulary.
    """
    ids = read_keys(EndKeys, document, where).eos_token_id
    for token in ids:
        _check_token("eos_token_id", token, vocab_size, where)
    return tuple(ids)


def _check_token(name: str, token: int | None, vocab_size: int, where: str) -> None:
    if token is not None and token >= vocab_size:
        raise CheckpointError(f"{where}: {name} is {token}; expected a token id below vocab_size {vocab_size}")


def _lfm2(keys: Any, where: str) -> dict[str, Any]:
    """What LFM2 and LFM2-MoE spell alike, and the experts of the latter."""
    found = {
        "intermediate_size": _mlp_width(keys, where) if isinstance(keys, Lfm2Keys) else keys.intermediate_size,
        "layer_types": _layer_types(keys, where),
        "conv_L_cache": keys.conv_L_cache,
        "rope_theta": keys.rope_scaling.rope_theta or keys.rope_parameters.rope_theta or keys.rope_theta,
        "tie_word_embeddings": keys.tie_word_embeddings,
    }
    if not isinstance(keys, Lfm2MoeKeys):
        return found
    if keys.num_experts_per_tok > keys.num_experts:
        raise CheckpointError(
            f"{where}: num_experts_per_tok is {keys.num_experts_per_tok}; expected at most num_experts "
            f"{keys.num_experts}"
        )
    experts = ("num_experts", "num_experts_per_tok", "num_dense_layers", "moe_intermediate_size")
    choice = ("use_expert_bias", "norm_topk_prob", "routed_scaling_factor")
    return found | {name: getattr(keys, name) for name in (*experts, *choice)}


def _lfm3(keys: Lfm3Keys, where: str) -> dict[str, Any]:
    """What LFM3 spells in its own way."""
    kinds = _lfm3_layer_types(keys, where)
    full, sliding = keys.rope_parameters.full_attention, keys.rope_parameters.sliding_attention
    found = {
        "intermediate_size": keys.intermediate_size,
        "layer_types": kinds,
        "conv_L_cache": keys.conv_L_cache,
        "rope_theta": full.rope_theta,
        "rope_factor": _rope_factor(full, f"{where}: rope_parameters.full_attention"),
        "tie_word_embeddings": keys.tie_word_embeddings,
        "attention_bias": keys.attention_bias,
        "use_attention_gate": keys.use_attention_gate,
        "use_sandwich_norm": keys.use_sandwich_norm,
    }
    if "sliding_attention" not in kinds:
        return found
    if keys.sliding_window is None:
        raise CheckpointError(
            f"{where}: sliding_window is missing; expected a whole number, layer_types has such layers"
        )
    return found | {
        "sliding_window": keys.sliding_window,
        "sliding_rope_theta": sliding.rope_theta,
        "sliding_rope_factor": _rope_factor(sliding, f"{where}: rope_parameters.sliding_attention"),
    }


def _rope_factor(keys: LayerRopeKeys, where: str) -> float:
    """Which share of the pairs turns; transformers' default kind turns all of them, whatever the key says."""
    if keys.rope_type == "default" and keys.partial_rotary_factor != 1:
        raise CheckpointError(
            f"{where}.partial_rotary_factor is {keys.partial_rotary_factor:g}; expected 1 with rope_type 'default'"
        )
    return keys.partial_rotary_factor


def _lfm3_layer_types(keys: Lfm3Keys, where: str) -> tuple[LayerType, ...]:
    """Each layer's kind: as listed, else the pattern of the released model."""
    if (listed := _listed_layer_types(keys, where)) is not None:
        return listed
    remainders: dict[int, LayerType] = {0: "sliding_attention", 2: "full_attention"}
    return ("conv", *(remainders.get(layer % 4, "conv") for layer in range(1, keys.num_hidden_layers or LFM3_LAYERS)))


def _mlp_width(keys: Lfm2Keys, where: str) -> int:
    """The true width of w1 and w3, as transformers' Lfm2MLP computes it."""
    width = keys.intermediate_size
    if not keys.block_auto_adjust_ff_dim:
        return width
    width = int(2 * width / 3)
    if keys.block_ffn_dim_multiplier is not None:
        width = int(keys.block_ffn_dim_multiplier * width)
        width = keys.block_multiple_of * -(-width // keys.block_multiple_of)
    if not 1 <= width <= MAX_SIZE:
        raise CheckpointError(
            f"{where}: intermediate_size {keys.intermediate_size} adjusts to {width}; expected 1 to {MAX_SIZE}"
        )
    return width


def _head_dim(keys: ConfigKeys, where: str) -> int:
    hidden, heads = keys.hidden_size, keys.num_attention_heads
    if keys.head_dim is None and hidden % heads:
        raise CheckpointError(f"{where}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    width = keys.head_dim or hidden // heads
    if width % 2:
        raise CheckpointError(f"{where}: head_dim {width} is odd; rotary positions need pairs")
    return width


def _layer_types(keys: Any, where: str) -> tuple[LayerType, ...]:
    """Each layer's kind: as listed, else by the indices of attention layers, else all attention."""
    if (listed := _listed_layer_types(keys, where)) is not None:
        return listed
    count = keys.num_hidden_layers
    if count is None:
        raise CheckpointError(f"{where}: num_hidden_layers is missing; expected it, or layer_types")
    attention = range(count) if keys.full_attn_idxs is None else keys.full_attn_idxs
    if (beyond := next((index for index in attention if index >= count), None)) is not None:
        raise CheckpointError(f"{where}: full_attn_idxs holds {beyond}; expected layer indices below {count}")
    return tuple("full_attention" if index in attention else "conv" for index in range(count))


def _listed_layer_types(keys: Any, where: str) -> tuple[LayerType, ...] | None:
    kinds, count = keys.layer_types, keys.num_hidden_layers
    if kinds is not None and count not in (None, len(kinds)):
        raise CheckpointError(f"{where}: layer_types has {len(kinds)} entries; expected num_hidden_layers {count}")
    return None if kinds is None else tuple(kinds)
